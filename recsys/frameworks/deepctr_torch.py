"""DeepCTR-Torch sends ids through a matrix of float32."""

from __future__ import annotations

from torch import nn

from graphlossy.recsys._swap import core_of

__all__ = ["notes_on"]

LARGEST = 1 << 24  # float32 holds every whole number up to here


def notes_on(model: nn.Module) -> list[str]:
    """Names the tables whose last ids do not arrive: several of them become one float."""
    tables = [core for module in model.modules() if (core := core_of(module)) is not None]
    wide = {table.name: table.num_embeddings for table in tables if table.num_embeddings > LARGEST}
    return [
        f"{name}: DeepCTR-Torch carries ids as float32, which is exact up to {LARGEST:,}; of {count:,} tokens the ones "
        "beyond are read as their neighbours"
        for name, count in wide.items()
    ]
