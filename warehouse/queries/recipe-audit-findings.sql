-- What every audit found of every subject, beside the recipe that trained its model: the rows behind the report's table of recipes
-- against audits. A subject without findings has one row without a verdict.
-- $subject = null: which subject; all of them when null

SELECT c.recipe, c.subject, f.about, f.method, f.what, f.kind, f.verdict, f.judged, f.value, f.low, f.high, f.threshold, f.sentence, f.stage
FROM (SELECT DISTINCT subject, recipe FROM models.checkpoints WHERE role = 'target') c
LEFT JOIN audits.findings f ON f.subject = c.subject AND f.stage = c.subject || '/audits/findings'
WHERE $subject::VARCHAR IS NULL OR c.subject = $subject
ORDER BY c.recipe, c.subject, f.about, f.what
