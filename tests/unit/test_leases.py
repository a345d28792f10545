"""What a worker keeps on its device for others: until they say so, die, are late, or their run is over."""

from __future__ import annotations

import pytest

from headwater.runtime.workers.leases import LeaseBook


@pytest.fixture
def book() -> LeaseBook:
    """Leases of two borrowers and two runs; two of them keep the same block."""
    book = LeaseBook(10.0, 100)
    assert book.grant("a", "r1", "p1", "tables of a", {"x": 40}, now=0.0)
    assert book.grant("b", "r1", "p2", "tables of b", {"x": 40, "y": 10}, now=4.0)
    assert book.grant("c", "r2", "p2", "tables of c", {"z": 50}, now=8.0)
    return book


def left(book: LeaseBook) -> list[str]:
    return [token for token in "abc" if book.end(token)]


def test_a_lease_ends_once(book):
    assert (len(book), book.bytes, book.borrowers()) == (3, 100, {"p1", "p2"})
    assert "b" in book
    assert book.end("b")
    assert "b" not in book
    assert not book.end("b")
    assert not book.end("unknown")
    assert (len(book), book.bytes) == (2, 90)
    assert left(book) == ["a", "c"]
    assert (len(book), book.bytes) == (0, 0)


def test_what_is_kept_is_bounded(book):
    assert not book.grant("d", "r1", "p1", "tables", {"w": 1}, now=9.0)
    assert book.grant("d", "r1", "p1", "tables", {"x": 40, "z": 50}, now=9.0)
    assert book.grant("e", "r1", "p1", "nothing", {}, now=9.0)
    assert book.end("a")
    assert book.end("b")
    assert book.bytes == 90  # the first is kept by the fourth, too
    assert book.grant("f", "r1", "p1", "tables", {"w": 10}, now=9.0)
    assert not book.grant("g", "r1", "p1", "tables", {"v": 1}, now=9.0)
    assert book.end("d")
    assert book.bytes == 60


def test_a_token_names_one_lease(book):
    assert book.end("c")
    assert not book.grant("a", "r3", "p3", "others", {"w": 1}, now=9.0)
    assert book.bytes == 50


@pytest.mark.parametrize(
    ("now", "ended", "rest"), [(9.9, 0, "abc"), (10.0, 1, "bc"), (14.5, 2, "c"), (99, 3, "")]
)
def test_late_ones_end(book, now, ended, rest):
    assert book.end_late(now) == ended
    assert left(book) == list(rest)


def test_those_of_a_run_end_with_it(book):
    assert book.end_of_run("r1") == 2
    assert book.end_of_run("r1") == 0
    assert (left(book), book.borrowers()) == (["c"], set())


def test_those_of_a_process_end_with_it(book):
    assert book.end_of_borrower("p2") == 2
    assert book.end_of_borrower("nobody") == 0
    assert left(book) == ["a"]
