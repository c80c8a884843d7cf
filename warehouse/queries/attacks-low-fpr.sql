-- How many members each attack finds while it accuses few others, with intervals: for every audited model (seed) and attack
-- the lowest false-positive rate that the number of non-members can carry (reliable).
-- $subject = null: which subject; all of them when null
-- $audited = null: which model, target or <split>/<method>; all of them when null

SELECT subject, audited, attack, seed, n_pos, n_neg, auc, auc_lo, auc_hi, fpr_cap, tpr, tpr_lo, tpr_hi, fpr, fpr_lo, fpr_hi
FROM audits.attack_reports
WHERE reliable AND ($subject::VARCHAR IS NULL OR subject = $subject) AND ($audited::VARCHAR IS NULL OR audited = $audited)
QUALIFY fpr_cap = min(fpr_cap) OVER (PARTITION BY subject, audited, attack, seed)
ORDER BY subject, audited, tpr DESC, attack, seed
