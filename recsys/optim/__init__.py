"""Optimizers that touch only the rows of the batch, of float tables and of low-bit ones, beside dense parameters."""

from graphlossy.recsys.optim.rowwise_adagrad import RowwiseAdagrad
from graphlossy.recsys.optim.sparse_adamw import SparseAdamW

__all__ = ["RowwiseAdagrad", "SparseAdamW"]
