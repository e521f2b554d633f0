"""What the compressed tables share: their arguments, building one for a budget, picking elements of a flat array."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphlossy.recsys.base import CompressedEmbedding

__all__ = ["Table", "check_at_least", "take"]


class Table(CompressedEmbedding):
    """A compressed table whose bytes follow from a few numbers.

    Tokens share what is stored, so the row of ``padding_idx`` cannot be kept at zero there: it is zero by definition.

    Args:
        num_embeddings, embedding_dim, padding_idx, sparse: as in `torch.nn.Embedding`.
        init_std: standard deviation of an element of a row; torch's is 1.

    Attributes:
        kind: name in `graphlossy.recsys.tables.KINDS`.
        gives_sparse: whether ``sparse=True`` is possible.
    """

    kind: ClassVar[str]
    gives_sparse: ClassVar[bool] = True
    _sizing: ClassVar[tuple[str, ...]]  # options that the bytes depend on

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, sparse: bool, init_std: float
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        if sparse and not self.gives_sparse:
            raise ValueError(f"{type(self).__name__} has no rows that a gradient could be sparse in; take sparse=False")
        if isinstance(init_std, bool) or not isinstance(init_std, (int, float)) or not 0 <= init_std < float("inf"):
            raise ValueError(f"init_std must be a number of at least 0, got {init_std!r}")
        self.sparse, self.init_std = bool(sparse), float(init_std)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws new values from torch's generator; an element of a row has the standard deviation ``init_std``."""

    @abstractmethod
    def _rows(self, ids: Tensor) -> Tensor:
        """[N, d] of valid int64 ids [N], without regard to padding."""

    def rows(self, ids: Tensor) -> Tensor:
        """[N, d] of int64 ids [N] that were found valid, differentiable; the row of ``padding_idx`` is zero."""
        out = self._rows(ids)
        return out if self.padding_idx is None else out.masked_fill((ids == self.padding_idx).unsqueeze(1), 0.0)

    def _without_padding(self, scores: Tensor) -> Tensor:
        """``scores`` [B, V] with zeros for the padding token; changed in place."""
        if self.padding_idx is not None:
            scores[:, self.padding_idx] = 0.0
        return scores

    @property
    def dtype(self) -> torch.dtype:
        """Of a looked-up row."""
        return next(self.parameters()).dtype

    @classmethod
    @abstractmethod
    def bytes_of(
        cls, num_embeddings: int, embedding_dim: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> int:
        """`nbytes` of a table with these options, without building it."""

    @classmethod
    @abstractmethod
    def options_for_budget(
        cls, num_embeddings: int, embedding_dim: int, nbytes: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> dict[str, Any]:
        """Keyword arguments of the largest table of at most ``nbytes`` bytes; some may be fixed by ``options``.

        Raises:
            BudgetError: the smallest table is larger; its ``minimum`` is the fewest bytes that are possible.
        """

    @classmethod
    def for_budget(cls, num_embeddings: int, embedding_dim: int, nbytes: int, **options: Any) -> Table:
        """The largest table of at most ``nbytes`` bytes.

        Args:
            num_embeddings, embedding_dim: as for the class.
            nbytes: budget in bytes.
            options: other arguments of the class.

        Raises:
            BudgetError: the smallest table is larger.
        """
        dtype = options.get("dtype") or torch.get_default_dtype()
        fixed = {name: value for name, value in options.items() if name in cls._sizing}
        found = cls.options_for_budget(num_embeddings, embedding_dim, nbytes, dtype=dtype, **fixed)
        return cls(num_embeddings, embedding_dim, **(options | found))


def check_at_least(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` if it is an int from ``least`` to ``most``; raises otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return value


def take(values: Tensor, at: Tensor, sparse: bool) -> Tensor:
    """``values[at]`` of a flat array, with a dense or a sparse gradient."""
    return _SparseTake.apply(values, at) if sparse else values.index_select(0, at.reshape(-1)).view(at.shape)


class _SparseTake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.shape = values.shape
        return values[at]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(at.reshape(1, -1), grad.reshape(-1), ctx.shape, check_invariants=False), None
