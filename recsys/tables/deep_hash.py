"""`DHEmbedding`: no table, a network makes the row of a token from many hashes of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.tables._base import Table, check_at_least
from graphlossy.recsys.tables._budget import largest_that_fits
from graphlossy.recsys.tables._mixing import hash_key, hash_words

__all__ = ["DHEmbedding"]

ENCODINGS = ("uniform", "gaussian")
MOST_HASHES = 1024  # of a table for a budget; the paper's number
_MISH_RMS = 0.6726  # sqrt(E[mish(x)^2]) for x ~ N(0, 1)
_CODES = 1 << 20  # hashes that are made at a time
_ACTIVATIONS = 1 << 22  # elements of a layer that the scores make at a time


class DHEmbedding(Table):
    """Deep hash embedding (Kang et al., "Learning to embed categorical features without embedding tables", KDD 2021).

    A token is encoded as k real numbers, made from k integer hashes, and goes through ``depth`` layers of ``width``
    units with Mish and a linear one. Layer norms stand where the paper has batch norms, so that a row depends on its
    token alone, in training as in serving.

    Args:
        num_embeddings: tokens V.
        embedding_dim: width d of a row.
        num_hashes: k.
        width: units of a hidden layer.
        depth: hidden layers.
        encoding: ``"uniform"`` or ``"gaussian"`` numbers, of variance 1.
        padding_idx: token whose row is zero.
        sparse: must be False; the gradients of a network are dense.
        seed: of the hashes.
        init_std: standard deviation of an element of a row.
        device, dtype: as in torch.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> table = DHEmbedding(10**6, 16, num_hashes=32, width=32, depth=2)
        >>> table(torch.tensor([3, 999_999])).shape, table.nbytes
        (torch.Size([2, 16]), 11080)
    """

    kind = "dhe"
    gives_sparse = False
    _sizing = ("num_hashes", "depth")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_hashes: int = 128,
        width: int = 128,
        depth: int = 2,
        encoding: str = "uniform",
        padding_idx: int | None = None,
        sparse: bool = False,
        *,
        seed: int = 0,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse, init_std)
        self.num_hashes = check_at_least("num_hashes", num_hashes, 1)
        self.width, self.depth = check_at_least("width", width, 1), check_at_least("depth", depth, 1)
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding must be one of {ENCODINGS}, got {encoding!r}")
        self.encoding = encoding
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(width if i else num_hashes, width, **place), nn.LayerNorm(width, **place), nn.Mish()]
        self.network = nn.Sequential(*layers, nn.Linear(width, embedding_dim, **place))
        self.register_buffer("key", hash_key(seed, device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for layer in self.network:
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        self.network[-1].weight *= self.init_std / _MISH_RMS

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """[N, num_hashes] numbers of mean 0 and variance 1, the same for a token always."""
        codes = torch.empty((ids.shape[0], self.num_hashes), dtype=self.dtype, device=ids.device)
        step = max(1, _CODES // self.num_hashes)
        for start in range(0, ids.shape[0], step):
            words = hash_words(ids[start : start + step], self.key, self.num_hashes)
            # 23 of the bits, at the middle of their interval: exact in float32 and never -1 or 1
            uniform = ((words >> 41).to(torch.float32) + 0.5) * 2.0**-22
            codes[start : start + step] = (
                uniform * 3**0.5 if self.encoding == "uniform" else torch.erfinv(uniform) * 2**0.5
            )
        return codes

    def _rows(self, ids: Tensor) -> Tensor:
        different, inverse = ids.unique(return_inverse=True)
        return self.network(self.encode(different))[inverse]

    def scores(self, queries: Tensor) -> Tensor:
        """Products [B, V] of ``queries`` [B, d] with all rows, which are made in blocks."""
        self.check_queries(queries)
        step = max(1, _ACTIVATIONS // max(self.embedding_dim, self.width, self.num_hashes))
        ids = torch.arange(self.num_embeddings, device=self.device)
        blocks = [queries @ self.rows(part).to(queries.dtype).T for part in ids.split(step)]
        return torch.cat(blocks, dim=1) if blocks else queries.new_empty((queries.shape[0], 0))

    @classmethod
    def bytes_of(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype = torch.float32,
        *,
        num_hashes: int = 128,
        width: int = 128,
        depth: int = 2,
        **_: Any,
    ) -> int:
        hidden = (num_hashes + (depth - 1) * width) * width + 3 * depth * width  # a bias, a gain and a shift
        return (hidden + (width + 1) * embedding_dim) * dtype.itemsize + 8

    @classmethod
    def options_for_budget(
        cls, num_embeddings: int, embedding_dim: int, nbytes: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> dict[str, Any]:
        """As for `Table`; where ``num_hashes`` is not given it is the width, up to 1024."""
        depth = check_at_least("depth", options.get("depth", 2), 1)

        def chosen(width: int) -> dict[str, Any]:
            return {"num_hashes": min(width, MOST_HASHES), **options, "depth": depth, "width": width}

        def size(width: int) -> int:
            return cls.bytes_of(num_embeddings, embedding_dim, dtype, **chosen(width))

        what = f"a deep hash embedding of width {embedding_dim}"
        return chosen(largest_that_fits(size, nbytes, 1, max(1, nbytes), what))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.num_hashes} hashes"
