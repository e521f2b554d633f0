"""Entries of a ledger that has moved on to another forward pass."""

from __future__ import annotations

import pytest

from graphlossy import Ledger
from graphlossy.core.ledger import Record


class Owner:
    pass


def record(module: str) -> Record:
    return Record(module, "linear", (1000, 64), "float32", 256_000, 17_000, 2, "unbiased", "quantized")


def test_an_entry_of_an_earlier_pass_leaves_the_next_one_alone() -> None:
    ledger, owner, other = Ledger(), Owner(), Owner()
    first = ledger.add(record("a"), owner)
    assert first.record.module == "a"
    ledger.clear()
    ledger.add(record("b"), other)
    with pytest.raises(RuntimeError, match="was cleared"):
        _ = first.record
    first.resize(5000, 1)
    assert ledger.records == [record("b")] and ledger.live_bytes == 17_000 + 5000
    del owner
    assert ledger.live_bytes == 17_000
