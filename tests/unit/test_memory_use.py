"""Memory that counts is anonymous: mapped blocks don't look like a leak."""

import mmap
from pathlib import Path

import numpy as np
import psutil
import pytest

from headwater.runtime.workers.memory import PeakMemory, anonymous_bytes

SIZE = 64 << 20


def test_the_peak_is_seen_after_it_has_passed() -> None:
    with PeakMemory(seconds=0.001) as memory:
        held: list[np.ndarray] = []
        while memory.growth < SIZE // 2:  # one would do, if what was freed before didn't go back meanwhile
            assert len(held) < 40
            held.append(np.ones(SIZE, dtype=np.uint8))
        del held
    assert memory.growth > SIZE // 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_mapped_pages_are_resident_but_not_anonymous(tmp_path: Path) -> None:
    path = tmp_path / "block"
    path.write_bytes(b"x" * SIZE)
    anonymous, resident = anonymous_bytes(), psutil.Process().memory_info().rss
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        assert view.all()
        assert psutil.Process().memory_info().rss - resident > SIZE // 2
        assert anonymous_bytes() - anonymous < SIZE // 2
        del view
