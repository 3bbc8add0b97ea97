"""Logs of other programs as scenes of data set `folder`: by reference where their files can be read as they are."""
