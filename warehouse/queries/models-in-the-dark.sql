-- Open forget requests whose examples are still in something: the assets that were made from at least one example of
-- the request's scope, and how many of them.
-- $subject = null: which subject; all of them when null

SELECT m.subject, r.request_id, r.state, l.asset, count(*) AS num_examples
FROM requests.register r
JOIN curation.members m ON m.subject = r.subject AND m.dataset_id = r.request_id AND m.role = 'forget'
JOIN lineage.sets s ON s.subject = m.subject AND m.example_id BETWEEN s.first_id AND s.last_id
JOIN lineage.members l ON l.subject = s.subject AND l.set_id = s.set_id
WHERE r.state NOT IN ('closed', 'refused') AND ($subject::VARCHAR IS NULL OR r.subject = $subject)
GROUP BY m.subject, r.request_id, r.state, l.asset
ORDER BY m.subject, r.request_id, num_examples DESC, l.asset
