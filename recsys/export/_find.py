"""The embedding tables of a model, compressed or not, and copies of the model with others in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from graphlossy.recsys.base import BagOf, CompressedEmbedding
from graphlossy.recsys.multi_size import MultiSizeEmbedding

__all__ = ["TABLES", "Pooling", "block_rows", "core_of", "dense_rows", "pooling_of", "replaced", "settled", "tables_of"]

TABLES = (BagOf, CompressedEmbedding, nn.Embedding, nn.EmbeddingBag)
_BLOCK = 1 << 22  # elements of the full table that are made at a time
_New = TypeVar("_New", bound=nn.Module)


class Pooling(NamedTuple):
    """How a bag pools: mode ``"sum"``, ``"mean"`` or ``"max"``, and torch's ``include_last_offset``."""

    mode: str
    include_last_offset: bool


def tables_of(model: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every table by its path, a shared one under each of its paths.

    Args:
        model: a model, a table (its path is its ``name``, or ``"table"``), or tables by names.

    Raises:
        TypeError, ValueError: there is no table, or something else among them.
    """
    if isinstance(model, Mapping):
        for name, table in model.items():
            if not isinstance(name, str) or not isinstance(table, TABLES):
                raise TypeError(f"tables must be embedding tables by names, got {name!r}: {type(table).__name__}")
        found = dict(model)
    elif isinstance(model, TABLES):
        found = {getattr(core_of(model), "name", "") or "table": model}
    elif isinstance(model, nn.Module):
        found = dict(_walk(model, ""))
    else:
        raise TypeError(f"model must be a torch.nn.Module or tables by names, got {type(model).__name__}")
    if not found:
        raise ValueError("model has no embedding table: no compressed one, no torch.nn.Embedding or EmbeddingBag")
    return found


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module._modules.items():
        below = f"{path}.{name}" if path else name
        if isinstance(child, TABLES):
            yield below, child
        elif child is not None:
            yield from _walk(child, below)


def core_of(table: nn.Module) -> Any:
    """The table itself: of a `BagOf`, what it pools."""
    return table.embedding if isinstance(table, BagOf) else table


def pooling_of(table: nn.Module) -> Pooling | None:
    """How a table pools; None for one that looks up."""
    mode, last = getattr(table, "mode", None), getattr(table, "include_last_offset", None)
    return None if last is None else Pooling(str(mode), bool(last))


def replaced(model: nn.Module, convert: Callable[[nn.Module], _New | None]) -> nn.Module:
    """A deep copy of ``model`` with ``convert(table)`` for each table; the old ones are not copied.

    Args:
        model: a model, or a table.
        convert: called once for a table that hangs at several places; None leaves it as it is.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    memo: dict[int, Any] = {}
    for table in tables_of(model).values():
        if id(table) not in memo and (new := convert(table)) is not None:
            new.train(table.training)
            memo[id(table)] = new
    return copy.deepcopy(model, memo)


def block_rows(dim: int) -> int:
    """Rows of width ``dim`` to make at a time."""
    return max(1, _BLOCK // max(1, dim))


@torch.no_grad()
def dense_rows(table: Any, start: int, end: int) -> Tensor:
    """[end - start, d] of neighbouring tokens as a table without ``max_norm`` looks them up."""
    if isinstance(table, (nn.Embedding, nn.EmbeddingBag)):
        return table.weight[start:end].detach()
    return table.rows(torch.arange(start, end, device=table.device)).detach()


@torch.no_grad()
def settled(table: Any) -> Any:
    """``table``, or a copy with equal rows where a lookup would shrink rows to ``max_norm`` first."""
    if getattr(table, "max_norm", None) is None:
        return table
    table = copy.deepcopy(table)
    step = block_rows(table.embedding_dim)
    for start in range(0, table.num_embeddings, step):
        end = min(start + step, table.num_embeddings)
        if isinstance(table, MultiSizeEmbedding):
            table._renormalize(torch.arange(start, end, device=table.device))
        else:
            ids = torch.arange(start, end, device=table.weight.device)
            torch.embedding_renorm_(table.weight.data, ids, table.max_norm, table.norm_type)
    table.max_norm = None
    return table
