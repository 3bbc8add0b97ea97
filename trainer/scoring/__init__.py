"""Labels against the truth."""
