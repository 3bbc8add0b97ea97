"""JSON documents that programs leave for each other: one frozen dataclass per document."""
