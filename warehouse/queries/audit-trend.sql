-- How a table came to be what it is, run by run, from the ledger: when its content changed, by which run and
-- configuration, and how many rows it had. The default shows the audits' findings over time.
-- $subject = null: which subject; all of them when null
-- $table = "audits.findings": which table
-- $limit = 50: rows, newest first

WITH written AS (
    SELECT seq, json_extract_string(body, '$.at') AS "at", json_extract_string(body, '$.subject') AS subject,
        json_extract_string(body, '$.run_id') AS run_id, json_extract_string(body, '$.partition') AS part,
        json_extract_string(body, '$.rows')::BIGINT AS num_rows,
        json_extract_string(body, '$.config_digest') AS config_digest, json_extract_string(body, '$.digest') AS digest
    FROM ledger.entries
    WHERE kind IN ('replace', 'append') AND json_extract_string(body, '$.table') = $table
)
SELECT seq, "at", subject, run_id, part, num_rows, num_rows - lag(num_rows) OVER past AS change,
    config_digest IS DISTINCT FROM lag(config_digest) OVER past AS new_configuration, digest
FROM written
WHERE $subject::VARCHAR IS NULL OR subject = $subject
WINDOW past AS (PARTITION BY subject, part ORDER BY seq)
ORDER BY seq DESC
LIMIT $limit
