"""The tables of a model, their bytes, what of them has sparse gradients, and the time of a lookup."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.base import BagOf, CompressedEmbedding
from graphlossy.recsys.rows import FloatRows, LowBitRows
from graphlossy.recsys.tables._base import Table

__all__ = ["largest_table", "lookup_ms", "make_sparse", "sparse_parameters", "table_bytes", "tables_of"]

TABLES = (nn.Embedding, nn.EmbeddingBag, CompressedEmbedding, BagOf)
IDS = 8192


def tables_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every table of a model by its path, plain or compressed; one that is shared comes once.

    Example:
        >>> list(tables_of(nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1))))
        ['0']
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, path: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        if isinstance(module, TABLES):
            found[path] = module
            return
        for name, child in module.named_children():
            visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return found


def table_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of tables as they would be saved: values, maps, scales, projections and padding."""
    total = 0
    for module in modules:
        nbytes = getattr(module, "nbytes", None)
        if nbytes is None:
            nbytes = sum(t.numel() * t.element_size() for t in module.state_dict().values())
        total += int(nbytes)
    return total


def make_sparse(model: nn.Module) -> None:
    """Has every table that can give sparse gradients give them."""
    for table in tables_of(model).values():
        for module in table.modules():
            if hasattr(module, "sparse") and getattr(module, "gives_sparse", True):
                module.sparse = True


def sparse_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients are sparse: those of tables that were asked for them, and low-bit rows."""
    found: dict[int, nn.Parameter] = {}
    for table in tables_of(model).values():
        for module in table.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
                rows: list[Any] = [module.weight]
            elif isinstance(module, Table):  # all that it looks up
                rows = list(module.parameters()) if module.sparse else []
            elif getattr(module, "sparse", False) or isinstance(module, LowBitRows):
                rows = [m.trainable for m in module.modules() if isinstance(m, (FloatRows, LowBitRows))]
            else:
                continue
            found |= {id(p): p for p in rows if isinstance(p, nn.Parameter) and p.requires_grad}
    return list(found.values())


def largest_table(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Path and module of the table with the most rows, the widest among equals; None if there is no table."""
    tables = tables_of(model)
    if not tables:
        return None
    name = max(tables, key=lambda path: (tables[path].num_embeddings, tables[path].embedding_dim))
    return name, tables[name]


@torch.no_grad()
def lookup_ms(table: nn.Module, counts: Tensor | None, seed: int = 0, repeats: int = 15) -> float:
    """Milliseconds of a lookup of 8,192 ids, the median of several.

    Args:
        table: called with int64 ids [8192], a bag with [8192, 1].
        counts: how often every token was seen, [V]: ids are drawn in proportion; None draws them evenly.
        seed: of the ids.
        repeats: lookups that are timed, after three that are not.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(table.num_embeddings) if counts is None else counts.to("cpu", torch.float64)
    if not bool(weights.sum() > 0):
        weights = torch.ones(table.num_embeddings)
    total = weights.double().cumsum(0)  # torch.multinomial has room for 2^24 tokens only
    ids = torch.searchsorted(total, torch.rand(IDS, generator=generator, dtype=torch.float64) * total[-1], right=True)
    device = next((t.device for t in (*table.parameters(), *table.buffers())), torch.device("cpu"))
    ids = ids.clamp_(max=len(total) - 1).to(device)
    bag = isinstance(table, (nn.EmbeddingBag, BagOf)) or hasattr(table, "include_last_offset")
    ids = ids.unsqueeze(1) if bag else ids
    times = []
    for _ in range(repeats + 3):
        begin = time.perf_counter()
        table(ids)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times[3:])
