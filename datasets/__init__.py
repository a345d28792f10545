"""Sources and sinks over fsspec, and deterministic synthetic data."""
