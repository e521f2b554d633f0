"""The account of what is really stored: bytes before and after, per module and operation.

Every tensor that a lossy method keeps is entered as a :class:`Record`; a :class:`Ledger` adds them up, prints them as a
table and exports them as JSON. Sizes are bytes and include scales, offsets, masks and padding.
"""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = ["GRADIENTS", "Entry", "Ledger", "Record"]

GRADIENTS = ("exact", "unbiased", "approximate")


@dataclass(frozen=True)
class Record:
    """One tensor saved for the backward pass.

    Attributes:
        module: dotted name of the module whose forward saved it ("" for the outermost one).
        op: name of the torch operation that saved it.
        shape: its shape.
        dtype: its element type, for example ``"float32"``.
        plain_bytes: bytes that plain autograd keeps for it (0 where another record already counts the same storage).
        saved_bytes: bytes kept now, metadata included (0 where another record shares the same stored copy).
        bits: stored bits per element without metadata (32 for an exact float32).
        gradient: ``"exact"``, ``"unbiased"`` (given the incoming gradient) or ``"approximate"``.
        how: ``"quantized"``, ``"mask"``, ``"exact"``, ``"narrowed"``, ``"gathered"``,
            ``"recomputed"``, ``"unneeded"`` or ``"shared"``.
    """

    module: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    plain_bytes: int
    saved_bytes: int
    bits: float
    gradient: str
    how: str


class Entry:
    """A record in its ledger; the stored bytes can be corrected while they are alive."""

    __slots__ = ("_index", "_ledger", "_live", "_pass", "bytes")

    def __init__(self, ledger: Ledger, index: int, live: bool) -> None:
        self._ledger, self._index, self._live, self._pass = weakref.ref(ledger), index, live, ledger.passes
        self.bytes = ledger.records[index].saved_bytes

    @property
    def record(self) -> Record:
        ledger = self._ledger()
        if ledger is None or self._pass != ledger.passes:
            raise RuntimeError("the ledger of this entry was cleared")
        return ledger.records[self._index]

    @property
    def bits(self) -> float:
        return self.record.bits

    def resize(self, nbytes: int, bits: float) -> None:
        """The stored object now takes ``nbytes`` bytes at ``bits`` bits per element."""
        ledger = self._ledger()
        if ledger is not None:
            if self._pass == ledger.passes:
                ledger.records[self._index] = replace(self.record, saved_bytes=nbytes, bits=bits)
            if self._live:
                ledger.live_bytes += nbytes - self.bytes
        self.bytes = nbytes

    def released(self) -> None:
        """The stored object is gone."""
        ledger = self._ledger()
        if ledger is not None and self._live:
            ledger.live_bytes -= self.bytes
        self._live = False


