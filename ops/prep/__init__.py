"""Preparation steps for training data: each a fit (an aggregation) and a transform (narrow)."""
