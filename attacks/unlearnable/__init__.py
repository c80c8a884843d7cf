"""What undoes the protection of an unlearnable data set: defences, and the audit that takes the best of them."""
