-- The trained models: seed, epochs, size, fit, generalisation, what is kept of the data besides weights, time, and their file.
-- $subject = null: which subject; all of them when null
-- $role = null: target, early or unlearned/<split>/<method>; all of them when null

SELECT c.subject, c.role, c.seed, c.epochs, c.num_parameters, c.train_loss, c.train_quality, c.test_quality,
    c.train_quality - c.test_quality AS gap, c.retains, c.wall_s, a.size_bytes, a.location
FROM models.checkpoints c
LEFT JOIN lineage.artifacts a USING (subject, artifact_id)
WHERE ($subject::VARCHAR IS NULL OR c.subject = $subject) AND ($role::VARCHAR IS NULL OR c.role = $role)
ORDER BY c.subject, c.role, c.seed
