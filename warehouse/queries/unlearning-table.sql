-- Every unlearning method against retraining: mean over seeds, and the standard deviation between seeds where there
-- are at least two. avg_gap is the distance to retraining in points, lower is better;
-- its bounds are the outermost of the seeds'. failed: runs that diverged, or gave back no model of the plan.
-- $subject = null: which subject; all of them when null
-- $split = null: which split or request; all of them when null

SELECT subject, split, method, count(*) AS seeds, count(*) FILTER (status <> 'ok') AS failed,
    avg(avg_gap) AS avg_gap, stddev_samp(avg_gap) AS avg_gap_sd, min(avg_gap_lo) AS avg_gap_lo, max(avg_gap_hi) AS avg_gap_hi,
    avg(ua) AS ua, stddev_samp(ua) AS ua_sd, avg(ra) AS ra, stddev_samp(ra) AS ra_sd, avg(ta) AS ta, stddev_samp(ta) AS ta_sd,
    avg(mia_efficacy) AS mia_efficacy, stddev_samp(mia_efficacy) AS mia_efficacy_sd, avg(rte) AS rte_min
FROM unlearning.wide
WHERE ($subject::VARCHAR IS NULL OR subject = $subject) AND ($split::VARCHAR IS NULL OR split = $split)
GROUP BY subject, split, method
ORDER BY subject, split, method <> 'retrain', avg(avg_gap) NULLS LAST, method
