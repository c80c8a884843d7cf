-- The examples that scores call something, those called most kinds of things by most scores first: noisy, hard, memorised, duplicate.
-- high names the scores that call it so; places are shares of the subject's examples below the example (0 lowest, 1 highest).
-- $subject = null: which subject; all of them when null
-- $at_least = 1: called by so many scores
-- $limit = 50: rows

SELECT a.subject, a.example_id, e.label_name, len(a.says) AS num_kinds, len(a.high) AS num_high, a.num_scores, a.says, a.high,
    a.mean_place, a.spread
FROM scores.agreement a
LEFT JOIN data.examples e USING (subject, example_id)
WHERE len(a.high) >= $at_least AND ($subject::VARCHAR IS NULL OR a.subject = $subject)
ORDER BY num_kinds DESC, num_high DESC, a.mean_place DESC, a.subject, a.example_id
LIMIT $limit
