"""Files of weights: ours, and the reference's."""
