"""Files of other programs, written from tables."""
