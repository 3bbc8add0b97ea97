"""Training and evaluation on packed tables: voxels in, one sparse network, objectives as plain functions."""
