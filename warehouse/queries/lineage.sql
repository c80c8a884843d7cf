-- What an asset was made from and what was made from it, with the number of steps between.
-- $asset = "digits/reports/audit": the asset, its key joined by /

WITH RECURSIVE up(asset, steps) AS (
    SELECT $asset, 0
    UNION
    SELECT e.parent, steps + 1 FROM up JOIN lineage.edges e ON e.child = up.asset WHERE steps < 100
), down(asset, steps) AS (
    SELECT $asset, 0
    UNION
    SELECT e.child, steps + 1 FROM down JOIN lineage.edges e ON e.parent = down.asset WHERE steps < 100
)
SELECT 'made from' AS relation, asset, min(steps) AS steps FROM up WHERE steps > 0 GROUP BY asset
UNION ALL
SELECT 'used by', asset, min(steps) FROM down WHERE steps > 0 GROUP BY asset
ORDER BY relation, steps, asset
