"""Datasets: hashed blocks, manifest, reading, merging, Minari, LeRobot."""
