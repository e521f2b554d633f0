"""Recommender models with lossy embedding tables.

>>> import torch
>>> from graphlossy.recsys import MultiSizeEmbedding
>>> table = MultiSizeEmbedding(1000, 32, sizes=[32] * 100 + [4] * 900)
>>> table(torch.tensor([3, 999])).shape, table.nbytes < 1000 * 32 * 4 / 4
(torch.Size([2, 32]), True)
"""

if __name__ != "graphlossy.recsys":
    from graphlossy._checkout import hand_over

    hand_over(__name__, __file__)
else:
    from graphlossy.recsys.allocate import multi_size_bytes
    from graphlossy.recsys.base import BagOf, CompressedEmbedding, IdError
    from graphlossy.recsys.compress import apply_plan, compress_embeddings, finish, restore_dense
    from graphlossy.recsys.methods import METHODS, make_method, search
    from graphlossy.recsys.multi_size import MultiSizeEmbedding
    from graphlossy.recsys.multi_size_bag import MultiSizeEmbeddingBag
    from graphlossy.recsys.optim import RowwiseAdagrad, SparseAdamW
    from graphlossy.recsys.plan import BudgetError, EmbeddingPlan, TablePlan
    from graphlossy.recsys.resize import ResizeReport, append_tokens, rebalance, refit, resize_rows

    __all__ = [
        "BagOf",
        "BudgetError",
        "CompressedEmbedding",
        "EmbeddingPlan",
        "IdError",
        "METHODS",
        "MultiSizeEmbedding",
        "MultiSizeEmbeddingBag",
        "ResizeReport",
        "RowwiseAdagrad",
        "SparseAdamW",
        "TablePlan",
        "append_tokens",
        "apply_plan",
        "compress_embeddings",
        "finish",
        "make_method",
        "multi_size_bytes",
        "rebalance",
        "refit",
        "resize_rows",
        "restore_dense",
        "search",
    ]
