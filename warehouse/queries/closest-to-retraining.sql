-- Which removal method is closest to retraining on the worst-case forget set, and at what cost: by the leaderboard,
-- closest first. Methods that share a letter of groups cannot be told apart; gap_ratio 1 is as good as doing nothing,
-- and no gap below gap_floor means anything. rte is the time of a run over that of retraining; pareto: nothing is both
-- closer and quicker. klom_excess is how far margins of forgotten examples are from those of retrained models.
-- $subject = null: which subject; all of them when null
-- $forget_set = "worst_case": which kind of forget set, as random, class, owner, influence

SELECT subject, forget_set, rank, method, groups, tuned, avg_gap, avg_gap_low, avg_gap_high, gap_floor, gap_ratio,
    beats_none, excess, klom_forget - klom_forget_floor AS klom_excess, wall_s, rte, pareto, num_runs, status, why
FROM scores.leaderboard
WHERE forget_set = $forget_set AND method <> 'retrain' AND status <> 'not_applicable'
    AND ($subject::VARCHAR IS NULL OR subject = $subject)
ORDER BY subject, rank NULLS LAST, method
