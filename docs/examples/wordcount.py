"""Shakespeare's words: how many there are, and which are the most frequent.

headwater run docs/examples/wordcount.py --param data=../shared/data/tinyshakespeare.txt --param top=20
"""

import os

import pyarrow as pa
import pyarrow.compute as pc

import headwater as hw

DATA = os.environ.get("HEADWATER_DATA", "../shared/data") + "/tinyshakespeare.txt"


def words_of(lines: pa.Table) -> pa.Table:
    """Cut lines into lower-case words: a batch in, a batch with more rows out."""
    words = pc.list_flatten(pc.split_pattern_regex(pc.utf8_lower(lines["text"]), pattern="[^a-z']+"))
    return pa.table({"word": words.filter(pc.not_equal(words, ""))})


@hw.pipeline
def wordcount(data: str = DATA, top: int = 10):
    """Give the number of words and of different words, and the most frequent ones."""
    words = hw.read_text(data).map_batches(words_of, format="arrow", schema={"word": pa.string()})
    counts = words.group_by("word").agg(n=hw.count())
    return {
        "totals": counts.agg(words=hw.sum("n"), different=hw.count()),
        "top": counts.sort("n", "word", descending=[True, False]).limit(top),
    }
