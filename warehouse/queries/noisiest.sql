-- The examples that the scores disagree about most: top of one, bottom of another. Often mislabelled or ambiguous.
-- Ranks are shares of the subject's examples (0 lowest, 1 highest); spread is highest minus lowest rank.
-- $subject = null: which subject; all of them when null
-- $limit = 20: rows

WITH ranked AS (
    SELECT subject, example_id, score, percent_rank() OVER (PARTITION BY subject, score ORDER BY value) AS place
    FROM scores.latest
    WHERE value IS NOT NULL AND ($subject::VARCHAR IS NULL OR subject = $subject)
)
SELECT r.subject, r.example_id, e.label_name, max(place) - min(place) AS spread, avg(place) AS mean_rank,
    arg_max(score, place) AS highest, arg_min(score, place) AS lowest
FROM ranked r
LEFT JOIN data.examples e USING (subject, example_id)
GROUP BY r.subject, r.example_id, e.label_name
HAVING count(*) > 1
ORDER BY spread DESC, r.subject, r.example_id
LIMIT $limit
