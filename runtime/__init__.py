"""The only part that knows Dask: scheduler, executors, blocks, exchange."""
