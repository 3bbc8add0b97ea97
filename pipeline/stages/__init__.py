"""The stages: each computes one table, frame by frame."""
