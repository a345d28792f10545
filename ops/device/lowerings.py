"""All device operators there are: importing this registers what each kernel of the host becomes on a device."""

from __future__ import annotations

from .operators import aggregate, distinct, filter, join, map_batches, project, sort, top_k, transform

__all__ = ["aggregate", "distinct", "filter", "join", "map_batches", "project", "sort", "top_k", "transform"]
