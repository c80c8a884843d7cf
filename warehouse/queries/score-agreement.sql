-- How far two scores tell the same story: rank correlation (Spearman, ties at their mean rank), and which share of the
-- one's top examples is also among the other's.
-- $subject = null: which subject; all of them when null
-- $top = 0.05: share of the examples that counts as the top

WITH places AS (
    SELECT subject, example_id, score,
        rank() OVER by_value + (count(*) OVER (PARTITION BY subject, score, value) - 1) / 2.0 AS place,
        row_number() OVER (PARTITION BY subject, score ORDER BY value DESC, example_id)
            <= ceil($top::DOUBLE * count(*) OVER (PARTITION BY subject, score)) AS is_top
    FROM scores.latest
    WHERE value IS NOT NULL AND ($subject::VARCHAR IS NULL OR subject = $subject)
    WINDOW by_value AS (PARTITION BY subject, score ORDER BY value)
)
SELECT a.subject, a.score, b.score AS other, count(*) AS num_examples, corr(a.place, b.place) AS rank_correlation,
    count(*) FILTER (a.is_top AND b.is_top) / nullif(count(*) FILTER (a.is_top), 0) AS top_overlap
FROM places a
JOIN places b ON a.subject = b.subject AND a.example_id = b.example_id AND a.score < b.score
GROUP BY a.subject, a.score, b.score
ORDER BY rank_correlation DESC, a.subject, a.score, other
