"""What a method is given: a model, its tables, data, a loss and a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.core import parse_bytes
from graphlossy.recsys._tables import check_any, find_tables
from graphlossy.recsys.methods._counts import count_tokens
from graphlossy.recsys.rows import ROW_BITS

__all__ = ["Problem"]


@dataclass
class Problem:
    """Tables to make smaller, and what their numbers are for.

    Attributes:
        model: that holds the tables; a search leaves it as it was.
        tables: `torch.nn.Embedding` or `torch.nn.EmbeddingBag` modules by their path, each weight once.
        batches: of training data, iterable again and again; methods that look at no data take ``()``.
        loss_fn: ``loss_fn(model, batch)`` is the scalar loss of one batch.
        budget: bytes of all ``tables`` together, everything counted; a text such as ``"16MiB"`` becomes a number.
        bits: of stored elements of the rows: 8, 4, 2 or 1; 0 is float.
        seed: of every random choice.
        progress: show a bar on the terminal.
        aliases: other paths of each table.
        known_counts: token counts [V] by table, if they need not be counted.
        counted: batches that were run to count tokens.

    Raises:
        TypeError, ValueError: a value is not as described.

    Example:
        >>> model = nn.Sequential(nn.Embedding(4, 2))
        >>> problem = Problem(model, {"0": model[0]}, [torch.tensor([0, 1, 1])], lambda m, ids: m(ids).sum(), "1kB")
        >>> problem.budget, problem.counts["0"].tolist(), problem.dense_nbytes
        (1000, [1, 2, 0, 0], 32)
    """

    model: nn.Module
    tables: dict[str, nn.Embedding | nn.EmbeddingBag]
    batches: Iterable[Any]
    loss_fn: Callable[[nn.Module, Any], Tensor]
    budget: int
    bits: int = 0
    seed: int = 0
    progress: bool = False
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    known_counts: dict[str, Tensor] | None = None
    counted: int = 0

    def __post_init__(self) -> None:
        self.budget = parse_bytes(self.budget)
        if self.bits not in (0, *ROW_BITS):
            raise ValueError(f"bits must be 0 (float) or one of {ROW_BITS}, got {self.bits!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be an int, got {type(self.seed).__name__}")
        if not self.tables:
            raise ValueError("tables must hold at least one embedding table")
        if not isinstance(self.batches, Iterable):
            kind = type(self.batches).__name__
            raise TypeError(f"batches must be iterable, such as a list or a DataLoader; got {kind}")
        if isinstance(self.batches, Iterator):
            kind = type(self.batches).__name__
            raise TypeError(f"batches must be iterable again and again, such as a list; got a {kind}")
        for name, counts in (self.known_counts or {}).items():
            if name in self.tables and tuple(counts.shape) != (self.tables[name].num_embeddings,):
                wanted = self.tables[name].num_embeddings
                raise ValueError(f"counts of {name!r} must be [{wanted}], got {tuple(counts.shape)}")

    @classmethod
    def of(cls, model: nn.Module, batches: Any, loss_fn: Any, budget: Any, match: Any = "*", **rest: Any) -> Problem:
        """The problem of all tables of ``model`` whose paths match; frozen tables are left alone.

        Raises:
            ValueError: no table matches; the text says which there are and why they stay.
        """
        tables, left = find_tables(model, match)
        check_any(tables, left, match)
        modules = {table.name: table.module for table in tables}
        aliases = {table.name: table.aliases for table in tables}
        return cls(model, modules, batches, loss_fn, budget, aliases=aliases, **rest)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameter of every table."""
        return {name: table.weight for name, table in self.tables.items()}

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the tables as they are."""
        return sum(w.numel() * w.element_size() for w in self.weights.values())

    @property
    def counts(self) -> dict[str, Tensor]:
        """How often each token occurs in the batches: int64 [V] by table; counted once, by running the model."""
        if self.known_counts is None or not set(self.tables) <= set(self.known_counts):
            found, self.counted = count_tokens(self)
            self.known_counts = found | (self.known_counts or {})
        return self.known_counts

    def modules_of(self, name: str) -> list[nn.Embedding | nn.EmbeddingBag]:
        """The modules of the model that look tokens up in the weight of a table."""
        weight = self.tables[name].weight
        tables = [m for m in self.model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        return [m for m in tables if m.weight is weight]

    def device_indices(self) -> list[int]:
        """CUDA devices of the tables, whose generators a search seeds."""
        return sorted({torch.device(w.device).index or 0 for w in self.weights.values() if w.is_cuda})
