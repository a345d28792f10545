"""Devices of worker processes: which process has which GPU, and what it tells of it."""
