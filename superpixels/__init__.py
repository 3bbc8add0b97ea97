"""Superpixels and superpoints as pure functions of arrays; knows no data set, model or file."""
