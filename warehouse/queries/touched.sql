-- What one example touched: its row and columns, its scores, its place in curated sets, the attacks that saw it, and every asset
-- made from it, directly or through another. `palimpsest trace` shows the same with whole rows.
-- $example_id = 0: the example
-- $subject = null: which subject; all of them when null

WITH RECURSIVE reached(subject, asset, how) AS (
    SELECT DISTINCT m.subject, m.asset, 'made from it' FROM lineage.members m JOIN lineage.sets s USING (subject, set_id)
    WHERE $example_id::BIGINT BETWEEN s.first_id AND s.last_id AND ($subject::VARCHAR IS NULL OR m.subject = $subject)
    UNION
    SELECT e.subject, e.child, 'made from what was made from it'
    FROM reached r JOIN lineage.edges e ON e.subject = r.subject AND e.parent = r.asset
)
SELECT subject, 'data.examples' AS place, split || ' split' AS what, label_name AS detail FROM data.examples
WHERE example_id = $example_id AND ($subject::VARCHAR IS NULL OR subject = $subject)
UNION ALL
SELECT subject, 'data.columns', name, value FROM data.columns
WHERE example_id = $example_id AND ($subject::VARCHAR IS NULL OR subject = $subject)
UNION ALL
SELECT subject, 'scores.' || score, 'score', value::VARCHAR FROM scores.latest
WHERE example_id = $example_id AND ($subject::VARCHAR IS NULL OR subject = $subject)
UNION ALL
SELECT subject, 'curation.members', dataset_id || ': ' || role, reason FROM curation.members
WHERE example_id = $example_id AND ($subject::VARCHAR IS NULL OR subject = $subject)
UNION ALL
SELECT subject, 'audits.attack_scores', audited || ': ' || attack, score::VARCHAR FROM audits.attack_scores
WHERE example_id = $example_id AND ($subject::VARCHAR IS NULL OR subject = $subject)
UNION ALL
SELECT subject, 'lineage', asset, min(how) FROM reached GROUP BY subject, asset
ORDER BY subject, place, what
