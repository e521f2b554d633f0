"""What becomes of one table, as plain data, and the module that is built from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys._storage import Storage
from graphlossy.recsys.base import BagOf
from graphlossy.recsys.multi_size import MultiSizeEmbedding, check_sizes
from graphlossy.recsys.multi_size_bag import MultiSizeEmbeddingBag

__all__ = ["TABLE_KINDS", "TablePlan", "becomes", "size_counts"]

TABLE_KINDS = ("multi_size", "hash", "qr", "tt", "robe", "dhe", "pruned")


@dataclass(frozen=True, eq=False)
class TablePlan:
    """What becomes of one table of V tokens and width d.

    Attributes:
        name: path of the module in the model, such as ``"embeddings.user"``.
        num_embeddings: V.
        embedding_dim: d.
        kind: ``"multi_size"``, ``"hash"``, ``"qr"``, ``"tt"``, ``"robe"``, ``"dhe"`` or ``"pruned"``.
        sizes: int16 [V], kind multi_size: the width of each token's row.
        bits: of low-bit rows; 0 for float ones.
        group_size: elements that share a scale and an offset.
        bits_when: rows are rounded ``"after"`` training, or at every step of ``"training"``.
        projection: of narrow rows, ``"nested"`` or ``"per_size"``.
        shared_rows, shared_size: hashed rows for tokens of size 0; a size of 0 is the smallest other one.
        mask: bool [V, d], kind pruned: the entries that are kept.
        options: of the other kinds, their constructor's keyword arguments.
        aliases: other paths of the same table.
        dtype: of the table's floats.

    Raises:
        ValueError: the values do not go together.

    Example:
        >>> plan = TablePlan("user", 4, 8, "multi_size", sizes=torch.tensor([8, 2, 2, 0]))
        >>> table = plan.build(nn.Embedding(4, 8, padding_idx=3))
        >>> table.sizes.tolist(), table.padding_idx, table.nbytes == plan.nbytes
        ([8, 2, 2, 0], 3, True)
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    kind: str
    sizes: Tensor | None = None
    bits: int = 0
    group_size: int = 64
    bits_when: str = "after"
    projection: str = "nested"
    shared_rows: int = 0
    shared_size: int = 0
    mask: Tensor | None = None
    options: Mapping[str, int | float | str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.kind not in TABLE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(TABLE_KINDS)}; got {self.kind!r}")
        has_sizes, has_mask = self.sizes is not None, self.mask is not None
        if has_sizes != (self.kind == "multi_size") or has_mask != (self.kind == "pruned"):
            raise ValueError(f"table {self.name!r}: sizes belong to kind 'multi_size' and a mask to 'pruned'")
        if self.sizes is not None:
            found = check_sizes(self.sizes, self.num_embeddings, self.embedding_dim)
            object.__setattr__(self, "sizes", found.to(device="cpu", dtype=torch.int16))
            self._storage()  # checks the rest
        if self.mask is not None and tuple(self.mask.shape) != (self.num_embeddings, self.embedding_dim):
            shapes = f"{tuple(self.mask.shape)} and {(self.num_embeddings, self.embedding_dim)}"
            raise ValueError(f"table {self.name!r}: mask and table must have one shape, got {shapes}")
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise TypeError(f"table {self.name!r}: mask must be bool, got {self.mask.dtype}")

    def _storage(self) -> Storage:
        return Storage(
            self.embedding_dim, self.dtype.itemsize, self.bits, self.group_size, self.bits_when, self.projection,
            self.shared_rows, self.shared_size,
        )  # fmt: skip

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the table as it is in the model."""
        return self.num_embeddings * self.embedding_dim * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the finished module, maps, projections and scales included."""
        if self.sizes is not None:
            return self._storage().of(self.sizes)
        options = self.options if self.mask is None else {"kept": int(self.mask.sum())}
        return _kind(self.kind).bytes_of(self.num_embeddings, self.embedding_dim, dtype=self.dtype, **options)

    def build(self, old: nn.Embedding | nn.EmbeddingBag, keep_values: bool = False) -> nn.Module:
        """The module that takes the place of ``old``.

        It has the padding, norms, mode, device, type and ``requires_grad`` of ``old``; new rows have the standard
        deviation of its rows. Low-bit rows that are rounded after training are float rows until `finish`.

        Args:
            old: table of V tokens and width d.
            keep_values: start from what is closest to the rows of ``old``.

        Raises:
            ValueError: ``old`` has another shape, or a setting that this kind of table has not.
        """
        shape = self.num_embeddings, self.embedding_dim
        if (old.num_embeddings, old.embedding_dim) != shape:
            found = old.num_embeddings, old.embedding_dim
            message = f"table {self.name!r} is planned for [V, d] = {shape}, the model's is {found}; search anew"
            raise ValueError(message)
        new: Any = self._build_multi_size(old) if self.kind == "multi_size" else self._build_other(old, keep_values)
        if keep_values and isinstance(new, MultiSizeEmbedding):
            new.assign(old.weight)
        if self.bits and self.bits_when == "training":
            new.quantize_(self.bits, self.group_size, trainable=True, rounding="stochastic")
        return new.requires_grad_(old.weight.requires_grad).train(old.training)

    def finish(self, module: nn.Module) -> nn.Module:
        """Rounds a trained module's rows to ``bits``, in place, if that is planned for after training."""
        if self.bits and self.bits_when == "after" and isinstance(module, MultiSizeEmbedding):
            module.max_norm = None  # training is over: the rows have their norms
            module.quantize_(self.bits, self.group_size)
        return module

    def _build_multi_size(self, old: nn.Embedding | nn.EmbeddingBag) -> MultiSizeEmbedding:
        same = {name: getattr(old, name) for name in ("max_norm", "norm_type", "scale_grad_by_freq", "sparse")}
        like = {"device": old.weight.device, "dtype": old.weight.dtype, "padding_idx": old.padding_idx}
        own: dict[str, Any] = {"sizes": self.sizes, "projection": self.projection, "shared_rows": self.shared_rows}
        own |= {"shared_size": self.shared_size or None, "init_std": _spread(old)}
        if isinstance(old, nn.EmbeddingBag):
            bag = {"mode": old.mode, "include_last_offset": old.include_last_offset}
            return MultiSizeEmbeddingBag(self.num_embeddings, self.embedding_dim, **same, **like, **own, **bag)
        return MultiSizeEmbedding(self.num_embeddings, self.embedding_dim, **same, **like, **own)

    def _build_other(self, old: nn.Embedding | nn.EmbeddingBag, keep_values: bool) -> nn.Module:
        kind = _kind(self.kind)
        if old.max_norm is not None:
            raise ValueError(f"table {self.name!r} has max_norm={old.max_norm}, which kind {self.kind!r} has not")
        given: dict[str, Any] = {
            "padding_idx": old.padding_idx,
            "sparse": old.sparse and kind.gives_sparse,
            "init_std": _spread(old),
        }
        given |= {"device": old.weight.device, "dtype": old.weight.dtype, **self.options}
        if self.mask is not None:
            dense = old.weight.detach()
            if not keep_values:
                dense = torch.randn_like(dense) * given["init_std"]
                if old.padding_idx is not None:
                    dense[old.padding_idx] = 0
            table = kind.from_mask(dense, self.mask, **given)
        else:
            table = kind(self.num_embeddings, self.embedding_dim, **given)
        if isinstance(old, nn.EmbeddingBag):
            return BagOf(table, old.mode, old.include_last_offset)
        return table


