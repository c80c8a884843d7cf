-- The examples that the scores disagree about most: top of one, bottom of another. Often mislabelled or ambiguous.
-- Ranks are shares of the subject's examples (0 lowest, 1 highest); spread is highest minus lowest rank.
-- $subject = null: which subject; all of them when null
-- $limit = 20: rows

SELECT a.subject, a.example_id, e.label_name, a.spread, a.mean_place AS mean_rank, a.highest, a.lowest
FROM scores.agreement a
LEFT JOIN data.examples e USING (subject, example_id)
WHERE a.num_scores > 1 AND ($subject::VARCHAR IS NULL OR a.subject = $subject)
ORDER BY spread DESC, a.subject, a.example_id
LIMIT $limit
