"""A study: what its cells are, that none is computed twice, what it writes, and what it refuses."""

from __future__ import annotations

import importlib
import json
import os
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from graphlossy.recsys.train import FitConfig, Observer, Study, TrainingError, budget_bytes, render_report, summarize

FIELDS = [SimpleNamespace(name=n, kind="token", num_tokens=v) for n, v in (("user", 60), ("item", 40))]


class Rows(list):
    def batches(self, batch_size):
        return [{"label": torch.tensor(self[at : at + batch_size])} for at in range(0, len(self), batch_size)]


PARTS = {"train": Rows([0, 1, 0] * 30), "valid": Rows([0, 1, 0]), "test": Rows()}
DATA = SimpleNamespace(name="fake", note="synthetic: made by a test", fields=FIELDS, **PARTS)
FULL = 100 * 17 * 4
AUCS = {"full": 0.78, "bias": 0.75, "pme": 0.77, "frequency": 0.785, "int4": 0.779}


@pytest.fixture
def computed(monkeypatch):
    """Cells that were computed; the figures are made up."""
    seen = []

    def run_cell(data, model, method, budget, seed, config, bits, *, cache, folder, on_epoch):
        seen.append((method, bits, budget, seed))
        on_epoch({"epoch": 1, "auc": 0.7})
        label = method + (f"+int{bits}" if bits else "")
        row = {"label": label, "method": method, "bits": bits, "seed": seed, "budget": budget, "status": "done",
               "minimum": None, "full_bytes": FULL}  # fmt: skip
        if budget is not None and budget < 50:
            return {**row, "status": "unreachable", "minimum": 50, "reason": "too small"}
        nbytes = {"full": FULL, "bias": 400, "int4": 1000}.get(method, budget)
        sizes = {"mean": 2.0, "by_count": [{"count": 0, "tokens": 3, "mean_size": 0.5},
                 {"count": 4, "tokens": 9, "mean_size": 3.0}]} if budget else None  # fmt: skip
        return {
            **row, "bytes": nbytes, "ratio": FULL / nbytes, "auc": AUCS[method] + seed / 1000, "logloss": 0.5,
            "search_seconds": 0.1, "epoch_seconds": 0.5, "search_epochs": 0.2, "peak_bytes": 10_000_000,
            "state_bytes": 4 * nbytes, "lookup_ms": 0.1, "sizes": sizes, "plan": None,
        }  # fmt: skip

    module = importlib.import_module("graphlossy.recsys.train.study")
    monkeypatch.setattr(module, "run_cell", run_cell)
    cells = importlib.import_module("graphlossy.recsys.train.cells")
    monkeypatch.setattr(cells, "method_names", lambda: list(AUCS))
    return seen


def study(folder=None, methods=("full", "bias", "pme", "int4"), budgets=("1/8", "1/32"), seeds=(0, 1), **config):
    return Study(DATA, "fm", methods, budgets, seeds, FitConfig(**config), folder)


