"""Operators on a device: what they do to the tables of a partition, and which of the host's they stand for."""
