"""``python -m graphlossy``: its report, its exit code and its two ways of printing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from graphlossy import __main__ as program
from graphlossy import _diagnostics
from graphlossy.core._schemas import OPS


def test_every_operator_equals_its_reference(device: torch.device) -> None:
    counts = _diagnostics.self_test(device)
    assert set(counts) == set(OPS)
    assert all(count["cases"] > 0 and count["differ"] == 0 for count in counts.values()), counts


def test_every_operator_of_the_core_is_tested() -> None:
    assert {case.op for case in _diagnostics.cases()} == set(OPS)


@pytest.mark.parametrize("op", sorted(OPS))
def test_one_wrong_bit_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = getattr(_diagnostics._reference, op)

    def wrong(*arguments: object) -> object:
        result = true(*arguments)
        first = result if isinstance(result, torch.Tensor) else result[0]
        if first.numel():
            first.view(torch.uint8).reshape(-1)[0] ^= 1
        return result

    everything = list(_diagnostics.cases())
    monkeypatch.setattr(_diagnostics, "cases", lambda: iter(everything))
    # Not in the module itself, where one definition calls another.
    definitions = {name: getattr(_diagnostics._reference, name) for name in OPS}
    monkeypatch.setattr(_diagnostics, "_reference", SimpleNamespace(**{**definitions, op: wrong}))
    counts = _diagnostics.self_test(torch.device("cpu"))
    assert {name for name, count in counts.items() if count["differ"]} == {op}


def test_json_report_and_exit_code() -> None:
    done = subprocess.run([sys.executable, "-m", "graphlossy", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] and found["versions"]["torch"] == torch.__version__
    assert set(found["self_test"]["cpu"]) == set(OPS)
    assert "cpu" in found["kernels"]


def test_mismatch_gives_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_diagnostics, "self_test", lambda device: {"quantize": {"cases": 9, "differ": 2}})
    assert program.main([]) == 1
    assert "2 of 9 differ" in capsys.readouterr().out


def test_absent_packages_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("ogb", "torch-scatter"):
            raise _diagnostics.importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(_diagnostics.importlib.metadata, "version", version)
    monkeypatch.setattr(_diagnostics, "self_test", lambda device: {"quantize": {"cases": 9, "differ": 0}})
    text = io.StringIO()
    program.show(_diagnostics.report(), Console(file=text, width=120))
    assert "absent: pip install 'graphlossy[ogb]'" in text.getvalue()
    assert "9 cases equal" in text.getvalue() and "Every operator equals its reference" in text.getvalue()
