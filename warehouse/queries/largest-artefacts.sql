-- What fills the disk: stored artefacts by size, and which share of all each is.
-- $subject = null: which subject; all of them when null
-- $limit = 20: rows

SELECT subject, artifact_id, asset, kind, size_bytes, size_bytes / nullif(sum(size_bytes) OVER (), 0) AS share, location, created_at
FROM lineage.artifacts
WHERE size_bytes > 0 AND ($subject::VARCHAR IS NULL OR subject = $subject)
ORDER BY size_bytes DESC, subject, artifact_id
LIMIT $limit
