-- The verdicts with the sentence that explains each, worst first.
-- $subject = null: which subject; all of them when null
-- $verdict = null: pass, fail, inconclusive or broken; all of them when null

SELECT subject, audited, what, verdict, value, low, high, threshold, sentence
FROM audits.findings
WHERE ($subject::VARCHAR IS NULL OR subject = $subject) AND ($verdict::VARCHAR IS NULL OR verdict = $verdict)
ORDER BY list_position(['fail', 'broken', 'inconclusive', 'pass'], verdict), subject, audited, what
