-- The last entries of the ledger, newest first, and whether each still follows from the one before it.
-- $kind = null: which kind of entry (replace, append, stage, table, ...); all of them when null
-- $limit = 20: rows

WITH chained AS (
    SELECT *, prev_hash = lag(hash, 1, repeat('0', 64)) OVER (ORDER BY seq) AND seq = 1 + lag(seq, 1, 0) OVER (ORDER BY seq) AS follows
    FROM ledger.entries
)
SELECT seq, kind, json_extract_string(body, '$.at') AS "at",
    coalesce(json_extract_string(body, '$.asset'), json_extract_string(body, '$.table')) AS about,
    json_extract_string(body, '$.subject') AS subject, follows, hash
FROM chained
WHERE $kind::VARCHAR IS NULL OR kind = $kind
ORDER BY seq DESC
LIMIT $limit
