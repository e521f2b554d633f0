"""Gives a `MultiSizeEmbedding` the form of the tables in a state_dict, so that a fresh module can load any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphlossy.core import multi_size
from graphlossy.recsys.rows import FloatRows, LowBitRows

if TYPE_CHECKING:
    from graphlossy.recsys.multi_size import MultiSizeEmbedding

__all__ = ["SHARED", "restructure"]

SHARED = "shared"  # the table of hashed rows


def restructure(module: MultiSizeEmbedding, state: dict[str, Any], prefix: str) -> str:
    """Replaces what has another form than in ``state``; an optimizer of the old parameters no longer applies.

    Nothing is done for a state of another number of tokens, which torch then refuses with its own message.

    Returns:
        What is wrong with the map of the state, which is then not to be loaded: kernels trust a map. Empty if nothing.
    """
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not {"bucket_sizes", "planes", "counts"} <= own.keys() or not _fits(module, own):
        return ""
    if wrong := _what_is_wrong(module.num_embeddings, own):
        return wrong
    flags = [param.requires_grad for param in module.parameters()]
    for name in ("planes", "counts", "bucket_sizes"):
        setattr(module, name, torch.empty_like(own[name], device=module.device))
    kinds = module._kinds = own["bucket_sizes"].tolist()
    module.shared_rows, module.shared_size = _shape(own, SHARED) or (0, 0)
    widths = [size or module.shared_size for size in kinds]
    keys = [module._key(k) for k, size in enumerate(widths) if size]
    for key in keys:
        module.tables[key] = _table(module, own, key)
    for key in set(module.tables) - set(keys):
        del module.tables[key]
    stored = {name.removeprefix("projections."): p for name, p in own.items() if name.startswith("projections.")}
    if stored:
        module.projection = "nested" if "nested" in stored else "per_size"
    for key in set(module.projections) - set(stored):
        del module.projections[key]
    for key, value in stored.items():
        if key not in module.projections or module.projections[key].shape != value.shape:
            module.projections[key] = nn.Parameter(module.like.new_empty(value.shape))
    if flags and not any(flags):
        module.requires_grad_(False)  # the new parameters of a frozen table
    return ""


def _what_is_wrong(tokens: int, own: dict[str, Tensor]) -> str:
    kinds, planes, counts = own["bucket_sizes"].tolist(), own["planes"], own["counts"]
    rows = [tokens]
    if len(kinds) > 1:
        if planes.dtype != torch.int64:
            return f"the planes of its map are {planes.dtype}, not int64"
        codes = multi_size.unpack_codes(planes, tokens)
        if tokens and int(codes.max()) >= len(kinds):
            return f"its map names bucket {int(codes.max())} of {len(kinds)}"
        expected = multi_size.rank_map(codes, len(kinds))[1]
        if counts.dtype != expected.dtype or not torch.equal(counts, expected):
            return "the counts of its map do not go with the planes"
        rows = torch.bincount(codes.to(torch.int64), minlength=len(kinds)).tolist()
    for size, count in zip(kinds, rows, strict=True):
        shape = _shape(own, str(size)) if size else None
        if shape is not None and shape != (count, size):
            return f"its table {size} is {shape}, by the map it has {count} rows of {size}"
    return ""


def _fits(module: MultiSizeEmbedding, own: dict[str, Tensor]) -> bool:
    kinds = own["bucket_sizes"].tolist()
    matrices = {name.removeprefix("projections."): p for name, p in own.items() if name.startswith("projections.")}
    widths = [size or (_shape(own, SHARED) or (0, 0))[1] for size in kinds]
    narrow = [str(size) for size in widths if 0 < size < module.embedding_dim]
    if any(p.shape[1] != module.embedding_dim for p in matrices.values()) or max(widths) > module.embedding_dim:
        return False
    if "nested" not in matrices and not set(narrow) <= matrices.keys():
        return False
    if len(kinds) > 1:
        return own["planes"].shape[0] == -(-module.num_embeddings // 64) * (len(kinds) - 1).bit_length()
    shape = _shape(own, str(kinds[0])) if kinds and kinds[0] else None
    return shape is None or shape[0] == module.num_embeddings


def _shape(own: dict[str, Tensor], key: str) -> tuple[int, int] | None:
    if (weight := own.get(f"tables.{key}.weight")) is not None:
        return weight.shape[0], weight.shape[1]
    meta = own.get(f"tables.{key}.meta")
    return None if meta is None else (int(meta[2]), int(meta[3]))


def _table(module: MultiSizeEmbedding, own: dict[str, Tensor], key: str) -> FloatRows | LowBitRows:
    old = module.tables[key] if key in module.tables else None
    meta = own.get(f"tables.{key}.meta")
    if meta is not None:
        module.sparse = module.sparse or bool(meta[4])
        same = isinstance(old, LowBitRows) and old.meta().tolist() == meta.tolist()
        return old if same else LowBitRows.like(meta, module.device)  # an optimizer may hold the old one's handle
    shape = _shape(own, key)
    if isinstance(old, FloatRows) and (shape is None or tuple(old.shape) == shape):
        return old
    return FloatRows(module.like.new_empty(shape or (0, 0)))