def _kind(name: str) -> Any:
    from graphlossy.recsys.tables import KINDS

    return KINDS[name]


def _spread(old: nn.Embedding | nn.EmbeddingBag) -> float:
    """Standard deviation of an element; 1 where there is nothing to learn it from."""
    weight, padding = old.weight.detach(), old.padding_idx
    parts = [weight] if padding is None else [weight[:padding], weight[padding + 1 :]]  # views: tables are large
    found = [(part.numel(), *torch.var_mean(part.float(), correction=0)) for part in parts if part.numel()]
    count = sum(n for n, _, _ in found)
    mean = sum(n * float(m) for n, _, m in found) / max(count, 1)
    std = math.sqrt(sum(n * (float(v) + (float(m) - mean) ** 2) for n, v, m in found) / max(count, 1))
    return std if std > 0 else 1.0


def size_counts(table: TablePlan) -> dict[int, int]:
    """How many tokens have each size."""
    if table.sizes is None:
        return {}
    sizes, times = table.sizes.unique(return_counts=True)
    return dict(zip(sizes.tolist(), times.tolist(), strict=True))


def becomes(table: TablePlan) -> str:
    """What becomes of a table, in a few words."""
    low = f", {table.bits} bits" if table.bits else ""
    if table.sizes is not None:
        found = sorted(size_counts(table).items(), reverse=True)
        shown = ", ".join(f"{count} of {size}" for size, count in found[:8])
        return f"rows: {shown}{', ...' if len(found) > 8 else ''}{low}"
    if table.mask is not None:
        return f"pruned, {int(table.mask.sum())} entries"
    given = ", ".join(f"{name}={value}" for name, value in table.options.items())
    return f"{table.kind}{': ' if given else ''}{given}"
