"""The benchmarked networks: plain PyG layers with functional calls, and twins of graphlossy.nn's layers.

The plain networks are written as OGB's examples are, and nothing in them knows of compression. ``call``, where it is
given, runs a layer checkpointed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MODELS", "build"]

MODELS = ("gcn", "sage", "gat", "gcn2")
HEADS = 3
Call = Callable[..., Tensor]


class ConvNet(nn.Module):
    """Convolution, BatchNorm (if ``norm``), ReLU and dropout in every layer but the last, a convolution only."""

    def __init__(
        self, convs: list[nn.Module], widths: list[int], dropout: float, norm: bool = True, input_dropout: bool = False
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) if norm else nn.Identity() for width in widths)
        self.dropout, self.input_dropout = dropout, input_dropout

    def layer(self, i: int, x: Tensor, adj: Tensor) -> Tensor:
        x = self.convs[i](x, adj)
        x = self.norms[i](x)
        x = F.relu(x)
        return F.dropout(x, p=self.dropout, training=self.training)

    def forward(self, x: Tensor, adj: Tensor, call: Call | None = None) -> Tensor:
        if self.input_dropout:
            x = F.dropout(x, p=self.dropout, training=self.training)
        if call is not None:
            for i in range(len(self.norms)):
                x = call(self.layer, i, x, adj)
            return call(self.convs[-1], x, adj)
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = conv(x, adj)
            x = norm(x)
            x = F.relu(x)
            x = F.dropout(x, p=self.dropout, training=self.training)
        return self.convs[-1](x, adj)


class GCN2Net(nn.Module):
    """GCNII (Chen et al., ICML 2020) with BatchNorm: linear, ReLU, dropout, L layers, linear."""

    def __init__(self, features: int, hidden: int, classes: int, convs: list[nn.Module], dropout: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(features, hidden), nn.Linear(hidden, classes)
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in convs)
        self.dropout = dropout

    def layer(self, i: int, x: Tensor, x_0: Tensor, adj: Tensor) -> Tensor:
        x = self.convs[i](x, x_0, adj)
        x = self.norms[i](x)
        x = F.relu(x)
        return F.dropout(x, p=self.dropout, training=self.training)

    def forward(self, x: Tensor, adj: Tensor, call: Call | None = None) -> Tensor:
        x = x_0 = F.relu(self.first(x))
        x = F.dropout(x, p=self.dropout, training=self.training)
        if call is not None:
            for i in range(len(self.convs)):
                x = call(self.layer, i, x, x_0, adj)
            return self.last(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x, x_0, adj)
            x = norm(x)
            x = F.relu(x)
            x = F.dropout(x, p=self.dropout, training=self.training)
        return self.last(x)


class LossyConvNet(nn.Module):
    """:class:`ConvNet` from graphlossy.nn's layers."""

    def __init__(
        self, convs: list[nn.Module], widths: list[int], dropout: float, norm: bool = True,
        input_dropout: bool = False, bits: int = 2,
    ) -> None:  # fmt: skip
        from graphlossy.nn import Dropout, NormActDropout

        super().__init__()
        self.convs = nn.ModuleList(convs)
        kind = "batch" if norm else None
        self.blocks = nn.ModuleList(NormActDropout(width, kind, dropout, bits=bits) for width in widths)
        self.input = Dropout(dropout) if input_dropout else nn.Identity()

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = self.input(x)
        for conv, block in zip(self.convs, self.blocks, strict=False):
            x = conv(x, adj)
            x = block(x)
        return self.convs[-1](x, adj)


class LossyGCN2Net(nn.Module):
    """:class:`GCN2Net` from graphlossy.nn's layers."""

    def __init__(
        self, features: int, hidden: int, classes: int, convs: list[nn.Module], dropout: float, bits: int = 2
    ) -> None:
        from graphlossy.nn import Dropout, Linear, NormActDropout, ReLU

        super().__init__()
        self.first, self.last = Linear(features, hidden, bits=bits), Linear(hidden, classes, bits=bits)
        self.convs = nn.ModuleList(convs)
        self.blocks = nn.ModuleList(NormActDropout(hidden, p=dropout, bits=bits) for _ in convs)
        self.relu, self.dropout = ReLU(), Dropout(dropout)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x_0 = self.relu(self.first(x))
        x = self.dropout(x_0)
        for conv, block in zip(self.convs, self.blocks, strict=True):
            x = conv(x, x_0, adj)
            x = block(x)
        return self.last(x)


def build(
    name: str,
    *,
    features: int,
    hidden: int,
    classes: int,
    layers: int,
    dropout: float,
    normalize: bool = True,
    bits: int | None = None,
    norm: bool = True,
    input_dropout: bool = False,
) -> nn.Module:
    """One of :data:`MODELS`: PyG's layers, or graphlossy.nn's where ``bits`` is given.

    Args:
        name: gcn, sage, gat (``hidden`` channels in each of three heads) or gcn2.
        features: D of the input.
        hidden: C of the hidden layers.
        classes: of the output.
        layers: convolutions.
        dropout: probability.
        normalize: False if the graph comes with GCN's self-loops and normalisation.
        bits: of graphlossy.nn's layers; None for PyG's.
        norm: BatchNorm in the hidden layers (gcn2 always has it).
        input_dropout: dropout of the features, as in Kipf and Welling's GCN.
    """
    if bits is None:
        import torch_geometric.nn as library

        lossy: dict[str, Any] = {}
    else:
        import graphlossy.nn as library  # type: ignore[no-redef]

        lossy = {"bits": bits}
    if name == "gcn2":
        convs = [library.GCN2Conv(hidden, 0.1, 0.5, i + 1, normalize=normalize, **lossy) for i in range(layers)]
        net = GCN2Net if bits is None else LossyGCN2Net
        return net(features, hidden, classes, convs, dropout, **lossy)
    widths = [hidden] * (layers - 1)
    if name == "gat":
        wide = [HEADS * width for width in widths]
        convs = [library.GATConv(a, hidden, HEADS, **lossy) for a in [features, *wide][: layers - 1]]
        convs.append(library.GATConv([features, *wide][-1], classes, HEADS, concat=False, **lossy))
        widths = wide
    else:
        pairs = list(zip([features, *widths], [*widths, classes], strict=True))
        if name == "gcn":
            convs = [library.GCNConv(a, b, normalize=normalize, **lossy) for a, b in pairs]
        elif name == "sage":
            convs = [library.SAGEConv(a, b, **lossy) for a, b in pairs]
        else:
            raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    net = ConvNet if bits is None else LossyConvNet
    return net(convs, widths, dropout, norm, input_dropout, **lossy)
