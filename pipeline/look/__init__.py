"""Pages, pictures, recordings and answers for people."""
