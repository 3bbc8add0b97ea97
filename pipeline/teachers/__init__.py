"""2D open-vocabulary teachers: they name segments of images."""
