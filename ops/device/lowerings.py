"""All device operators there are: importing this registers what each kernel of the host becomes on a device."""

from __future__ import annotations

from . import map_batches

__all__ = ["map_batches"]
