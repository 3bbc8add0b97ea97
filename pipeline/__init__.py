"""Batch jobs that turn frames into tables: data sets, teachers, stages, and what runs them."""
