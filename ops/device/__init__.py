"""What runs on a GPU: columns, tables and kernels there, each kernel with its twin in NumPy."""
