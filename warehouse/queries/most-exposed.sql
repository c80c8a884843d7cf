-- The members whose membership shows most, over all attacks: an attack's p is the share of non-members that look at
-- least as much like a member as this example does, (1 + those) / (1 + all). Sorted by the mean of log10 p.
-- $subject = null: which subject; all of them when null
-- $audited = "target": which model, target or <split>/<method>
-- $limit = 20: rows

WITH scored AS (
    SELECT subject, attack, seed, example_id, is_member,
        count(*) FILTER (NOT is_member) OVER (PARTITION BY subject, attack, seed ORDER BY score DESC) AS above,
        count(*) FILTER (NOT is_member) OVER (PARTITION BY subject, attack, seed) AS others
    FROM audits.attack_scores
    WHERE score IS NOT NULL AND audited = $audited AND ($subject::VARCHAR IS NULL OR subject = $subject)
)
SELECT s.subject, s.example_id, e.label_name, count(DISTINCT attack) AS num_attacks, avg(log10((1 + above) / (1 + others))) AS mean_log10_p,
    min((1 + above) / (1 + others)) AS least_p, arg_min(attack, (1 + above) / (1 + others)) AS strongest
FROM scored s
LEFT JOIN data.examples e USING (subject, example_id)
WHERE is_member
GROUP BY s.subject, s.example_id, e.label_name
ORDER BY mean_log10_p, s.subject, s.example_id
LIMIT $limit
