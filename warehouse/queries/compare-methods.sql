-- What a removal method answers against what another, or retraining, answers on the same examples of the leaderboard:
-- a row a pair of answers, with their number, how many of them are right, and by how much the margin changes from the
-- method to the other.
-- $subject = null: which subject; all of them when null
-- $forget_set = "random": which kind of forget set
-- $method = "none": the one method; none is the untouched model
-- $other = "retrain": the other; retrain is the reference
-- $part = null: forget, retain or test; all of them when null

SELECT subject, forget_set, a.part, a.answer, b.answer AS other_answer, count(*) AS num,
    count(*) FILTER (a.answer = a.label) AS num_right, count(*) FILTER (b.answer = b.label) AS other_right,
    avg(b.signal - a.signal) AS signal_change
FROM scores.leaderboard_examples a
JOIN scores.leaderboard_examples b USING (subject, forget_set, example_id)
WHERE a.method = $method AND b.method = $other AND forget_set = $forget_set
    AND ($subject::VARCHAR IS NULL OR subject = $subject) AND ($part::VARCHAR IS NULL OR a.part = $part)
GROUP BY subject, forget_set, a.part, a.answer, b.answer
ORDER BY subject, forget_set, a.part, num DESC, a.answer, b.answer
