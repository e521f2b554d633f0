"""What `compress_embeddings` did, as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from graphlossy.core import format_bytes
from graphlossy.recsys._tables import LeftAlone

if TYPE_CHECKING:
    from graphlossy.recsys.plan import EmbeddingPlan

__all__ = ["CompressionReport", "TableReport"]


@dataclass(frozen=True)
class TableReport:
    """One table.

    Attributes:
        name, aliases: its paths in the model.
        num_embeddings, embedding_dim: tokens and width.
        kind: of the table that took its place, such as ``"multi_size"``.
        mean_size: mean width of a token's row; None where tokens have no rows of their own.
        bits: of a stored element; 0 is float.
        plain_bytes, nbytes: of the weight before, of everything that is saved now.
        final_bytes: of everything once `finish` has rounded the rows.
    """

    name: str
    aliases: tuple[str, ...]
    num_embeddings: int
    embedding_dim: int
    kind: str
    mean_size: float | None
    bits: int
    plain_bytes: int
    nbytes: int
    final_bytes: int


@dataclass(frozen=True)
class CompressionReport:
    """Returned by `compress_embeddings` and `apply_plan`.

    Attributes:
        plan: sizes of all tables, to save and to apply again.
        tables: what was replaced.
        left_alone: tables that were not, each with the reason.
        notes: what could not be carried over, and what to do about it.
        seconds: of everything, the search included.
        peak_bytes: highest memory of the search, beyond what was in use before.
    """

    plan: EmbeddingPlan
    tables: tuple[TableReport, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = field(default=0)

    @property
    def plain_bytes(self) -> int:
        """Bytes of the replaced tables before."""
        return sum(table.plain_bytes for table in self.tables)

    @property
    def nbytes(self) -> int:
        """Bytes of the tables now: rows, projections, maps, scales."""
        return sum(table.nbytes for table in self.tables)

    @property
    def final_bytes(self) -> int:
        """Bytes of the tables after `finish`; the budget bounds these."""
        return sum(table.final_bytes for table in self.tables)

    @property
    def ratio(self) -> float:
        """``plain_bytes / final_bytes``"""
        return self.plain_bytes / self.final_bytes if self.final_bytes else 1.0

    def to_json(self, indent: int | None = None) -> str:
        """Everything but the sizes of the tokens, which ``plan.save`` keeps."""
        head: dict[str, Any] = {
            "method": self.plan.method, "stage": self.plan.stage, "budget": self.plan.budget, "seed": self.plan.seed,
            "settings": dict(self.plan.settings), "plain_bytes": self.plain_bytes, "nbytes": self.nbytes,
            "final_bytes": self.final_bytes, "ratio": self.ratio, "seconds": self.seconds,
            "search_seconds": self.plan.seconds, "search_peak_bytes": self.peak_bytes, "batches": self.plan.batches,
        }  # fmt: skip
        rows = {"tables": [asdict(t) for t in self.tables], "left_alone": [asdict(t) for t in self.left_alone]}
        return json.dumps({**head, **rows, "notes": list(self.notes)}, indent=indent)

    def __str__(self) -> str:
        rows = [("table", "tokens", "width", "kind", "mean size", "bits", "before", "after", "ratio")]
        rows += [_row(table) for table in self.tables]
        total = ("total", "", "", "", "", "", *_bytes(self.plain_bytes, self.final_bytes))
        widths = [max(len(row[i]) for row in [*rows, total]) for i in range(len(total))]

        def show(row: tuple[str, ...]) -> str:
            cells = enumerate(zip(row, widths, strict=True))
            return "  ".join(c.ljust(w) if i in (0, 3) else c.rjust(w) for i, (c, w) in cells).rstrip()

        rule = "-" * max(len(show(row)) for row in [*rows, total])
        lines = [show(rows[0]), rule, *map(show, rows[1:]), rule, show(total)]
        plan = self.plan
        searched = f"searched {plan.batches} batches in {plan.seconds:.1f} s"
        lines.append(f"{plan.method}: budget {format_bytes(plan.budget)}, {searched}, seed {plan.seed}")
        if self.nbytes != self.final_bytes:
            lines.append(f"now {format_bytes(self.nbytes)}; finish(model) rounds the rows after training")
        lines += [f"left alone: {t.name} ({format_bytes(t.nbytes)}): {t.reason}" for t in self.left_alone]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _row(table: TableReport) -> tuple[str, ...]:
    name = table.name + (f" (+{len(table.aliases)})" if table.aliases else "")
    size = "-" if table.mean_size is None else f"{table.mean_size:.2f}"
    shape = (f"{table.num_embeddings:,}", str(table.embedding_dim))
    return name, *shape, table.kind, size, str(table.bits or "float"), *_bytes(table.plain_bytes, table.final_bytes)


def _bytes(before: int, after: int) -> tuple[str, str, str]:
    return format_bytes(before), format_bytes(after), f"{before / after:.1f}x" if after else "-"
