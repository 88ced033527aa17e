"""Studies: which question is asked and what may vary, as data."""
