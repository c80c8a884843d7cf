-- Every unlearning method against retraining: mean over seeds, and the standard deviation between seeds where there
-- are at least two. avg_gap is the distance to retraining in points; lower is better.
-- $subject = null: which subject; all of them when null
-- $split = null: which split or request; all of them when null

SELECT subject, split, method, count(*) AS seeds, count(*) FILTER (status = 'diverged') AS diverged,
    avg(avg_gap) AS avg_gap, stddev_samp(avg_gap) AS avg_gap_sd,
    avg(ua) AS ua, stddev_samp(ua) AS ua_sd, avg(ra) AS ra, stddev_samp(ra) AS ra_sd, avg(ta) AS ta, stddev_samp(ta) AS ta_sd,
    avg(mia_efficacy) AS mia_efficacy, stddev_samp(mia_efficacy) AS mia_efficacy_sd, avg(rte) AS rte_min
FROM unlearning.runs
WHERE ($subject::VARCHAR IS NULL OR subject = $subject) AND ($split::VARCHAR IS NULL OR split = $split)
GROUP BY subject, split, method
ORDER BY subject, split, method <> 'retrain', avg(avg_gap) NULLS LAST, method
