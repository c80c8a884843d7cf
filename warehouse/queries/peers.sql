-- Do training and test split differ by themselves? What each attack finds between them on reference models that saw neither (0.5 =
-- nothing: unseen examples are peers of members), beside what it finds on the audited model.
-- $subject = null: which subject; all of them when null

SELECT u.subject, u.attack, u.auc AS unseen_auc, u.auc_lo AS unseen_lo, u.auc_hi AS unseen_hi, u.auc_lo > 0.5 OR u.auc_hi < 0.5 AS differ,
    u.p_value AS stands_out_p, t.auc AS target_auc, t.auc_lo AS target_lo, t.auc_hi AS target_hi, u.num_models, u.n_train, u.n_test
FROM audits.unseen u
LEFT JOIN (SELECT DISTINCT subject, attack, auc, auc_lo, auc_hi FROM audits.attack_reports WHERE audited = 'target') t
    USING (subject, attack)
WHERE $subject::VARCHAR IS NULL OR u.subject = $subject
ORDER BY u.subject, abs(u.auc - 0.5) DESC, u.attack
