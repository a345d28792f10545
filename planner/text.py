"""Text: sizes and counts as people read them."""

from __future__ import annotations


def human_bytes(size: float) -> str:
    """Write a number of bytes in binary units.

    Example:
        >>> human_bytes(0), human_bytes(1536), human_bytes(3 << 30)
        ('0 B', '1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def human_rows(rows: float) -> str:
    """Write a number of rows with separators.

    Example:
        >>> human_rows(1234567.2), human_rows(1)
        ('1,234,567 rows', '1 row')
    """
    count = round(rows)
    return f"{count:,} row{'s' * (count != 1)}"
