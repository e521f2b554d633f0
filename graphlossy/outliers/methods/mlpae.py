"""An autoencoder of the features alone."""

from __future__ import annotations

from torch import Tensor, nn

from graphlossy.outliers._checks import Graph
from graphlossy.outliers._deep import DeepDetector
from graphlossy.outliers._layers import split_layers
from graphlossy.outliers.methods._networks import mlp_layers, needs_two_nodes

__all__ = ["MLPAE"]


class MLPAE(DeepDetector):
    """Autoencoder of perceptrons on the features (Sakurada and Yairi, MLSDA 2014, section 3); edges are not read.

    score_i = mean over features of (x_i - decoder(encoder(x_i)))^2; the loss is its mean over the nodes. As in the
    BOND benchmark batch norm, ReLU and dropout stand between the layers.

    Args:
        **options: those of :class:`~graphlossy.outliers._deep.DeepDetector`; ``num_layers`` is at least 2, half of
            them, rounded down, in the encoder.

    Raises:
        ValueError: ``num_layers`` is below 2, or the graph has a single node.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> x = torch.cat([torch.ones(30, 4), torch.tensor([[9.0, -9.0, 9.0, -9.0]])])
        >>> int(MLPAE(epoch=5, hid_dim=2, seed=0).fit(Data(x=x)).decision_score_.argmax())
        30
    """

    name, title = "mlpae", "MLPAE"
    paper = (
        "Sakurada and Yairi, Anomaly Detection Using Autoencoders with Nonlinear Dimensionality Reduction, MLSDA 2014"
    )
    memory = "O(n d)"
    needs, inductive = ("x",), True

    def _build(self, graph: Graph) -> nn.Module:
        needs_two_nodes(graph, self.title)
        encoder, decoder = split_layers(self.num_layers)
        width, features = self.hid_dim, graph.num_features
        module = nn.Sequential(
            nn.Sequential(*mlp_layers([features] + [width] * encoder, self.dropout)),
            nn.Sequential(*mlp_layers([width] * decoder + [features], self.dropout)),
        )
        module.num_features = features  # type: ignore[assignment]
        return module

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        score = (module(graph.x) - graph.x).square().mean(1)
        return score, score.mean()
