-- The examples that the scores disagree about most: top of one, bottom of another. Often mislabelled or ambiguous.
-- Compared are the scores of which a high one is a reason for doubt (noisy, hard, memorised); places are shares of the subject's
-- examples (0 lowest, 1 highest), spread is the highest minus the lowest.
-- $subject = null: which subject; all of them when null
-- $limit = 20: rows

SELECT a.subject, a.example_id, e.label_name, a.spread, a.mean_place, a.highest, a.lowest
FROM scores.agreement a
LEFT JOIN data.examples e USING (subject, example_id)
WHERE a.spread > 0 AND ($subject::VARCHAR IS NULL OR a.subject = $subject)
ORDER BY spread DESC, a.subject, a.example_id
LIMIT $limit