@dataclass(eq=False)
class Ledger:
    """Sum of the records of one forward pass, with the saved bytes still alive and their highest point.

    Example:
        >>> ledger = Ledger()
        >>> _ = ledger.add(Record("conv1", "linear", (1000, 64), "float32", 256000, 17000, 2, "unbiased", "quantized"))
        >>> ledger.plain_bytes, ledger.saved_bytes, round(ledger.ratio, 1)
        (256000, 17000, 15.1)
    """

    records: list[Record] = field(default_factory=list)
    live_bytes: int = 0
    peak_saved_bytes: int = 0
    passes: int = field(default=0, repr=False)  # how often it was cleared
    _peak: Any = field(default=None, repr=False)

    def add(self, record: Record, owner: object = None) -> Entry:
        """Enters ``record``; its saved bytes count as alive until ``owner`` (the stored object) is freed."""
        self.records.append(record)
        entry = Entry(self, len(self.records) - 1, live=owner is not None)
        if owner is not None and record.saved_bytes:
            self.live_bytes += record.saved_bytes
            self.peak_saved_bytes = max(self.peak_saved_bytes, self.live_bytes)
            weakref.finalize(owner, entry.released).atexit = False
        return entry

    def clear(self) -> None:
        """Forgets the records (a new forward pass begins); the bytes still alive stay counted."""
        self.records.clear()
        self.passes += 1
        self.peak_saved_bytes = self.live_bytes

    def start_peak(self, meter: Any) -> None:
        """From now on ``peak_bytes`` is read from ``meter.read()``."""
        self._peak = meter

    @property
    def plain_bytes(self) -> int:
        """Bytes that plain autograd would keep for the backward pass."""
        return sum(r.plain_bytes for r in self.records)

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for the backward pass, all metadata included."""
        return sum(r.saved_bytes for r in self.records)

    @property
    def ratio(self) -> float:
        """``plain_bytes / saved_bytes`` (1.0 when nothing was saved)."""
        return self.plain_bytes / self.saved_bytes if self.saved_bytes else 1.0

    @property
    def peak_bytes(self) -> int | None:
        """Highest memory since the context was entered, beyond what was in use then; None unless it is measured.

        CUDA: allocated bytes. Linux CPU: resident set. Asked for by ``compress(..., measure_peak=True)``.
        """
        return None if self._peak is None else self._peak.read()

    def summary(self) -> dict[str, Any]:
        """Totals, and saved bytes by kind of gradient, as plain numbers."""
        by_gradient = {g: sum(r.saved_bytes for r in self.records if r.gradient == g) for g in GRADIENTS}
        return {
            "plain_bytes": self.plain_bytes,
            "saved_bytes": self.saved_bytes,
            "ratio": self.ratio,
            "peak_bytes": self.peak_bytes,
            "peak_saved_bytes": self.peak_saved_bytes,
            "tensors": len(self.records),
            "saved_bytes_by_gradient": by_gradient,
        }

    def to_json(self, indent: int | None = None) -> str:
        """The summary and every record as a JSON text."""
        return json.dumps({**self.summary(), "records": [asdict(r) for r in self.records]}, indent=indent)

    def rows(self) -> list[tuple[str, str, int, int, str, str]]:
        """Records merged by module and operation: (module, op, plain bytes, saved bytes, bits, gradient)."""
        merged: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            merged.setdefault((record.module, record.op), []).append(record)
        out = []
        for (module, op), group in merged.items():
            kinds = {r.gradient for r in group}
            worst = next(g for g in reversed(GRADIENTS) if g in kinds)
            bits = "/".join(f"{b:g}" for b in sorted({r.bits for r in group}))
            plain, saved = sum(r.plain_bytes for r in group), sum(r.saved_bytes for r in group)
            out.append((module, op, plain, saved, bits, worst))
        return out

    def __str__(self) -> str:
        head = ("module", "op", "plain", "saved", "ratio", "bits", "gradient")
        lines = [head]
        for module, op, plain, saved, bits, gradient in self.rows():
            lines.append((module or "(model)", op, _size(plain), _size(saved), _ratio(plain, saved), bits, gradient))
        total = ("total", "", _size(self.plain_bytes), _size(self.saved_bytes), f"{self.ratio:.1f}x", "", "")
        widths = [max(len(row[i]) for row in [*lines, total]) for i in range(len(head))]
        right = {2, 3, 4}

        def show(row: tuple[str, ...]) -> str:
            cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            return "  ".join(cells).rstrip()

        rule = "-" * len(show(tuple("x" * w for w in widths)))
        text = [show(lines[0]), rule, *(show(row) for row in lines[1:]), rule, show(total)]
        peak = self.peak_bytes
        if peak is not None:
            text.append(f"peak during the step: {_size(peak)} beyond what was in use before")
        return "\n".join(text)


def _ratio(plain: int, saved: int) -> str:
    return f"{plain / saved:.1f}x" if saved else "-"


def _size(n: float) -> str:
    if abs(n) < 1024:
        return f"{n:.0f} B"
    for unit in ("KiB", "MiB"):
        n /= 1024
        if abs(n) < 1024:
            return f"{n:.1f} {unit}"
    return f"{n / 1024:.1f} GiB"
