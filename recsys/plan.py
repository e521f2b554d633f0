"""What becomes of the embedding tables of a model, as plain data: saved, inspected, reused, and built from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphlossy.core import format_bytes
from graphlossy.recsys._plan_file import read_plan, write_plan
from graphlossy.recsys._table_plan import TABLE_KINDS, TablePlan, becomes, size_counts
from graphlossy.recsys.tables._budget import BudgetError

__all__ = ["BudgetError", "EmbeddingPlan", "TABLE_KINDS", "TablePlan"]


@dataclass(frozen=True, eq=False)
class EmbeddingPlan:
    """What becomes of the tables of a model.

    Attributes:
        method: name of the method that made it.
        stage: ``"before"`` training (the new tables start from scratch), ``"during"`` (the search trains) or
            ``"after"`` training.
        tables: one plan for each.
        budget: bytes that were allowed.
        seed: of the search.
        seconds: that the search took.
        peak_bytes: of the tables, their gradients and the scores in the search, together; activations and the rest of
            the model are not counted.
        batches: that were run, those that counted tokens included.
        settings: options of the method.

    Example:
        >>> table = TablePlan("user", 100, 8, "multi_size", sizes=torch.full((100,), 2))
        >>> plan = EmbeddingPlan("uniform", "before", (table,))
        >>> plan.nbytes, plan.dense_nbytes, round(plan.ratio, 2)
        (868, 3200, 3.69)
    """

    method: str
    stage: str
    tables: tuple[TablePlan, ...]
    budget: int = 0
    seed: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    batches: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the finished modules together."""
        return sum(table.nbytes for table in self.tables)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the tables as they are in the model."""
        return sum(table.dense_nbytes for table in self.tables)

    @property
    def ratio(self) -> float:
        """How many times smaller the finished tables are."""
        return self.dense_nbytes / self.nbytes if self.nbytes else float("inf")

    @property
    def retrain(self) -> bool:
        """Whether the model is to be trained with the new tables before it is used."""
        return bool(self.settings.get("retrain", self.stage != "after"))

    @property
    def keep_values(self) -> bool:
        """Whether the new tables start from the rows of the old ones."""
        return bool(self.settings.get("keep_values", self.stage == "after"))

    def table(self, name: str) -> TablePlan:
        """The plan of the table at a path.

        Raises:
            KeyError: there is none.
        """
        for table in self.tables:
            if name == table.name or name in table.aliases:
                return table
        raise KeyError(f"no table {name!r} in the plan; there are {', '.join(t.name for t in self.tables)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, whole or not at all."""
        write_plan(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EmbeddingPlan:
        """The plan that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, or no plan.
        """
        data, tensors = read_plan(Path(path))
        try:
            tables = []
            for at, entry in enumerate(data.pop("tables")):
                entry |= {"aliases": tuple(entry["aliases"]), "dtype": getattr(torch, entry["dtype"])}
                tables.append(TablePlan(**entry, sizes=tensors.get(f"{at}.sizes"), mask=tensors.get(f"{at}.mask")))
            return cls(**data, tables=tuple(tables))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}); search again and save the plan") from error

    def to_json(self, indent: int | None = 2) -> str:
        """Everything but the sizes of single tokens: how many have each size, bytes, settings."""
        return json.dumps(plan_data(self, summary=True), indent=indent)

    def picture(self, path: str | os.PathLike[str], counts: Mapping[str, Tensor]) -> None:
        """Draws size against popularity, a panel for each of the largest tables.

        Args:
            path: of a PNG, SVG or PDF file.
            counts: [V] how often each token occurs, by the table's name, as `Problem.counts` has it.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no table has sizes, or counts are missing.
        """
        from graphlossy.recsys.picture import draw_sizes

        draw_sizes(self, Path(path), counts)

    def describe(self) -> str:
        """The plan as a table in plain text.

        Example:
            >>> table = TablePlan("user", 9, 8, "multi_size", sizes=torch.tensor([8] * 3 + [1] * 6))
            >>> print(EmbeddingPlan("pme", "before", (table,)).describe())
            pme: 176 B, 1.6 times smaller than 288 B
            table  tokens  width  becomes               bytes  smaller
            user        9      8  rows: 3 of 8, 6 of 1  176 B     1.6x
        """
        rows = [("table", "tokens", "width", "becomes", "bytes", "smaller")]
        for t in self.tables:
            ratio = f"{t.dense_nbytes / t.nbytes:.1f}x" if t.nbytes else "-"
            rows.append(
                (t.name, str(t.num_embeddings), str(t.embedding_dim), becomes(t), format_bytes(t.nbytes), ratio)
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        left = (True, False, False, True, False, False)
        lines = [
            "  ".join(c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True))
            for row in rows
        ]
        total = f"{format_bytes(self.nbytes)}, {self.ratio:.1f} times smaller than {format_bytes(self.dense_nbytes)}"
        return "\n".join([f"{self.method}: {total}", *(line.rstrip() for line in lines)])

    @property
    def sizes(self) -> dict[str, dict[int, int]]:
        """How many tokens of each table have each size, for tables that have sizes."""
        return {table.name: size_counts(table) for table in self.tables if table.sizes is not None}

    def __str__(self) -> str:
        return self.describe()


def plan_data(plan: EmbeddingPlan, summary: bool = False) -> dict[str, Any]:
    """Everything but tensors; with ``summary`` what is derived too."""
    names = ("method", "stage", "budget", "seed", "seconds", "peak_bytes", "batches", "settings")
    data: dict[str, Any] = {name: getattr(plan, name) for name in names}
    if summary:
        data |= {"nbytes": plan.nbytes, "dense_nbytes": plan.dense_nbytes, "ratio": plan.ratio}
    data["tables"] = []
    for table in plan.tables:
        shown = ("name", "num_embeddings", "embedding_dim", "kind", "bits", "group_size", "bits_when", "projection",
                 "shared_rows", "shared_size")  # fmt: skip
        entry = {name: getattr(table, name) for name in shown}
        entry |= {"options": dict(table.options), "aliases": list(table.aliases)}
        entry["dtype"] = str(table.dtype).removeprefix("torch.")
        if summary:
            entry |= {"nbytes": table.nbytes, "dense_nbytes": table.dense_nbytes, "sizes": size_counts(table)}
        data["tables"].append(entry)
    return data
