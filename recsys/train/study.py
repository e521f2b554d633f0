"""`Study`: a grid of methods, budgets and seeds, whose cells are written one by one and never computed twice."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

import graphlossy
from graphlossy.core._files import write_json, write_text
from graphlossy.core.budget import parse_bytes
from graphlossy.recsys.train._files import alone_in, read_json
from graphlossy.recsys.train._summary import summarize
from graphlossy.recsys.train.cells import FIXED, REFERENCES, full_table_bytes, parse_method, run_cell
from graphlossy.recsys.train.config import FitConfig, TrainingError
from graphlossy.recsys.train.metrics import spearman
from graphlossy.recsys.train.report import render_report

__all__ = ["Cell", "Observer", "Study", "budget_bytes"]

FORMAT = 1
ROWS = 1 << 16  # looked at together, to tell data apart


@dataclass(frozen=True)
class Cell:
    """One training: what is in one cell of the table, for one seed.

    Attributes:
        label: method, with ``+int4`` for low bits behind it.
        method, bits: the two parts of the label.
        budget_label: as the user wrote it, None for a method that has one size.
        budget: bytes.
        seed: of everything random.
    """

    label: str
    method: str
    bits: int
    budget_label: str | None
    budget: int | None
    seed: int

    @property
    def key(self) -> str:
        """Name of the cell in ``results.json``."""
        return f"{self.label} | {self.budget_label or '-'} | {self.seed}"


class Observer:
    """Told what happens during a study; every method may be overridden and does nothing here."""

    def started(self, study: Study, waiting: int) -> None:
        """Cells are computed from now on; ``waiting`` of them are not in the folder yet."""

    def cell(self, cell: Cell) -> None:
        """A cell begins."""

    def epoch(self, cell: Cell, line: dict[str, float]) -> None:
        """A training of that cell has finished an epoch."""

    def done(self, cell: Cell, row: dict[str, Any]) -> None:
        """A cell is finished and written."""


def budget_bytes(text: str, full_bytes: int) -> int:
    """Bytes of a budget that is written as a share of the full tables, ``"1/8"``, or as a size, ``"64KiB"``.

    Raises:
        TrainingError: it is neither, or not above 0 and at most the full tables.

    Example:
        >>> budget_bytes("1/8", 8000), budget_bytes("2KiB", 8000)
        (1000, 2048)
    """
    try:
        if "/" in text:
            above, below = (int(part) for part in text.split("/"))
            share = Fraction(above, below)
            if not 0 < share <= 1:
                raise TrainingError(f"a budget's share must be above 0 and at most 1, got {text!r}")
            return int(share * full_bytes)
        size = parse_bytes(text)
    except TrainingError:
        raise
    except (TypeError, ValueError, ZeroDivisionError):
        raise TrainingError(f"a budget is a share such as 1/8 or a size such as 64KiB, got {text!r}") from None
    if size < 1:
        raise TrainingError(f"a budget must be at least one byte, got {text!r}")
    return size


class Study:
    """Runs every method at every budget on every seed.

    The folder gets ``results.json`` after every cell, ``report.html``, ``plans/`` with the sizes that were found and
    ``checkpoints/`` of the training that is running and of the full models. A study that is run again in the same
    folder computes what is missing.

    Args:
        data: as `graphlossy.recsys.data.CTRData`.
        model: a key of `graphlossy.recsys.models.MODELS`.
        methods: such as ``("full", "bias", "pme", "pme+int4")``.
        budgets: such as ``("1/8", "64KiB")``.
        seeds: the seeds themselves.
        config: of training.
        folder: of the files; None keeps everything in memory.

    Raises:
        TrainingError: a method, budget or seed is wrong, or the folder holds another study.

    Example:
        >>> study = Study(data, "deepfm", ["full", "pme"], ["1/8"], seeds=[0])  # doctest: +SKIP
        >>> study.run()["rows"]  # doctest: +SKIP
    """

    def __init__(
        self,
        data: Any,
        model: str,
        methods: Sequence[str],
        budgets: Sequence[str],
        seeds: Sequence[int],
        config: FitConfig | None = None,
        folder: Path | None = None,
    ) -> None:
        self.data, self.model = data, model
        self.config = FitConfig() if config is None else config
        self.methods, self.budgets, self.seeds = tuple(methods), tuple(budgets), tuple(seeds)
        self.folder = folder
        for name, values in (("methods", self.methods), ("seeds", self.seeds)):
            if not values:
                raise TrainingError(f"{name} must not be empty")
        for name, given in (("method", self.methods), ("budget", self.budgets), ("seed", self.seeds)):
            twice = next((value for value in given if given.count(value) > 1), None)
            if twice is not None:
                raise TrainingError(f"{name} {twice} is given twice")
        parsed = {label: parse_method(label) for label in self.methods}
        self.full_bytes = full_table_bytes(data, model, self.config)
        sized = [label for label, (name, _) in parsed.items() if name not in (*FIXED, *REFERENCES)]
        if sized and not self.budgets:
            raise TrainingError(f"method {sized[0]} needs a budget, such as 1/8")
        small = [label for label, (name, _) in parsed.items() if name not in REFERENCES]
        if small and not self.full_bytes:
            raise TrainingError(
                f"{data.name} has no field of tokens: there are no tables that {small[0]} could make small"
            )
        sizes = {text: budget_bytes(text, self.full_bytes) for text in self.budgets}
        self.cells = [
            Cell(label, *parsed[label], text, None if text is None else sizes[text], seed)
            for seed in self.seeds
            for label in self.methods
            for text in (self.budgets if label in sized else (None,))
        ]
        self._found: dict[str, dict[str, Any]] = {}
        self._fingerprint: str | None = None

    @property
    def results_file(self) -> Path | None:
        """``results.json``."""
        return None if self.folder is None else self.folder / "results.json"

    @property
    def report_file(self) -> Path | None:
        """``report.html``."""
        return None if self.folder is None else self.folder / "report.html"

    def settings(self) -> dict[str, Any]:
        """What every cell of a folder has in common."""
        return {"model": self.model, "config": self.config.to_dict()}

    def describe_data(self) -> dict[str, Any]:
        """Name, sizes, fields and fingerprint of the data, as plain values."""
        data = self.data
        fields = [{"name": f.name, "kind": f.kind, "num_tokens": int(f.num_tokens or 0)} for f in data.fields]
        sizes = {name: len(getattr(data, name)) for name in ("train", "valid", "test")}
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(data)
        about = {"name": data.name, "note": getattr(data, "note", "") or "", "fingerprint": self._fingerprint}
        return {**about, **sizes, "fields": fields}

    def run(self, observer: Observer | None = None, fresh: bool = False) -> dict[str, Any]:
        """Computes what is missing and returns the summary.

        Args:
            observer: told of every cell and epoch.
            fresh: forget what the folder holds.

        Raises:
            TrainingError: the folder holds another study or cannot be written, or a training went wrong.
        """
        observer = Observer() if observer is None else observer
        try:
            with alone_in(self.folder):
                self._run(observer, fresh)
        except OSError as error:
            name = error.filename or self.folder
            raise TrainingError(f"{name}: cannot be read or written ({error.strerror or error})") from None
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Everything that is known so far: ``rows`` of the table, ``cells``, ``settings``, ``data``, ``versions``."""
        cells = [self._found[cell.key] for cell in self.cells if cell.key in self._found]
        return {
            "format": FORMAT,
            "data": self.describe_data(),
            "settings": self.settings(),
            "seeds": list(self.seeds),
            "full_bytes": self.full_bytes,
            "versions": _versions(),
            "rows": self._out_of_reach(summarize(self._with_stability(cells))),
            "cells": cells,
        }

    # -- steps of run -----------------------------------------------------------------------------------------------

    def _run(self, observer: Observer, fresh: bool) -> None:
        self._open(fresh)
        waiting = [cell for cell in self.cells if cell.key not in self._found]
        observer.started(self, len(waiting))
        cache: dict[str, Any] = {}
        for cell in waiting:
            observer.cell(cell)
            row = self._compute(cell, cache, lambda line, cell=cell: observer.epoch(cell, line))
            self._found[cell.key] = row
            self._write()
            observer.done(cell, row)
        self._clean()

    def _open(self, fresh: bool) -> None:
        if self.folder is None:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise TrainingError(f"{self.folder} is no folder; give another --out")
        file = self.results_file
        if file.exists() and not fresh:
            stored = read_json(file)
            if (
                not isinstance(stored, dict)
                or stored.get("format") != FORMAT
                or not isinstance(stored.get("cells"), list)
                or not all(isinstance(row, dict) and "key" in row for row in stored["cells"])
            ):
                raise TrainingError(f"{file} is no result of this program; give another --out")
            self._check(stored, file)
            self._found = {row["key"]: row for row in stored["cells"]}
        elif self.folder.exists() and any(self.folder.iterdir()) and not file.exists() and not self._ours():
            raise TrainingError(f"{self.folder} holds other files; give another --out")
        for name in ("plans", "checkpoints"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            for old in (self.folder / name).iterdir() if fresh else ():
                old.unlink()

    def _ours(self) -> bool:
        """Whether a study was stopped here before its first cell."""
        return {path.name for path in self.folder.iterdir()} <= {"plans", "checkpoints", "results.json.tmp"}

    def _check(self, stored: dict[str, Any], file: Path) -> None:
        now = {**self.settings(), "data": self.describe_data()}
        then = {**stored.get("settings", {}), "data": stored.get("data")}
        changed = [name for name in now if now[name] != then.get(name)]
        if "config" in changed and isinstance(then.get("config"), dict):
            changed.remove("config")
            changed += [k for k, v in now["config"].items() if then["config"].get(k) != v]
        if changed:
            raise TrainingError(
                f"{file} was made with other settings ({', '.join(changed)}); give another --out, or --fresh to "
                "begin anew"
            )

    def _compute(
        self, cell: Cell, cache: dict[str, Any], on_epoch: Callable[[dict[str, float]], None]
    ) -> dict[str, Any]:
        row = run_cell(
            self.data, self.model, cell.method, cell.budget, cell.seed, self.config, cell.bits,
            cache=cache, folder=self.folder, on_epoch=on_epoch,
        )  # fmt: skip
        return {"key": cell.key, **row, "label": cell.label, "budget_label": cell.budget_label}

    def _write(self) -> None:
        if self.folder is not None:
            known = {cell.key for cell in self.cells}
            summary = self.summary()
            # Cells of other methods and seeds stay: they may be asked for again.
            kept = [row for key, row in self._found.items() if key not in known]
            write_json(self.results_file, {**summary, "cells": [*summary["cells"], *kept]})
            write_text(self.report_file, render_report(summary))

    def _clean(self) -> None:
        """The checkpoints have done their work; the report is written even where no cell was missing."""
        self._write()
        if self.folder is not None:
            for path in (self.folder / "checkpoints").iterdir():
                path.unlink()

    def _out_of_reach(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows, and behind those of methods with one size a row for every budget that this size is above."""
        sizes = {text: budget_bytes(text, self.full_bytes) for text in self.budgets}
        found = []
        for row in rows:
            found.append(row)
            if row["status"] == "done" and parse_method(row["label"])[0] in FIXED:
                small = [text for text in self.budgets if sizes[text] < row["bytes"]]
                found += [
                    {"label": row["label"], "budget_label": text, "budget": sizes[text], "status": "unreachable",
                     "seeds": [], "minimum": round(row["bytes"])}
                    for text in small
                ]  # fmt: skip
        return found

    def _with_stability(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rank correlation of the sizes of two seeds, the mean over pairs, where tokens have sizes."""
        groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        for cell in cells:
            if cell["budget_label"] is not None:  # else every token has the full width
                groups.setdefault((cell["label"], cell["budget_label"]), []).append(cell)
        found = {}
        for key, group in groups.items():
            vectors = [v for v in (self._sizes(cell) for cell in group) if v is not None]
            pairs = [spearman(a, b) for a, b in itertools.combinations(vectors, 2) if a.shape == b.shape]
            pairs = [value for value in pairs if value == value]
            if pairs:
                found[key] = sum(pairs) / len(pairs)
        return [{**cell, "size_stability": found.get((cell["label"], cell["budget_label"]))} for cell in cells]

    def _sizes(self, cell: dict[str, Any]) -> torch.Tensor | None:
        name = cell.get("plan")
        path = None if self.folder is None or name is None else self.folder / name
        if path is None or not path.exists():
            return None
        from graphlossy.recsys.plan import EmbeddingPlan

        tables = [
            table for table in EmbeddingPlan.load(path).tables if table.embedding_dim > 1
        ]  # no first-order weights
        sizes = [table.sizes for table in tables if table.sizes is not None]
        return torch.cat([size.to(torch.int64) for size in sizes]) if sizes else None


def _fingerprint(data: Any) -> str:
    """Of all rows: tells other data of the same name, and another split of the same data. About 1 GB a second."""
    found = hashlib.sha256()
    for split in (data.train, data.valid, data.test):
        for batch in split.batches(ROWS):
            for name in sorted(batch):
                found.update(name.encode() + batch[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _versions() -> dict[str, str]:
    return {
        "graphlossy": graphlossy.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }
