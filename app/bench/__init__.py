"""Measurements: how fast, how large, how close to what the machine can do. Ratios come from turns in one process."""
