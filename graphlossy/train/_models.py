"""The five graph networks of the main job, built from unmodified PyTorch Geometric layers and functional calls.

They are what a user would write: nothing in this file knows of compression.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GCN2", "MODELS", "GraphNet", "build_model"]

MODELS = {
    "gcn": "graph convolutional network (Kipf and Welling 2017)",
    "sage": "GraphSAGE with mean aggregation (Hamilton et al. 2017)",
    "gat": "graph attention network (Velickovic et al. 2018)",
    "gcn2": "GCNII: deep GCN with initial residual and identity mapping (Chen et al. 2020)",
    "gin": "graph isomorphism network (Xu et al. 2019)",
}


class GraphNet(nn.Module):
    """Convolutions with norm, activation and dropout between them, as in the OGB reference scripts.

    Args:
        convs: the convolutions; all but the last are followed by norm, activation and dropout.
        widths: output width of each convolution but the last.
        dropout: probability that dropout zeroes an element.
        norm: BatchNorm after every convolution but the last.
        activation: ``"relu"`` or ``"elu"``.
    """

    def __init__(
        self, convs: list[nn.Module], widths: list[int], dropout: float, norm: bool = True, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths) if norm else None
        self.dropout = dropout
        self.activation = activation

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        """Scores ``[N, out]`` from features ``x`` ``[N, in]`` and ``adj``, an edge_index or a sparse CSR ``adj_t``."""
        for i in range(len(self.convs)):
            x = self.layer(i, x, x, adj)
        return x

    def before(self, x: Tensor) -> Tensor:
        """What the first layer is given."""
        return x

    def layer(self, i: int, x: Tensor, x0: Tensor, adj: Tensor) -> Tensor:
        """Convolution ``i`` and what follows it; ``x0`` is for networks whose layers see the first hidden state."""
        x = self.convs[i](x, adj)
        if i == len(self.convs) - 1:
            return x
        if self.norms is not None:
            x = self.norms[i](x)
        x = F.elu(x) if self.activation == "elu" else F.relu(x)
        return F.dropout(x, p=self.dropout, training=self.training)

    def after(self, x: Tensor) -> Tensor:
        """The scores, from what the last layer returned."""
        return x


class GCN2(nn.Module):
    """GCNII (Chen et al. 2020, equation 5): every layer adds the first hidden state and a near-identity weight.

    Args:
        inputs: width of the features.
        hidden: width of all layers.
        out: number of scores per node.
        layers: number of convolutions.
        dropout: probability that dropout zeroes an element.
        norm: BatchNorm after every convolution.
        alpha: strength of the initial residual.
        theta: strength of the identity mapping, divided by the layer's number.
        normalize: whether the layers normalise the graph, once; otherwise its values are taken as they are.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        out: int,
        layers: int,
        dropout: float,
        norm: bool = True,
        alpha: float = 0.1,
        theta: float = 0.5,
        normalize: bool = True,
    ) -> None:
        from torch_geometric.nn import GCN2Conv

        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.convs = nn.ModuleList(
            GCN2Conv(hidden, alpha, theta, layer + 1, cached=normalize, normalize=normalize) for layer in range(layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers)) if norm else None
        self.last = nn.Linear(hidden, out)
        self.dropout = dropout

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        """Scores ``[N, out]`` from features ``x`` ``[N, in]`` and ``adj``, an edge_index or a sparse CSR ``adj_t``."""
        x = x0 = self.before(x)
        for i in range(len(self.convs)):
            x = self.layer(i, x, x0, adj)
        return self.after(x)

    def before(self, x: Tensor) -> Tensor:
        """The first hidden state."""
        return F.relu(self.first(x))

    def layer(self, i: int, x: Tensor, x0: Tensor, adj: Tensor) -> Tensor:
        """Dropout, convolution ``i``, norm and activation; ``x0`` is the first hidden state."""
        x = F.dropout(x, p=self.dropout, training=self.training)
        x = self.convs[i](x, x0, adj)
        if self.norms is not None:
            x = self.norms[i](x)
        return F.relu(x)

    def after(self, x: Tensor) -> Tensor:
        """The scores, from what the last layer returned."""
        return self.last(F.dropout(x, p=self.dropout, training=self.training))


def build_model(
    name: str,
    inputs: int,
    hidden: int,
    out: int,
    layers: int,
    dropout: float,
    norm: bool = True,
    heads: int = 4,
    normalize: bool = True,
) -> GraphNet | GCN2:
    """One of :data:`MODELS`, with weights drawn from torch's global generator.

    Args:
        name: key of :data:`MODELS`.
        inputs: width of the features.
        hidden: width of the hidden layers.
        out: number of scores per node.
        layers: number of convolutions.
        dropout: probability that dropout zeroes an element.
        norm: BatchNorm between the layers.
        heads: attention heads of ``"gat"``; must divide ``hidden``.
        normalize: whether the layers of ``"gcn"`` and ``"gcn2"`` normalise the graph, once, as it stays the same;
            False takes the values of a sparse matrix as they are.

    Raises:
        ValueError: ``name`` is not a key of :data:`MODELS`.

    Example:
        >>> import torch
        >>> model = build_model("gcn", inputs=8, hidden=16, out=3, layers=2, dropout=0.5)
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> model(torch.ones(3, 8), edge_index).shape
        torch.Size([3, 3])
    """
    from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

    if name == "gcn2":
        return GCN2(inputs, hidden, out, layers, dropout, norm, normalize=normalize)
    widths = [inputs, *[hidden] * (layers - 1), out]
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    if name == "gcn":
        convs: list[nn.Module] = [GCNConv(a, b, cached=normalize, normalize=normalize) for a, b in pairs]
    elif name == "sage":
        convs = [SAGEConv(a, b) for a, b in pairs]
    elif name == "gat":
        convs = [GATConv(a, b // heads, heads) for a, b in pairs[:-1]]
        convs.append(GATConv(*pairs[-1], heads, concat=False))
    elif name == "gin":
        convs = [GINConv(_perceptron(a, hidden, b, norm)) for a, b in pairs]
    else:
        raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    return GraphNet(convs, widths[1:-1], dropout, norm, activation="elu" if name == "gat" else "relu")


def _perceptron(inputs: int, hidden: int, out: int, norm: bool) -> nn.Sequential:
    middle = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(inputs, hidden), *middle, nn.ReLU(), nn.Linear(hidden, out))
