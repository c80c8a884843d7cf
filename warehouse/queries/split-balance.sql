-- What each class gives to the roles of a curated data set: how many of its examples, and which share of the class.
-- $subject = null: which subject; all of them when null
-- $dataset = null: which split or curated set; all of them when null

SELECT m.subject, m.dataset_id, m.role, e.label, e.label_name, count(*) AS num_examples,
    count(*) / sum(count(*)) OVER (PARTITION BY m.subject, m.dataset_id, e.label) AS share_of_class
FROM curation.members m
JOIN data.examples e USING (subject, example_id)
WHERE ($subject::VARCHAR IS NULL OR m.subject = $subject) AND ($dataset::VARCHAR IS NULL OR m.dataset_id = $dataset)
GROUP BY m.subject, m.dataset_id, m.role, e.label, e.label_name
ORDER BY m.subject, m.dataset_id, m.role, e.label
