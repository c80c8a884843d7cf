-- The verdicts with the sentence that explains each: those that count first, the worst first.
-- $subject = null: which subject; all of them when null
-- $verdict = null: pass, fail, inconclusive or broken; all of them when null

SELECT subject, about, method, what, verdict, judged, value, low, high, threshold, sentence, stage
FROM audits.findings
WHERE ($subject::VARCHAR IS NULL OR subject = $subject) AND ($verdict::VARCHAR IS NULL OR verdict = $verdict)
ORDER BY judged DESC, list_position(['fail', 'broken', 'inconclusive', 'pass'], verdict), subject, about, what, stage
