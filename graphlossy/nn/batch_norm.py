"""PyG's batch norm keeping its normalised input in low bits."""

from __future__ import annotations

import torch
import torch_geometric.nn
from torch import Tensor

from graphlossy.autograd import batch_norm
from graphlossy.autograd._packed import check_bits

__all__ = ["BatchNorm", "batch_statistics_momentum"]


def batch_statistics_momentum(module: torch.nn.BatchNorm1d) -> float:
    """Count a training batch; the momentum to use for it (torch's rule: a running average if ``momentum`` is None)."""
    if not module.track_running_stats or module.num_batches_tracked is None:
        return 0.0 if module.momentum is None else module.momentum
    module.num_batches_tracked.add_(1)
    return 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum


class BatchNorm(torch_geometric.nn.BatchNorm):
    """Batch norm as ``torch_geometric.nn.BatchNorm`` (Ioffe and Szegedy, ICML 2015): y = w (x - mean) / std + b.

    Kept per element: bits + 32 / 256 bits of (x - mean) / std. Evaluation mode and ``bits=None`` take torch's own path.

    Args:
        in_channels: C.
        eps: added to the variance.
        momentum: of the running statistics; None: a plain average.
        affine: learn w and b.
        track_running_stats: keep running statistics.
        allow_single_element: normalise a batch of one row by the running statistics.
        device: of the parameters.
        bits: 1, 2, 3, 4, 8 or None (exact).

    Shapes:
        [N, C] -> [N, C]

    Example:
        >>> BatchNorm(16, bits=2)(torch.randn(100, 16)).shape
        torch.Size([100, 16])
    """

    def __init__(
        self,
        in_channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        allow_single_element: bool = False,
        device: torch.device | None = None,
        *,
        bits: int | None = 2,
    ):
        check_bits(bits)
        super().__init__(in_channels, eps, momentum, affine, track_running_stats, allow_single_element, device)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if self.bits is None or not takes_batch_statistics(self, x):
            return super().forward(x)
        norm = self.module
        momentum = batch_statistics_momentum(norm)
        return batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, momentum, norm.eps, bits=self.bits
        )


def takes_batch_statistics(module: torch_geometric.nn.BatchNorm, x: Tensor) -> bool:
    """Whether ``x`` [N, C] is normalised by its own statistics."""
    single = module.allow_single_element and x.size(0) <= 1
    return module.training and not single and x.dim() == 2
