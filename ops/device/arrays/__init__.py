"""Functions of arrays on a device: each a CUDA kernel or a few, with a twin in NumPy that adds in the same order."""
