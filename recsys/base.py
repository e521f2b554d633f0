"""What every compressed table of embeddings has in common, and pooling over bags for those without a kernel of it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["BagOf", "CompressedEmbedding", "IdError", "bag_ends", "check_dims", "pool"]

_CHUNK = 1 << 22  # elements of the full table that are made at a time


class IdError(IndexError, ValueError):
    """An id that the table does not have: an IndexError, as torch raises, and a ValueError."""


class CompressedEmbedding(nn.Module):
    """A stand-in for `torch.nn.Embedding` that stores less than [num_embeddings, embedding_dim] numbers.

    Args:
        num_embeddings: tokens V.
        embedding_dim: width d of a looked-up row.
        padding_idx: token whose row gets no gradient.

    Attributes:
        name: of the feature, for messages; empty where nothing set it.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = check_dims(
            num_embeddings, embedding_dim, padding_idx
        )
        self.name = ""

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """[N, d] of int64 ids [N] that were found valid, differentiable; padding is like any other token."""

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the tokens ``input``: [*, d] for ids [*].

        Raises:
            IdError: an id is not of this table.
            TypeError: ``input`` are no integers.
        """
        ids = self.check_ids(input)
        out = self.rows(ids.reshape(-1))
        if self.padding_idx is not None and out.requires_grad:
            out = torch.where((ids.reshape(-1) == self.padding_idx).unsqueeze(1), out.detach(), out)
        return out.view(*ids.shape, self.embedding_dim)

    @property
    def weight(self) -> Tensor:
        """The whole table [V, d], computed anew and differentiable; writing to it changes nothing."""
        return self.rows(torch.arange(self.num_embeddings, device=self.device))

    def scores(self, queries: Tensor) -> Tensor:
        """Products [B, V] of ``queries`` [B, d] with all rows; the table is made in blocks."""
        self.check_queries(queries)
        step = max(1, _CHUNK // self.embedding_dim)
        ids = torch.arange(self.num_embeddings, device=self.device)
        blocks = [queries @ self.rows(part).to(queries.dtype).T for part in ids.split(step)]
        return torch.cat(blocks, dim=1) if blocks else queries.new_empty((queries.shape[0], 0))

    @property
    def nbytes(self) -> int:
        """Bytes of all that is saved: tables, projections, maps, scales and padding."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values() if isinstance(t, Tensor))

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def check_ids(self, ids: Tensor) -> Tensor:
        """``ids`` as int64; raises where one is not of this table, naming the feature, the id and the table's size."""
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            kind = str(ids.dtype).removeprefix("torch.") if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(
                f"{self._feature()}ids must be a tensor of int64 or int32, got {kind}; convert with .long()"
            )
        ids = ids.to(torch.int64)
        if ids.numel():
            low, high = (int(v) for v in ids.aminmax())
            if low < 0 or high >= self.num_embeddings:
                raise self.id_error(low if low < 0 else high)
        return ids

    def id_error(self, wrong: int) -> IdError:
        """The error for an id that is not of this table."""
        return IdError(
            f"{self._feature()}id {wrong} is not in the table of {self.num_embeddings} tokens (ids from 0 to "
            f"{self.num_embeddings - 1}); map unseen tokens to one that is kept for them, or append rows"
        )

    def check_queries(self, queries: Tensor) -> None:
        """Raises unless ``queries`` is [B, d]."""
        if queries.dim() != 2 or queries.shape[1] != self.embedding_dim:
            raise ValueError(f"queries must be [batch, {self.embedding_dim}], got shape {tuple(queries.shape)}")

    def _feature(self) -> str:
        return f"feature {self.name!r}: " if self.name else ""

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {self.nbytes} bytes"


