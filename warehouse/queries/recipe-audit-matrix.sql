-- Recipes against audits: what each attack finds on the audited model of every subject, beside the recipe that trained it and how well
-- that generalises. Subjects on the same data that differ in their recipe say whether a replay buffer leaks where distillation does not.
-- $attack = null: which attack; all of them when null
-- $subject = null: which subject; all of them when null

SELECT c.recipe, a.attack, a.subject, a.auc, a.auc_lo, a.auc_hi, a.fpr_cap, a.tpr, a.tpr_lo, a.tpr_hi, a.n_pos, a.n_neg,
    c.train_quality, c.test_quality
FROM audits.attack_reports a
JOIN models.checkpoints c ON c.subject = a.subject AND c.role = 'target' AND c.seed = a.seed
WHERE a.audited = 'target' AND ($attack::VARCHAR IS NULL OR a.attack = $attack)
    AND ($subject::VARCHAR IS NULL OR a.subject = $subject)
QUALIFY row_number() OVER (PARTITION BY a.subject, a.attack, a.seed ORDER BY NOT a.reliable, a.fpr_cap) = 1
ORDER BY a.attack, c.recipe, a.subject
