"""Compressed tables that give every token the same form of row, each buildable for a number of bytes.

>>> from graphlossy.recsys.tables import KINDS
>>> {kind: table.for_budget(10_000, 16, 64_000).nbytes for kind, table in KINDS.items()}
{'hash': 63944, 'qr': 64000, 'tt': 63936, 'robe': 64000, 'dhe': 63912, 'pruned': 63998}
"""

from __future__ import annotations

from graphlossy.recsys.tables._base import Table
from graphlossy.recsys.tables._budget import BudgetError
from graphlossy.recsys.tables.deep_hash import DHEmbedding
from graphlossy.recsys.tables.hashing import HashEmbedding
from graphlossy.recsys.tables.pruned import PrunedEmbedding
from graphlossy.recsys.tables.quotient_remainder import QREmbedding
from graphlossy.recsys.tables.robe import ROBEEmbedding
from graphlossy.recsys.tables.tensor_train import TTEmbedding

__all__ = ["BudgetError", "DHEmbedding", "HashEmbedding", "KINDS", "PrunedEmbedding", "QREmbedding", "ROBEEmbedding",
           "TTEmbedding", "Table"]  # fmt: skip

KINDS: dict[str, type[Table]] = {
    table.kind: table
    for table in (HashEmbedding, QREmbedding, TTEmbedding, ROBEEmbedding, DHEmbedding, PrunedEmbedding)
}
