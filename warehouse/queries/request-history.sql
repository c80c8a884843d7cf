-- What happened to forget requests, step by step, and how many hours each state lasted.
-- $request = null: which request; all of them when null

SELECT subject, request_id, seq, state, "at", note,
    round((epoch(lead("at") OVER (PARTITION BY request_id ORDER BY seq)) - epoch("at")) / 3600, 1) AS hours
FROM requests.events
WHERE $request::VARCHAR IS NULL OR request_id = $request
ORDER BY request_id, seq
