"""The layers of the graph autoencoders: graph convolutions over one prepared sparse matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphlossy.autograd import CSRGraph, spmm
from graphlossy.outliers._checks import Graph, check_number

__all__ = ["GCN", "GCNLayer", "GraphAutoencoder", "split_layers"]


class GCNLayer(nn.Module):
    """A' X W + b with the normalised A' of :attr:`Graph.gcn_adjacency` (Kipf and Welling, ICLR 2017, equation 2).

    The product with A' is taken on the narrower side of W, where PyG always takes the output: the same numbers up to
    rounding, and no N x F messages where F features are decoded from a few hidden ones.

    Args:
        in_channels: F.
        out_channels: C.
        bias: False leaves b out.

    Shapes:
        x [N, F] -> [N, C]
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(out_channels, in_channels)))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, adjacency: CSRGraph) -> Tensor:
        if self.weight.size(0) > self.weight.size(1):
            return F.linear(spmm(adjacency, x), self.weight, self.bias)
        out = spmm(adjacency, F.linear(x, self.weight))
        return out if self.bias is None else out + self.bias


class GCN(nn.Module):
    """Graph convolutions with ReLU and dropout between them, none after the last; no layers: the identity.

    Args:
        in_channels: width of the input.
        hidden_channels: width between the layers.
        out_channels: width of the output.
        num_layers: how many.
        dropout: share of the hidden elements set to zero in training.
        bias: whether the layers have biases.

    Shapes:
        x [N, in_channels] -> [N, out_channels]
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        dropout: float,
        bias: bool = True,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels][: num_layers + 1]
        self.layers = nn.ModuleList(GCNLayer(a, b, bias) for a, b in zip(widths, widths[1:], strict=False))
        self.dropout = dropout

    def forward(self, x: Tensor, adjacency: CSRGraph) -> Tensor:
        for i, layer in enumerate(self.layers):
            if i:
                x = F.dropout(F.relu(x), self.dropout, self.training)
            x = layer(x, adjacency)
        return x


class GraphAutoencoder(nn.Module):
    """One encoder, a decoder of the features, and one of the embeddings whose products rebuild the adjacency matrix.

    DOMINANT's network (Ding et al., SDM 2019, section 4.2): half of the layers encode, half decode; the last layer of
    the structure decoder is the product Z Z^T, which is left to the loss.

    Args:
        num_features: F.
        hid_dim: d.
        num_layers: of encoder and decoder together, at least 2.
        dropout: share of the hidden elements set to zero in training.
    """

    def __init__(self, num_features: int, hid_dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        encoding, decoding = split_layers(num_layers)
        self.num_features = num_features
        self.encoder = GCN(num_features, hid_dim, hid_dim, encoding, dropout)
        self.attribute_decoder = GCN(hid_dim, hid_dim, num_features, decoding, dropout)
        self.structure_decoder = GCN(hid_dim, hid_dim, hid_dim, decoding - 1, dropout)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """The embeddings [N, d], the rebuilt features [N, F], and Z [N, d]."""
        hidden = self.encoder(graph.x, graph.gcn_adjacency)
        rebuilt = self.attribute_decoder(hidden, graph.gcn_adjacency)
        return hidden, rebuilt, self.structure_decoder(hidden, graph.gcn_adjacency)


def split_layers(num_layers: int) -> tuple[int, int]:
    """How many of the layers encode and how many decode.

    Raises:
        ValueError: fewer than one of each.

    Example:
        >>> split_layers(5)
        (2, 3)
    """
    check_number("num_layers", num_layers, 2, integer=True)
    return num_layers // 2, num_layers - num_layers // 2