def test_cells_of_a_study(computed):
    one = study(methods=("full", "pme+int4", "int4"))
    assert one.full_bytes == FULL
    assert [(c.label, c.method, c.bits, c.budget_label, c.budget, c.seed) for c in one.cells[:4]] == [
        ("full", "full", 0, None, None, 0),
        ("pme+int4", "pme", 4, "1/8", FULL // 8, 0),
        ("pme+int4", "pme", 4, "1/32", FULL // 32, 0),
        ("int4", "int4", 0, None, None, 0),
    ]
    assert len(one.cells) == 8 and len({cell.key for cell in one.cells}) == 8
    summary = one.run()
    assert computed == [(c.method, c.bits, c.budget, c.seed) for c in one.cells]
    assert [row["label"] for row in summary["rows"]] == ["full", "pme+int4", "pme+int4", "int4", "int4", "int4"]
    row = summary["rows"][1]
    assert row["auc"] == pytest.approx(0.7705) and row["auc_std"] == pytest.approx(0.0007071, rel=1e-3)
    own, *small = summary["rows"][3:]
    assert own["status"] == "done" and [r["budget_label"] for r in small] == ["1/8", "1/32"]
    assert {(r["status"], r["minimum"]) for r in small} == {("unreachable", 1000)}


def test_a_budget_out_of_reach_is_a_row(computed):
    summary = study(methods=("full", "pme"), budgets=("20B",)).run()
    row = summary["rows"][1]
    assert row["status"] == "unreachable" and row["minimum"] == 50 and row["seeds"] == []
    assert "<td>least 50 B</td><td>-</td><td>cannot reach</td>" in render_report(summary)


def test_nothing_is_computed_twice(tmp_path, computed):
    folder = tmp_path / "study"
    first = study(folder, methods=("full", "pme"), budgets=("1/8",)).run()
    assert len(computed) == 4
    assert study(folder, methods=("full", "pme"), budgets=("1/8",)).run() == first and len(computed) == 4
    more = study(folder, methods=("full", "pme", "frequency"), budgets=("1/8", "1/32"), seeds=(0, 1, 2)).run()
    assert len(computed) == 4 + 3 + 4 + 6 - 0 - 2 and len(more["cells"]) == 15
    fewer = study(folder, methods=("pme",), budgets=("1/8",), seeds=(1,)).run()
    assert len(fewer["cells"]) == 1 and len(json.loads((folder / "results.json").read_text())["cells"]) == 15
    study(folder, methods=("pme",), budgets=("1/8",), seeds=(1,)).run(fresh=True)
    assert len(json.loads((folder / "results.json").read_text())["cells"]) == 1


def test_an_interruption_loses_one_cell(tmp_path, computed):
    folder = tmp_path / "study"

    class Stop(Observer):
        def cell(self, cell):
            if cell.seed == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(folder).run(Stop())
    stored = json.loads((folder / "results.json").read_text())
    assert len(stored["cells"]) == 5 and (folder / "report.html").exists()
    events = []

    class Note(Observer):
        def started(self, study, waiting):
            events.append(waiting)

        def epoch(self, cell, line):
            events.append((cell.key, line["epoch"]))

        def done(self, cell, row):
            events.append(row["key"] == cell.key)

    whole = study(folder).run(Note())
    assert events[0] == 5 and events[1] == ("full | - | 1", 1) and events[2] is True and len(events) == 11
    assert len(computed) == 10 and len(whole["cells"]) == 10


def test_other_settings_are_refused(tmp_path, computed):
    folder = tmp_path / "study"
    study(folder, seeds=(0,)).run()
    with pytest.raises(TrainingError, match=r"made with other settings \(lr\); give another --out"):
        study(folder, seeds=(0,), lr=0.1).run()
    study(folder, seeds=(0,), lr=0.1).run(fresh=True)
    (folder / "results.json").write_text("{")
    with pytest.raises(TrainingError, match="cannot read .*results.json"):
        study(folder, seeds=(0,)).run()
    for text in ("{}", '{"format": 1, "cells": [3]}'):
        (folder / "results.json").write_text(text)
        with pytest.raises(TrainingError, match="is no result of this program"):
            study(folder, seeds=(0,)).run()


def test_other_rows_of_one_name_are_refused(tmp_path, computed):
    folder = tmp_path / "study"
    study(folder, seeds=(0,)).run()
    changed = SimpleNamespace(**{**vars(DATA), "valid": Rows([1, 1, 0])})
    with pytest.raises(TrainingError, match=r"made with other settings \(data\)"):
        Study(changed, "fm", ["full"], [], [0], folder=folder).run()


def test_folders_of_others_are_not_touched(tmp_path, computed):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(TrainingError, match="holds other files"):
        study(tmp_path).run()
    with pytest.raises(TrainingError, match="holds other files"):
        study(tmp_path).run(fresh=True)
    with pytest.raises(TrainingError, match="is no folder"):
        study(tmp_path / "thesis.txt").run()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_written(tmp_path, computed, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device", "results.json")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(TrainingError, match="results.json: cannot be read or written .No space left on device"):
        study(tmp_path / "study").run()
    assert not list((tmp_path / "study").glob("*.tmp"))


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_report_is_whole_and_loads_nothing(tmp_path, computed):
    folder = tmp_path / "study"
    study(folder, methods=("full", "bias", "pme", "frequency", "int4")).run()
    text = (folder / "report.html").read_text()
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("svg") == 2 and names.count("table") >= 3 and "script" not in names
    assert not [a for _, a in page.tags if a.keys() & {"src", "href"}] and "http" not in text and "$" not in text
    points = names.count("circle")
    assert points == 1 + 1 + 2 + 2 + 1 + 4 * 2  # the trade-off, and two bins for each method and budget that has sizes
    for words in (
        "synthetic: made by a test", "frequency at 1/8 has a higher AUC than full", "least 1000 B",
        "0.7705 ± 0.0007", "full is 0.0300 AUC above biases alone",
    ):  # fmt: skip
        assert words in page.text


def test_names_are_escaped(computed):
    summary = study(methods=("full",)).run()
    summary["data"]["name"] = "<script>alert(1)</script>$table"
    text = render_report(summary)
    assert "<script>" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ("pmee",)}, "method must be one of full, bias, pme"),
        ({"methods": ("pme+int3",)}, "stands int8, int4 or int2, got 'pme.int3'"),
        ({"methods": ("int4+int2",)}, "method int4 takes no bits"),
        ({"methods": ()}, "methods must not be empty"),
        ({"methods": ("pme", "pme")}, "method pme is given twice"),
        ({"seeds": ()}, "seeds must not be empty"),
        ({"seeds": (1, 1)}, "seed 1 is given twice"),
        ({"budgets": ()}, "method pme needs a budget"),
        ({"budgets": ("1/8", "1/8")}, "budget 1/8 is given twice"),
        ({"budgets": ("2/1",)}, "above 0 and at most 1, got '2/1'"),
        ({"budgets": ("1/0",)}, "a budget is a share such as 1/8"),
        ({"budgets": ("-1/8",)}, "above 0"),
        ({"budgets": ("x/8",)}, "a budget is a share"),
        ({"budgets": ("lots",)}, "or a size such as 64KiB, got 'lots'"),
        ({"budgets": ("0",)}, "at least one byte"),
    ],
    ids=str,
)
def test_what_a_study_refuses(given, message, computed):
    with pytest.raises(TrainingError, match=message):
        study(**given)


