"""What runs beside audits: anchors of the ledger, alerts, drift, upkeep, events for other systems."""
