-- The examples with the highest value of a score, and what they are labelled.
-- $score = "el2n": which score; its own meaning of high is in higher_means
-- $subject = null: which subject; all of them when null
-- $limit = 20: rows

SELECT s.subject, s.example_id, e.label_name, s.value, s.stderr, s.higher_means,
    100 * percent_rank() OVER (PARTITION BY s.subject ORDER BY s.value) AS percentile
FROM scores.latest s
LEFT JOIN data.examples e USING (subject, example_id)
WHERE s.score = $score AND ($subject::VARCHAR IS NULL OR s.subject = $subject)
ORDER BY s.value DESC, s.subject, s.example_id
LIMIT $limit
