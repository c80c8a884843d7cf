-- A score by step: how it is distributed over the examples of each step of a stream, of each domain, client or group. The
-- columns of a subject are in data.columns.
-- $score = "memorization": which score; its own meaning of high is in higher_means
-- $column = "step": which column of the examples
-- $subject = null: which subject; all of them when null

SELECT s.subject, c.name AS column_name, c.value AS step, e.split, count(*) AS num_examples, avg(s.value) AS mean,
    stddev_samp(s.value) / sqrt(count(*)) AS stderr, median(s.value) AS median, quantile_cont(s.value, 0.95) AS p95, s.higher_means
FROM scores.latest s
JOIN data.columns c USING (subject, example_id)
JOIN data.examples e USING (subject, example_id)
WHERE s.score = $score AND c.name = $column AND s.value IS NOT NULL AND ($subject::VARCHAR IS NULL OR s.subject = $subject)
GROUP BY s.subject, c.name, c.value, e.split, s.higher_means
ORDER BY s.subject, try_cast(c.value AS BIGINT), c.value, e.split DESC
