"""Audits: what a trained, or an unlearned, model tells an attacker; one attack or audit a file."""
