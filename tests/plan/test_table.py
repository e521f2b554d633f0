"""The table of docs/plan.md shows what the benchmarks measured."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_measured_columns_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import plan_table

    memory = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
    text = (ROOT / "docs" / "plan.md").read_text()
    assert plan_table.is_current(text, memory), "run python -m benchmarks.readme"
    for column in ("held_bytes", "peak_tensor_bytes"):
        other = copy.deepcopy(memory)
        other["summary"]["gcn"]["compress-2bit"][column] += 10**6
        assert not plan_table.is_current(text, other)
    assert not plan_table.is_current(text.replace(plan_table.BEGIN, ""), memory)
