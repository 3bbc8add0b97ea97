"""Readers of data sets: their logs as frames."""
