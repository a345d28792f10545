"""Hyperparameter search: what is tried, which trials go on, and the runs that train and score them."""
