"""Which units stay: from scores to masks, and the distance between masks."""
