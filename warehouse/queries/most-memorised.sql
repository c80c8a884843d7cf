-- The examples that the model predicts only when it was trained on them, most certain first: sorted by the lower end
-- of the memorization score's interval. is_called: that end is above 0.25, so that it is not chance among few models.
-- $subject = null: which subject; all of them when null
-- $z = 1.96: standard errors below the value; 1.96 is the lower end of a 95 % interval
-- $limit = 20: rows

SELECT s.subject, s.example_id, e.label_name, s.value AS memorization, s.stderr,
    s.value - $z::DOUBLE * coalesce(s.stderr, 0) AS at_least, s.is_called
FROM scores.latest s
LEFT JOIN data.examples e USING (subject, example_id)
WHERE s.score = 'memorization' AND ($subject::VARCHAR IS NULL OR s.subject = $subject)
ORDER BY at_least DESC, s.subject, s.example_id
LIMIT $limit
