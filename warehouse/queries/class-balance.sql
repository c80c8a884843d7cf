-- Number and share of each class in the train and test splits.
-- $subject = null: which subject; all of them when null

SELECT subject, split, label, label_name, count(*) AS num_examples,
    count(*) / sum(count(*)) OVER (PARTITION BY subject, split) AS share
FROM data.examples
WHERE label IS NOT NULL AND ($subject::VARCHAR IS NULL OR subject = $subject)
GROUP BY subject, split, label, label_name
ORDER BY subject, split DESC, label
