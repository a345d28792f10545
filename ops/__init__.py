"""Operators and what they do to one partition: node, schema, kernels (Arrow, NumPy, CuPy)."""
