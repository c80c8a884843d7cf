-- Does a forget set hold the examples that the model memorised? Their number in it, the number expected by chance,
-- and the ratio of the two. Forgetting what was never memorised proves little.
-- $subject = null: which subject; all of them when null
-- $split = null: which forget/retain split or request; all of them when null
-- $score = "memorization": which score
-- $at_least = 0.25: an example counts as high when the lower end of its value's interval is here or above
-- $z = 1.96: standard errors from the value to the lower end; 0 goes by the value alone

WITH judged AS (
    SELECT m.subject, m.dataset_id AS split, m.role = 'forget' AS forgotten, s.value - $z::DOUBLE * coalesce(s.stderr, 0) >= $at_least::DOUBLE AS high
    FROM curation.members m
    JOIN scores.latest s USING (subject, example_id)
    WHERE s.score = $score AND m.role IN ('forget', 'retain')
        AND ($subject::VARCHAR IS NULL OR m.subject = $subject)
        AND ($split::VARCHAR IS NULL OR m.dataset_id = $split)
)
SELECT subject, split, count(*) FILTER (forgotten) AS forget_set, count(*) FILTER (high) AS high_in_all,
    count(*) FILTER (forgotten AND high) AS high_in_it,
    count(*) FILTER (forgotten) * count(*) FILTER (high) / count(*) AS expected_by_chance,
    high_in_it / nullif(expected_by_chance, 0) AS ratio
FROM judged
GROUP BY subject, split
ORDER BY subject, split
