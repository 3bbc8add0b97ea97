"""A synthetic city, written as a folder in nuScenes layout, with the true class of every point and every pixel."""
