-- Forget requests that are neither closed nor refused, the most urgent first, with the days left.
-- $subject = null: which subject; all of them when null
-- $now = null: a time in UTC to count from, as 2026-11-24 12:00:00+00; the present when null

SELECT subject, request_id, state, selector, num_examples, received_at, due_at,
    round((epoch(due_at) - epoch(coalesce($now::TIMESTAMPTZ, now()))) / 86400, 1) AS days_left, days_left < 0 AS overdue
FROM requests.register
WHERE state NOT IN ('closed', 'refused') AND ($subject::VARCHAR IS NULL OR subject = $subject)
ORDER BY due_at, request_id
