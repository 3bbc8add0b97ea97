"""Where a teacher's towers, weights and sentences come from."""
