-- The examples that scores place in their top 5%, those of most scores first, with the scores and what each means by it: mislabelled, rare,
-- memorised or duplicated. places are shares of the subject's examples below the example (0 lowest, 1 highest).
-- $subject = null: which subject; all of them when null
-- $at_least = 1: in the top of so many scores
-- $limit = 50: rows

SELECT a.subject, a.example_id, e.label_name, len(a.high) AS num_high, a.num_scores, a.high, a.says, a.mean_place, a.spread
FROM scores.agreement a
LEFT JOIN data.examples e USING (subject, example_id)
WHERE len(a.high) >= $at_least AND ($subject::VARCHAR IS NULL OR a.subject = $subject)
ORDER BY num_high DESC, a.mean_place DESC, a.subject, a.example_id
LIMIT $limit
