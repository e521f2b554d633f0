"""DONE: two autoencoders, of features and of adjacency rows, that agree on the nodes which are no outliers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.autograd import CSRGraph, spmm
from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers._deep import DeepDetector
from graphlossy.outliers._layers import split_layers
from graphlossy.outliers.methods._neighbors import neighbor_distance
from graphlossy.outliers.methods._networks import mlp_layers, needs_two_nodes
from graphlossy.outliers.structure import check_structure, dense_structure_error, structure_error

__all__ = ["DONE", "TwoAutoencoders"]

_TINY = 1e-30  # below it a share is taken as this in its logarithm, where it is multiplied by 0


class TwoAutoencoders(nn.Module):
    """Autoencoders of the features X and of the adjacency rows A, with embeddings of one width.

    The first layer of the structure encoder is applied to the sparse rows, A W_in. The last layer of its decoder is
    not applied at all: its weights V are the columns of :func:`~graphlossy.outliers.structure.structure_error`,
    ||A_i - u_i V^T||^2. With ``dense`` both work on [N, N] matrices, which defines what they compute.
    """

    input: Any  # nn.Linear, whose parameters are used without calling it
    output: Any

    def __init__(self, graph: Graph, width: int, layers: int, dropout: float, dense: bool) -> None:
        super().__init__()
        encoder, decoder = split_layers(layers)
        nodes, features = graph.num_nodes, graph.num_features
        self.encode_x = nn.Sequential(*mlp_layers([features] + [width] * encoder, dropout))
        self.decode_x = nn.Sequential(*mlp_layers([width] * decoder + [features], dropout))
        self.input, *rest = mlp_layers([nodes] + [width] * encoder, dropout)
        self.encode_rows = nn.Sequential(*rest)
        *rest, self.output = mlp_layers([width] * decoder + [nodes], dropout)
        self.decode_rows = nn.Sequential(*rest)
        self.dense = dense
        self.incoming = CSRGraph(graph.edge_index, num_dst=nodes, num_src=nodes)

    def forward(self, graph: Graph) -> tuple[Tensor, ...]:
        """Embeddings of features and rows [N, h]; reconstruction errors and distances to neighbours of both, [N]."""
        h_x = self.encode_x(graph.x)
        error_x = (graph.x - self.decode_x(h_x)).square().sum(1)
        if self.dense:
            h_s = self.encode_rows(self.input(graph.dense_adjacency()))
        else:
            h_s = self.encode_rows(spmm(graph.adjacency, self.input.weight.t()) + self.input.bias)
        hidden = self.decode_rows(h_s)
        u = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
        v = torch.cat([self.output.weight, self.output.bias.unsqueeze(1)], 1)
        error_s = (dense_structure_error if self.dense else structure_error)(u, graph, columns=v)
        near_x, near_s = (neighbor_distance(self.incoming, h) for h in (h_x, h_s))
        return h_x, h_s, error_x, error_s, near_x, near_s


class DONE(DeepDetector):
    """Deep outlier aware attributed network embedding (Bandyopadhyay et al., WSDM 2020).

    One autoencoder reconstructs the features, one the rows of the adjacency matrix. With the reconstruction errors
    e^s, e^a of structure and attributes, the mean squared distances n^s, n^a of a node's embeddings from those of its
    neighbours, and the distance c between its two embeddings:

        o^s_i ~ w1 e^s_i + w2 n^s_i,   o^a_i ~ w3 e^a_i + w4 n^a_i,   o^c_i ~ c_i,   each with sum 1   (8), (9), (10)
        loss = mean_i log(1/o^s_i) (w1 e^s_i + w2 n^s_i) + log(1/o^a_i) (w3 e^a_i + w4 n^a_i) + w5 log(1/o^c_i) c_i  (7)

    so that outliers weigh less. score_i = (o^s_i + o^a_i + o^c_i) / 3. The shares o are constants in a step, as in the
    paper; letting gradients flow through them, as PyGOD does, gives the same gradient, because those of
    sum_i d_i log(sum_j d_j / d_i) through the two places of d cancel but for log(1/o_i).

    Memory is linear though rows of length N are read and written: the first layer works on sparse rows and the error
    of the output needs the decoder's last weights only (exact, not sampled). The weights themselves are 2 N h.

    Args:
        w1: weight of the error of the rows.
        w2: weight of the neighbours' distance in the structure embedding.
        w3: weight of the error of the features.
        w4: weight of the neighbours' distance in the feature embedding.
        w5: weight of the distance between the embeddings.
        structure: ``"exact"``, linear, or ``"dense"``, the definition over [N, N] matrices.
        **options: those of :class:`~graphlossy.outliers._deep.DeepDetector`; ``num_layers`` is at least 2, half of
            them, rounded down, in the encoders.

    Attributes:
        structural_score_: o^s, [N].
        attribute_score_: o^a, [N].
        combined_score_: o^c, [N].

    Raises:
        ValueError: an argument is out of range, or the graph has a single node.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.eye(6), edge_index=torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]))
        >>> detector = DONE(epoch=3, hid_dim=4, seed=0).fit(data)
        >>> round(float(detector.structural_score_.sum()), 4), round(float(detector.decision_score_.sum()), 4)
        (1.0, 1.0)
    """

    name, title = "done", "DONE"
    paper = (
        "Bandyopadhyay et al., Outlier Resistant Unsupervised Deep Architectures for Attributed Network Embedding, "
        "WSDM 2020"
    )
    memory = "O(m + n d)"

    w1: float
    w2: float
    w3: float
    w4: float
    w5: float
    structural_score_: Tensor
    attribute_score_: Tensor
    combined_score_: Tensor

    def __init__(
        self,
        *,
        w1: float = 0.2,
        w2: float = 0.2,
        w3: float = 0.2,
        w4: float = 0.2,
        w5: float = 0.2,
        structure: str = "exact",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, weight in (("w1", w1), ("w2", w2), ("w3", w3), ("w4", w4), ("w5", w5)):
            setattr(self, name, float(check_number(name, weight, 0)))
        self.structure = check_structure(structure, ("exact", "dense"), self.title)

    def _build(self, graph: Graph) -> nn.Module:
        needs_two_nodes(graph, self.title)
        return TwoAutoencoders(graph, self.hid_dim, self.num_layers, self.dropout, self.structure == "dense")

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        h_x, h_s, *errors = module(graph)
        structure, attributes = self._proximity(*errors)
        apart = (h_x - h_s).square().sum(1)
        score = self._shares(structure, attributes, apart)
        loss = (
            _surprise(structure, self.structural_score_)
            + _surprise(attributes, self.attribute_score_)
            + self.w5 * _surprise(apart, self.combined_score_)
        )
        return score, loss

    def _proximity(self, error_x: Tensor, error_s: Tensor, near_x: Tensor, near_s: Tensor) -> tuple[Tensor, Tensor]:
        return self.w1 * error_s + self.w2 * near_s, self.w3 * error_x + self.w4 * near_x

    def _shares(self, structure: Tensor, attributes: Tensor, apart: Tensor) -> Tensor:
        """Keeps the three shares, constants, and returns their mean."""
        self.structural_score_, self.attribute_score_, self.combined_score_ = (
            (part / part.sum().clamp(min=_TINY)).detach() for part in (structure, attributes, apart)
        )
        return (self.structural_score_ + self.attribute_score_ + self.combined_score_) / 3


def _surprise(distance: Tensor, share: Tensor) -> Tensor:
    """mean_i log(1/o_i) d_i."""
    return (-share.clamp(min=_TINY).log() * distance).mean()
