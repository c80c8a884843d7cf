-- Groups of examples with exactly the same values: the same picture under two labels, or in train and test at once.
-- $subject = null: which subject; all of them when null
-- $limit = 50: groups

SELECT subject, content_hash, count(*) AS copies, count(DISTINCT label) > 1 AS labels_differ,
    count(DISTINCT split) > 1 AS in_train_and_test, list(DISTINCT label_name ORDER BY label_name) AS labels,
    list(example_id ORDER BY example_id)[:10] AS first_ids
FROM data.examples
WHERE $subject::VARCHAR IS NULL OR subject = $subject
GROUP BY subject, content_hash
HAVING count(*) > 1
ORDER BY labels_differ DESC, in_train_and_test DESC, copies DESC, subject, content_hash
LIMIT $limit
