"""PyG's linear layer keeping its input in low bits."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch_geometric.nn
from torch import Tensor

from graphlossy.autograd import linear
from graphlossy.autograd._packed import check_bits

__all__ = ["Linear", "is_plain_linear", "lossy_linear", "materialize"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Linear(torch_geometric.nn.Linear):
    """x W^T + b as ``torch_geometric.nn.Linear`` (or ``torch.nn.Linear``: the keys are the same), input in ``bits``
    bits.

    Kept per element of x: bits + 32 / 256 bits, or nothing; see :func:`graphlossy.autograd.linear`. In evaluation mode
    the gradient is exact.

    Args:
        in_channels: width of the input, or -1 to take it from the first one.
        out_channels: width of the output.
        bias: learn an additive bias.
        weight_initializer: ``"glorot"``, ``"uniform"``, ``"kaiming_uniform"`` or None.
        bias_initializer: ``"zeros"`` or None.
        bits: 1, 2, 3, 4, 8, or None for an exact gradient.

    Shapes:
        [..., in_channels] -> [..., out_channels]

    Example:
        >>> layer, plain = Linear(64, 8, bits=2), torch_geometric.nn.Linear(64, 8)
        >>> layer.load_state_dict(plain.state_dict())
        <All keys matched successfully>
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        weight_initializer: str | None = None,
        bias_initializer: str | None = None,
        *,
        bits: int | None = 2,
    ):
        check_bits(bits)
        super().__init__(in_channels, out_channels, bias, weight_initializer, bias_initializer)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, bits=self.bits if self.training else None)


def is_plain_linear(module: torch.nn.Module) -> bool:
    """Whether calling ``module`` does no more than its weight and bias say.

    Not if it has hooks (pruning, weight norm, lazy initialisation) or has been replaced, as by an adapter; a
    parametrized weight is computed where it is read.
    """
    own = getattr(type(module), "forward", None) in (Linear.forward, torch_geometric.nn.Linear.forward)
    return own and "forward" not in vars(module) and not any(getattr(module, hooks) for hooks in _HOOKS)


def materialize(module: torch.nn.Module, x: Tensor) -> None:
    """Let a lazy layer draw its weights for input ``x`` now: before any rounding seed, as in PyG's layers."""
    if isinstance(getattr(module, "weight", None), torch.nn.UninitializedParameter) and hasattr(module, "_hook"):
        cast(Any, module).initialize_parameters(module, (x,))


def lossy_linear(module: torch_geometric.nn.Linear, bits: int | None) -> Linear:
    """Turn PyG's layer into ours in place: the same object, parameters and pending lazy initialisation."""
    module.__class__ = Linear
    module.bits = bits
    return module