def check_dims(num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> tuple[int, int, int | None]:
    """The three as torch takes them, a negative ``padding_idx`` counted from the end."""
    for name, value, least in (("num_embeddings", num_embeddings, 0), ("embedding_dim", embedding_dim, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if padding_idx is None:
        return num_embeddings, embedding_dim, None
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int):
        raise TypeError(f"padding_idx must be an int or None, got {type(padding_idx).__name__}")
    if not -num_embeddings <= padding_idx < num_embeddings:
        allowed = f"from {-num_embeddings} to {num_embeddings - 1}"
        raise ValueError(f"padding_idx must be {allowed} for {num_embeddings} tokens, got {padding_idx}")
    return num_embeddings, embedding_dim, padding_idx % num_embeddings


def bag_ends(input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> tuple[Tensor, Tensor]:
    """(ids int64 [N], ends int64 [B]) of the arguments of `torch.nn.EmbeddingBag`: ends[b] is one past bag b."""
    if input.dim() == 2:
        if offsets is not None:
            raise ValueError("offsets must be None where input has 2 dimensions: every row is a bag")
        bags, length = input.shape
        return input.reshape(-1), torch.arange(1, bags + 1, device=input.device) * length
    if input.dim() != 1:
        raise ValueError(f"input must have 1 dimension (with offsets) or 2, got shape {tuple(input.shape)}")
    if offsets is None:
        raise ValueError("offsets must be given where input has 1 dimension: where each bag begins")
    if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"offsets must be int64 with one dimension, got {offsets.dtype} {tuple(offsets.shape)}")
    offsets, count = offsets.to(torch.int64), input.shape[0]
    if include_last_offset and not offsets.numel():
        raise ValueError("offsets must have at least one entry where include_last_offset is True")
    if offsets.numel():
        steps = torch.diff(offsets, append=offsets.new_tensor([count]))
        if int(offsets[0]) != 0 or bool((steps < 0).any()):
            raise ValueError(f"offsets must begin with 0, rise and end by {count}, the length of input")
    if include_last_offset:
        return input[: int(offsets[-1])], offsets[1:]  # ids after the last offset are in no bag
    ends = torch.cat([offsets[1:], offsets.new_tensor([count])])
    return input, ends if offsets.numel() else offsets


def pool(rows: Tensor, ends: Tensor, mode: str, weights: Tensor | None = None) -> Tensor:
    """[B, d] sums, means or maxima of ``rows`` [N, d] over bags that end at ``ends`` [B]; an empty bag is zero."""
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    used = int(ends[-1]) if ends.numel() else 0
    rows = rows[:used]
    if weights is not None:
        rows = rows * weights[:used].unsqueeze(1)
    bag = torch.arange(ends.shape[0], device=ends.device).repeat_interleave(lengths, output_size=used)
    out = rows.new_zeros((ends.shape[0], rows.shape[1]))
    if mode == "max":
        return out.scatter_reduce(0, bag.unsqueeze(1).expand_as(rows), rows, "amax", include_self=False)
    out = out.index_add(0, bag, rows)
    return out / lengths.clamp(min=1).unsqueeze(1) if mode == "mean" else out


class BagOf(nn.Module):
    """`torch.nn.EmbeddingBag` on top of any `CompressedEmbedding`.

    Args:
        embedding: the table.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        include_last_offset: as in torch.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> bag = BagOf(MultiSizeEmbedding(10, 4, sizes=2), mode="sum")
        >>> bag(torch.tensor([1, 2, 3]), torch.tensor([0, 2])).shape
        torch.Size([2, 4])
    """

    def __init__(self, embedding: CompressedEmbedding, mode: str = "mean", include_last_offset: bool = False) -> None:
        super().__init__()
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"mode must be 'sum', 'mean' or 'max', got {mode!r}")
        self.embedding, self.mode, self.include_last_offset = embedding, mode, include_last_offset
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """[B, d], see `torch.nn.EmbeddingBag.forward`."""
        check_weights(per_sample_weights, input, self.mode)
        ids, ends = bag_ends(self.embedding.check_ids(input), offsets, self.include_last_offset)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        ids, ends, weights = drop_padding(ids, ends, weights, self.embedding.padding_idx)
        return pool(self.embedding.rows(ids), ends, self.mode, weights)

    @property
    def weight(self) -> Tensor:
        """The whole table [V, d]."""
        return self.embedding.weight

    @property
    def nbytes(self) -> int:
        """Bytes of all that is saved."""
        return self.embedding.nbytes


def check_weights(weights: Tensor | None, input: Tensor, mode: str) -> None:
    """Raises unless ``per_sample_weights`` goes with the rest."""
    if weights is None:
        return
    if mode != "sum":
        raise ValueError(f"per_sample_weights need mode='sum', got mode={mode!r}")
    if weights.shape != input.shape:
        shapes = f"{tuple(weights.shape)} and {tuple(input.shape)}"
        raise ValueError(f"per_sample_weights and input must have one shape, got {shapes}")


def drop_padding(
    ids: Tensor, ends: Tensor, weights: Tensor | None, padding_idx: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same bags without padding, which neither adds to a sum nor counts in a mean."""
    weights = None if weights is None else weights[: ids.shape[0]]  # `bag_ends` may have cut the ids
    if padding_idx is None or not bool((padding := ids == padding_idx).any()):
        return ids, ends, weights
    before = torch.nn.functional.pad(padding.cumsum(0), (1, 0))
    return ids[~padding], ends - before[ends], None if weights is None else weights[~padding]
