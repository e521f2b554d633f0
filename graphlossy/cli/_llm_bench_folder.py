"""The folder of ``graphlossy llm bench-kv``: every cell that was measured, and with which settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graphlossy.cli._llm_bench_summary import PARTS, summarize
from graphlossy.core._files import write_json
from graphlossy.llm.finetune import FinetuneError
from graphlossy.llm.finetune._errors import one_line
from graphlossy.llm.finetune._folder import versions

__all__ = ["BenchFolder", "key_of"]

FORMAT = 1
_SAME = ("graphlossy", "torch", "transformers")  # versions that a folder has one of
Cell = dict[str, Any]


def key_of(cell: Cell) -> tuple[Any, ...]:
    """What tells a cell from every other.

    Example:
        >>> key_of({"part": "needle", "cache": "4bit", "text": 3, "answers": []})
        ('needle', '4bit', 3)
    """
    return tuple(cell[name] for name in PARTS[cell["part"]])


class BenchFolder:
    """Reads ``results.json`` and writes it anew after every cell.

    Args:
        path: the folder; it is made if it is not there.
        settings: those that the parts of this run depend on.

    Attributes:
        cells: those that were there, and those added since.

    Raises:
        FinetuneError: the folder holds other files or a damaged one, or cells of other settings.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.file = path / "results.json"
        self.cells: list[Cell] = []
        self._versions = versions()
        if path.exists() and not path.is_dir():
            raise FinetuneError(f"{path} is no folder; give another --out")
        if self.file.exists():
            self._read()
        elif path.exists() and any(file.name != "results.json.tmp" for file in path.iterdir()):
            raise FinetuneError(f"{path} holds other files; give another --out")
        path.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, cell: Cell) -> None:
        """Keeps a cell, on the disk at once.

        Raises:
            FinetuneError: a figure is no number.
            OSError: the file cannot be written.
        """
        self.cells.append(cell)
        self._write()

    def content(self) -> dict[str, Any]:
        """What ``results.json`` holds: settings, versions, the tables' rows and the cells."""
        summary = summarize(self.cells)
        return {"format": FORMAT, "settings": self.settings, "versions": self._versions, "summary": summary,
                "cells": self.cells}  # fmt: skip

    def _read(self) -> None:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            then, cells = {**found["settings"]}, list(found["cells"])
            made_by = {name: found["versions"][name] for name in _SAME}
            if found["format"] != FORMAT:
                raise ValueError("another format")
            summarize(cells)
            keys = [key_of(cell) for cell in cells]
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            said = f"{self.file} is damaged, or no result of this command; give another --out"
            raise FinetuneError(said) from error
        now = {**self.settings, **{name: self._versions[name] for name in _SAME}}
        old = {**then, **made_by}
        other = [f"{name} {old[name]}, now {now[name]}" for name in now if old.get(name, now[name]) != now[name]]
        if other:
            raise FinetuneError(f"{self.file} was made with other settings ({'; '.join(other)}); give another --out")
        self.settings = {**then, **self.settings}
        self.cells = list(dict(zip(keys, cells, strict=True)).values())

    def _write(self) -> None:
        try:
            write_json(self.file, self.content())
        except ValueError as error:  # no JSON has inf and nan
            raise FinetuneError(f"a figure is no finite number ({one_line(error)}); try --dtype float32") from None
