"""The tables: what each stage makes, and each reader finds."""