def test_budgets():
    assert budget_bytes("3/4", 1001) == 750 and budget_bytes("1.5kB", 10) == 1500


def test_summary_of_seeds_where_some_are_out_of_reach():
    cell = {"label": "tt", "budget_label": "1/8", "seed": 0, "auc": 0.7, "status": "done", "budget": 9}
    other = {"label": "tt", "budget_label": "1/8", "seed": 1, "status": "unreachable", "minimum": 7, "budget": 9}
    (row,) = summarize([cell, other])
    assert (row["seeds"], row["auc"], row["auc_std"], row["minimum"], row["status"]) == ([0], 0.7, None, 7, "done")


def test_stability_of_sizes_over_seeds(tmp_path, computed, monkeypatch):
    pytest.importorskip("graphlossy.recsys.plan")
    from graphlossy.recsys.plan import EmbeddingPlan, TablePlan

    folder = tmp_path / "study"
    one = study(folder, methods=("pme",), budgets=("1/8",))
    one.run()
    found = json.loads((folder / "results.json").read_text())
    for number, cell in enumerate(found["cells"]):
        sizes = torch.tensor([4, 2, 0] if number == 0 else [4, 0, 2])
        first_order = TablePlan("linear.user", 3, 1, "multi_size", sizes=torch.tensor([1, 0, 1]))  # is not counted
        tables = (TablePlan("embeddings.user", 3, 4, "multi_size", sizes=sizes), first_order)
        plan = EmbeddingPlan("pme", "before", tables)
        plan.save(folder / "plans" / f"{number}.safetensors")
        cell["plan"] = f"plans/{number}.safetensors"
    (folder / "results.json").write_text(json.dumps(found))
    (row,) = study(folder, methods=("pme",), budgets=("1/8",)).run()["rows"]
    assert row["size_stability"] == pytest.approx(0.5)
    assert "rank correlation of sizes between seeds: pme at 1/8 0.50" in (folder / "report.html").read_text()


def test_a_row_that_changed_late_in_a_long_table_is_seen(tmp_path, computed):
    folder = tmp_path / "study"
    long = SimpleNamespace(**{**vars(DATA), "train": Rows([0, 1] * 40_000)})
    Study(long, "fm", ["full"], [], [0], folder=folder).run()
    changed = SimpleNamespace(**{**vars(DATA), "train": Rows([0, 1] * 39_999 + [1, 1])})
    with pytest.raises(TrainingError, match=r"made with other settings \(data\)"):
        Study(changed, "fm", ["full"], [], [0], folder=folder).run()


def test_without_tokens_there_is_nothing_to_make_small(computed):
    floats = SimpleNamespace(**{**vars(DATA), "fields": [SimpleNamespace(name="price", kind="float", num_tokens=None)]})
    with pytest.raises(TrainingError, match="fake has no field of tokens: there are no tables that pme"):
        Study(floats, "fm", ["full", "pme"], ["1/8"], [0])
    assert Study(floats, "fm", ["full", "bias"], [], [0]).full_bytes == 0


def test_methods_of_one_size_have_no_stability(tmp_path, computed):
    from graphlossy.recsys.plan import EmbeddingPlan, TablePlan

    folder = tmp_path / "study"
    study(folder, methods=("int4",), budgets=()).run()
    found = json.loads((folder / "results.json").read_text())
    table = TablePlan("embeddings.user", 3, 4, "multi_size", sizes=torch.full((3,), 4), bits=4)
    EmbeddingPlan("int4", "after", (table,)).save(folder / "plans" / "int4.safetensors")
    for cell in found["cells"]:
        cell["plan"] = "plans/int4.safetensors"
    (folder / "results.json").write_text(json.dumps(found))
    (row,) = study(folder, methods=("int4",), budgets=()).run()["rows"]
    assert row["size_stability"] is None and "rank correlation" not in (folder / "report.html").read_text()


def test_two_processes_in_one_folder(tmp_path, computed):
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "study"
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)  # what another process would have
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(TrainingError, match="study: another process computes there; wait for it"):
        study(folder).run()
    assert not computed and not list(folder.iterdir())
    os.close(handle)
    study(folder).run()
    study(folder).run()  # the lock is given back
