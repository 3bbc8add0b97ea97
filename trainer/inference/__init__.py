"""From a trained network to labels, files and answers."""
