"""Logical plan to rules to physical stages: sizes, placement, explain. Pure; no I/O but what sources do."""
