"""Compressed tables back as ordinary dense ones, for a runtime that knows nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphlossy.recsys.export._find import block_rows, core_of, dense_rows, pooling_of, replaced

__all__ = ["fold_dense"]


def fold_dense(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with `torch.nn.Embedding` and `torch.nn.EmbeddingBag` for its compressed tables.

    Projections are multiplied in and codes decoded: the rows are those that the compressed tables look up, bit for bit,
    in the same dtype, and take 4 V d bytes in float32. Tables that are shared stay shared, frozen ones stay frozen;
    ``padding_idx``, ``max_norm``, ``sparse`` and the mode of a bag are kept. One block of rows is made at a time beside
    the new table, and the compressed tables are not copied.

    Args:
        model: any module; a compressed table gives the dense table itself. It is left as it is.

    Raises:
        TypeError, ValueError: ``model`` is no module, or has no table.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> table = MultiSizeEmbedding(5, 8, sizes=[8, 4, 4, 1, 0])
        >>> dense = fold_dense(table)
        >>> dense, torch.equal(dense.weight, table(torch.arange(5)))
        (Embedding(5, 8), True)
    """
    weights: dict[int, nn.Parameter] = {}  # of tables that are looked up and pooled, by two modules

    def fold(table: Any) -> nn.Module | None:
        if isinstance(table, (nn.Embedding, nn.EmbeddingBag)):
            return None
        core = core_of(table)
        if id(core) not in weights:
            weights[id(core)] = _weight(core)
        return _module(core, table, weights[id(core)])

    return replaced(model, fold)


@torch.no_grad()
def _weight(core: Any) -> nn.Parameter:
    shape, step = (core.num_embeddings, core.embedding_dim), block_rows(core.embedding_dim)
    first = dense_rows(core, 0, min(1, shape[0]))
    out = torch.empty(shape, dtype=first.dtype, device=first.device)
    for start in range(0, shape[0], step):
        end = min(start + step, shape[0])
        out[start:end] = dense_rows(core, start, end)
    parameters = list(core.parameters())
    # Codes that are fixed have no parameter at all; what was rounded may be trained on as a dense table.
    return nn.Parameter(out, requires_grad=not parameters or any(p.requires_grad for p in parameters))


def _module(core: Any, table: Any, weight: nn.Parameter) -> nn.Module:
    settings = {
        name: getattr(core, name)
        for name in ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        if hasattr(core, name)
    }
    pooling = pooling_of(table)
    if pooling is None:
        dense: Any = nn.Embedding(core.num_embeddings, core.embedding_dim, **settings, _weight=weight)
    else:
        settings |= pooling._asdict()
        dense = nn.EmbeddingBag(core.num_embeddings, core.embedding_dim, **settings, _weight=weight)
    dense.weight = weight  # the parameter itself, with its requires_grad
    return dense
