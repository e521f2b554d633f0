"""What a plan says: a table of schemes, what fits a memory, and the largest input that does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from graphlossy._plan._schemes import parse_scheme
from graphlossy.core.budget import format_bytes, parse_bytes

__all__ = ["Plan", "Row"]


@dataclass(frozen=True)
class Row:
    """One way to train, predicted.

    Attributes:
        scheme: its name.
        saved_bytes: bytes saved for the backward pass, metadata included.
        peak_bytes: most bytes alive during a step beyond the fixed ones: saved tensors, temporaries, cached graphs.
        cached_bytes: part of it that stays between steps (a normalised graph, a sparse copy of the edges).
        fixed_bytes: weights, their gradients, the optimizer's state and the data.
        ratio: how many times fewer saved bytes than float32.
        peak_ratio: how many times less peak than float32.
        gradient: ``"exact"``, ``"unbiased"`` or ``"approximate"``: the worst of the saved tensors.
    """

    scheme: str
    saved_bytes: int
    peak_bytes: int
    cached_bytes: int
    fixed_bytes: int
    ratio: float
    peak_ratio: float
    gradient: str

    @property
    def total_bytes(self) -> int:
        """Peak and fixed bytes together."""
        return self.peak_bytes + self.fixed_bytes


@dataclass(frozen=True, eq=False)
class Plan:
    """Predicted memory of one training step. ``print(plan)`` shows the table.

    Attributes:
        rows: one for each scheme, float32 first.
        sizes: what they hold for: nodes, edges and training nodes, or the batch.
        fixed: bytes that every scheme needs: weights, gradients, optimizer, and the data.
        left_out: schemes that cannot be used here, and why.
    """

    rows: tuple[Row, ...]
    sizes: dict[str, int]
    fixed: dict[str, int]
    left_out: dict[str, str]
    _total_at: Callable[[str, Mapping[str, int]], float] = field(repr=False)

    def __getitem__(self, scheme: str) -> Row:
        """The row of that name, in any form that :func:`graphlossy.plan` takes."""
        try:
            name = parse_scheme(scheme).name
        except ValueError:
            name = scheme
        for row in self.rows:
            if row.scheme == name:
                return row
        if name in self.left_out:
            raise KeyError(f"scheme {scheme!r} was left out: {self.left_out[name]}")
        raise KeyError(f"no scheme {scheme!r} in this plan; it has {', '.join(row.scheme for row in self.rows)}")

    def fits(self, memory: int | str) -> list[str]:
        """Names of the schemes whose peak and fixed bytes together are at most ``memory`` (bytes, or ``"8GiB"``)."""
        limit = parse_bytes(memory)
        return [row.scheme for row in self.rows if row.total_bytes <= limit]

    def largest(self, memory: int | str, scheme: str) -> dict[str, int]:
        """The largest sizes that fit ``memory`` under ``scheme``: as many edges per node as here, or the batch.

        Every size is 0 if not even one node or example fits.
        """
        limit = parse_bytes(memory)
        name = self[scheme].scheme
        first = next(iter(self.sizes))

        def scaled(count: int) -> dict[str, int]:
            return {key: size * count // self.sizes[first] for key, size in self.sizes.items()}

        low, high = 0, 1
        while self._total_at(name, scaled(high)) <= limit and high < 2**50:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._total_at(name, scaled(middle)) <= limit else (low, middle)
        return scaled(low)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        rows = [{**asdict(row), "total_bytes": row.total_bytes} for row in self.rows]
        return {
            "sizes": dict(self.sizes),
            "fixed_bytes": dict(self.fixed),
            "schemes": rows,
            "left_out": dict(self.left_out),
        }

    def to_json(self, indent: int | None = None) -> str:
        """Everything as a JSON text; all figures are bytes."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        head = ("scheme", "saved", "less", "peak", "less", "in all", "gradient")
        body = [
            (
                row.scheme,
                format_bytes(row.saved_bytes),
                f"{row.ratio:.1f}x",
                format_bytes(row.peak_bytes),
                f"{row.peak_ratio:.1f}x",
                format_bytes(row.total_bytes),
                row.gradient,
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

        def show(line: tuple[str, ...]) -> str:
            cells = (
                c.ljust(w) if i in (0, 6) else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            return "  ".join(cells).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        sizes = ", ".join(f"{size:,} {name.replace('_', ' ')}" for name, size in self.sizes.items())
        fixed = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.fixed.items() if size)
        notes = [f"in all = peak + {fixed}", *(f"{name} left out: {why}" for name, why in self.left_out.items())]
        return "\n".join([f"predicted for {sizes}", show(head), rule, *map(show, body), rule, *notes])
