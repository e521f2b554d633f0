"""Who chooses the width of each saved tensor: one number for all, or a byte budget spent where it hurts least.

The budget needs no extra passes. In the first forward pass every tensor starts at 8 bits, and whenever the bytes pass
the budget the widest are rounded down one step, so even that pass stays inside it. The ordinary backward pass that
follows gives the size of each operation's gradient g. Rounding a tensor x with range r in a group of elements to b bits
adds to the gradient the variance

    (mean r^2) / (6 (2^b - 1)^2) * ||g||^2 * C

(C columns of x for a product with x, 1 for an elementwise operation; the variance of stochastic rounding as in EXACT,
ICLR 2022, section 3). ``allocate_bits`` then minimises the sum under the budget.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphlossy._compress._codecs import LowBit
from graphlossy.core.budget import allocate_bits, format_bytes
from graphlossy.core.ledger import Entry, Ledger

__all__ = ["GROUP_SIZE", "BitPolicy", "BudgetPolicy", "UniformPolicy"]

Key = tuple[str, str, int]
WIDTHS = (8, 4, 2, 1)
GROUP_SIZE = 256


class BitPolicy:
    """Interface: the widths of one model's saved tensors.

    Args:
        group_size: elements that share one scale and offset.
    """

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size

    def begin(self, ledger: Ledger) -> None:
        """A forward pass begins."""

    def bits(self, module: str, op: str, min_bits: int) -> int:
        """Width of the next tensor saved by ``op`` in ``module``."""
        raise TypeError(f"{type(self).__name__} does not say how many bits")

    def stored(self, payload: Any, entry: Entry, min_bits: int, next_seed: Callable[[], int]) -> None:
        """A new payload of ``entry.bytes`` bytes was stored (``entry.bits`` can still be lowered)."""

    def watch(self, out: Any) -> None:
        """The operation that saved the last tensors returned ``out``."""

    def end(self) -> None:
        """The forward pass is over."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to choose the same widths, as plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""


class UniformPolicy(BitPolicy):
    """The same width for all, or more where an operation's rule asks for it."""

    def __init__(self, bits: int, group_size: int = GROUP_SIZE) -> None:
        super().__init__(group_size)
        self._bits = bits

    def bits(self, module: str, op: str, min_bits: int) -> int:
        return max(self._bits, min_bits)


class BudgetPolicy(BitPolicy):
    """Widths under a budget.

    Args:
        budget: most bytes saved for the backward pass, exact tensors, masks and metadata included.
        group_size: elements that share one scale and offset.
        refresh: passes after which the sensitivities are measured anew.
    """

    def __init__(self, budget: int, group_size: int = GROUP_SIZE, refresh: int = 50) -> None:
        super().__init__(group_size)
        self.budget = budget
        self._refresh = refresh
        self._pass = 0
        self._plan: dict[Key, int] = {}
        self._measured: dict[Key, _Measured] = {}
        self._measuring = True
        self._begin_counts()

    def _begin_counts(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()
        self._live: list[tuple[weakref.ref[LowBit], Entry, int]] = []
        self._pending: list[_Measured] = []
        self._cap = WIDTHS[0]
        self._total = 0
        self._key: Key | None = None

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return {"pass": self._pass, "measuring": self._measuring, "plan": [[*k, b] for k, b in self._plan.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pass, self._measuring = state["pass"], state["measuring"]
        self._plan = {(module, op, n): bits for module, op, n, bits in state["plan"]}

    def _settle(self) -> None:
        if self._measuring and self._solve():
            self._measuring = False

    def begin(self, ledger: Ledger) -> None:
        self._settle()
        if self._pass and self._pass % self._refresh == 0:
            self._measuring = True
        if self._measuring:
            self._measured = {}
        self._pass += 1
        self._begin_counts()

    def bits(self, module: str, op: str, min_bits: int) -> int:
        self._key = (module, op, self._seen[(module, op)])
        self._seen[(module, op)] += 1
        return max(min(self._plan.get(self._key, WIDTHS[0]), self._cap), min_bits)

    def stored(self, payload: Any, entry: Entry, min_bits: int, next_seed: Callable[[], int]) -> None:
        self._total += entry.bytes
        if isinstance(payload, LowBit):
            payload.floor = max(min_bits, WIDTHS[-1])
            self._live.append((weakref.ref(payload), entry, min_bits))
            if self._measuring and self._key is not None:
                measured = _Measured(payload, entry, min_bits)
                self._measured[self._key] = measured
                self._pending.append(measured)
        while self._total > self.budget and self._cap > WIDTHS[-1]:
            self._cap = WIDTHS[WIDTHS.index(self._cap) + 1]
            for ref, made, floor in self._live:
                low = ref()
                bits = max(self._cap, floor)
                if low is not None and made.bits > bits:
                    low.requantize(bits, next_seed())
                    self._total += low.nbytes - made.bytes
                    made.resize(low.nbytes, bits)

    def watch(self, out: Any) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(_Gradient(pending))

    def end(self) -> None:
        if self._total > self.budget:
            raise ValueError(
                f"budget={format_bytes(self.budget)} cannot be met: this forward pass saves {self._total} bytes "
                f"({format_bytes(self._total)}) with every tensor at its lowest width (1 bit; masks and exact tensors "
                "included). Give at least that, or use smaller batches or layers"
            )

    def _solve(self) -> bool:
        """Plans the widths from what the last pass measured; False if no backward pass has happened yet."""
        known = {k: m for k, m in self._measured.items() if m.square is not None}
        if not known:
            return False
        typical = sorted(m.sensitivity() for m in known.values())[len(known) // 2]
        keys = list(self._measured)
        sensitivities = [self._measured[k].sensitivity() if k in known else typical for k in keys]
        elements = [self._measured[k].elements for k in keys]
        fixed = self._total - sum(self._measured[k].entry.bytes for k in keys)
        floor = [self._measured[k].min_bits for k in keys]
        free = [i for i, f in enumerate(floor) if f == 1]
        for i, f in enumerate(floor):
            if f > 1:
                fixed += self._measured[keys[i]].entry.bytes
                self._plan[keys[i]] = f
        # A little room: groups are counted one by one when they are stored.
        room = self.budget - fixed - 64 * len(free)
        try:
            bits = allocate_bits([sensitivities[i] for i in free], [elements[i] for i in free], room)
        except ValueError:
            bits = [WIDTHS[-1]] * len(free)  # at the very edge of the budget
        self._plan.update({keys[i]: b for i, b in zip(free, bits, strict=True)})
        return True


class _Measured:
    """What one pass tells about one stored tensor."""

    def __init__(self, payload: LowBit, entry: Entry, min_bits: int) -> None:
        levels = 2**payload.bits - 1
        self.range_square = (payload.scale.float() * levels).square().mean()
        self.elements = payload.numel
        self.entry, self.min_bits = entry, min_bits
        product = entry.record.op in ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "sparse_mm")
        self.columns = entry.record.shape[-1] if product else 1
        self.square: Tensor | None = None

    def sensitivity(self) -> float:
        square = 0.0 if self.square is None else float(self.square)
        value = float(self.range_square) / 6 * square * self.columns
        return value if value == value and value != float("inf") else 0.0


class _Gradient:
    """Tensor hook: adds the squared norm of an operation's gradient to the tensors that it saved."""

    def __init__(self, measured: list[_Measured]) -> None:
        self._measured = measured

    def __call__(self, grad: Tensor) -> None:
        square = torch.linalg.vector_norm(grad.detach(), dtype=torch.float32).square()
        for m in self._measured:
            m.square = square if m.square is None else m.square + square
