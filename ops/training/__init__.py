"""Training: programs (iterative algorithms as pure functions), what they run on, and the nodes around them."""
