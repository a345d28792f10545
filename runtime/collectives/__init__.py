"""Collectives: sums, gathers and broadcasts between processes, with the same bytes for any number of them."""
