"""PyG's layer norm keeping its normalised input in low bits."""

from __future__ import annotations

import torch
import torch_geometric.nn
from torch import Tensor

from graphlossy.autograd import layer_norm
from graphlossy.autograd._packed import check_bits

__all__ = ["LayerNorm"]


class LayerNorm(torch_geometric.nn.LayerNorm):
    """Layer norm as ``torch_geometric.nn.LayerNorm`` (Ba et al., 2016): y = w (x - mean) / std + b.

    Kept per element: bits + 32 / 256 bits of (x - mean) / std, and one number per node or graph. Evaluation mode and
    ``bits=None`` are exact.

    Args:
        in_channels: C.
        eps: for stability.
        affine: learn w and b.
        mode: ``"graph"``: statistics over all elements of a graph; ``"node"``: over the channels of a node.
        device: of the parameters.
        bits: 1, 2, 3, 4, 8 or None (exact).

    Shapes:
        [N, C], batch [N] (optional) -> [N, C]

    Example:
        >>> LayerNorm(16, mode="node", bits=2)(torch.randn(100, 16)).shape
        torch.Size([100, 16])
    """

    def __init__(
        self,
        in_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        mode: str = "graph",
        device: torch.device | None = None,
        *,
        bits: int | None = 2,
    ):
        check_bits(bits)
        super().__init__(in_channels, eps, affine, mode, device)
        self.bits = bits

    def forward(self, x: Tensor, batch: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        if self.bits is None or not self.training or x.dim() != 2:
            return super().forward(x, batch, batch_size)
        return layer_norm(x, self.weight, self.bias, self.eps, self.mode, batch, batch_size, bits=self.bits)
