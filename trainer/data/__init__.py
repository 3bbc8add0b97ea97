"""Packed tables as batches: which frames, what a sample is, and who loads them."""
