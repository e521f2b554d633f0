"""GAAN: a generator of features against an encoder that tells the edges of real nodes from those of made ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers._deep import DeepDetector
from graphlossy.outliers._layers import split_layers
from graphlossy.outliers._structure_exact import EdgeProducts
from graphlossy.outliers.methods._networks import needs_two_nodes
from graphlossy.outliers.structure import attribute_error, root

__all__ = ["GAAN"]


class _Network(nn.Module):
    """``generator``: noise [N, noise_dim] -> features [N, F]; ``encoder``: features -> embeddings [N, d]."""

    def __init__(self, num_features: int, noise_dim: int, hid_dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        from torch_geometric.nn import MLP

        generating, encoding = split_layers(num_layers)
        self.num_features = num_features
        self.generator = MLP(
            in_channels=noise_dim,
            hidden_channels=hid_dim,
            out_channels=num_features,
            num_layers=generating,
            dropout=dropout,
        )
        self.encoder = MLP(
            in_channels=num_features,
            hidden_channels=hid_dim,
            out_channels=hid_dim,
            num_layers=encoding,
            dropout=dropout,
        )


class GAAN(DeepDetector):
    """Generative adversarial attributed network anomaly detection (Chen et al., CIKM 2020).

    A generator makes features x' of noise; an encoder gives every node an embedding z (z' for a made one), and
    s_ij = sigmoid(z_i . z_j) is the belief that nodes i and j are real. On the edges of the graph (section 3.2) the
    encoder minimises the mean of -log s_ij and -log(1 - s'_ij), the generator that of -log s'_ij, one step each an
    epoch. The score of node i is

        weight ||x_i - x'_i||_2 + (1 - weight) (sum over its edges of -log s_ij)^(1/2).

    Only edges are ever looked at, so it is linear in the graph; PyGOD's code averages over whole rows of the N x N
    matrices, those of the ends of each edge. As there, the encoder does not learn from the made nodes unless
    ``adversarial``: with it the scores depend on when training stops (inj_cora, 3 seeds: AUC .61 to .81, without .84).
    Without weight decay the made features grow, and their noise covers the score.

    Args:
        noise_dim: width of the generator's input.
        weight: of the features against the structure, in [0, 1].
        adversarial: whether the encoder's second term has a gradient.
        **deep: of :class:`~graphlossy.outliers.DeepDetector`; num_layers, of generator and encoder together, at
            least 2.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.rand(30, 8), edge_index=torch.randint(30, (2, 90)))
        >>> GAAN(hid_dim=8, epoch=5, seed=0).fit(data).decision_score_.shape
        torch.Size([30])
    """

    name: ClassVar[str] = "gaan"
    title: ClassVar[str] = "GAAN"
    paper: ClassVar[str] = "Chen et al., Generative Adversarial Attributed Network Anomaly Detection, CIKM 2020"
    memory: ClassVar[str] = "O(E + N (F + d))"
    inductive: ClassVar[bool] = True

    def __init__(self, *, noise_dim: int = 16, weight: float = 0.5, adversarial: bool = False, **deep: Any) -> None:
        super().__init__(**deep)
        split_layers(self.num_layers)
        self.noise_dim = check_number("noise_dim", noise_dim, 1, integer=True)
        self.weight = float(check_number("weight", weight, 0, 1))
        self.adversarial = bool(adversarial)

    @classmethod
    def fixed(cls, dataset: str) -> dict[str, Any]:
        return {"weight_decay": 0.01}

    def _build(self, graph: Graph) -> nn.Module:
        needs_two_nodes(graph, self.title)
        return _Network(graph.num_features, self.noise_dim, self.hid_dim, self.num_layers, self.dropout)

    def _optimizers(self, module: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
        return tuple(
            torch.optim.Adam(part.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            for part in (module.get_submodule("generator"), module.get_submodule("encoder"))
        )

    def _step(
        self, module: nn.Module, graph: Graph, optimizers: tuple[torch.optim.Optimizer, ...]
    ) -> tuple[Tensor, float]:
        generator, encoder = module.get_submodule("generator"), module.get_submodule("encoder")
        with self._forward():
            made = generator(self._noise(graph))
            deceived = _mean(F.softplus(-EdgeProducts.apply(encoder(made), graph)))
        self._descend(deceived, optimizers[0])
        with self._forward():
            real = EdgeProducts.apply(encoder(graph.x), graph)
            with torch.set_grad_enabled(self.adversarial):
                fake = EdgeProducts.apply(encoder(made.detach()), graph)
            loss = (_mean(F.softplus(-real)) + _mean(F.softplus(fake))) / 2
        self._descend(loss, optimizers[1])
        return self._errors(graph, made.detach(), real.detach()), float(loss.detach())

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        made = module.get_submodule("generator")(self._noise(graph))
        real = EdgeProducts.apply(module.get_submodule("encoder")(graph.x), graph)
        score = self._errors(graph, made, real)
        return score, score.mean()

    def _noise(self, graph: Graph) -> Tensor:
        return torch.randn(graph.num_nodes, self.noise_dim, device=graph.device)

    def _errors(self, graph: Graph, made: Tensor, products: Tensor) -> Tensor:
        doubt = graph.x.new_zeros(graph.num_nodes).index_add(0, graph.edge_index[0], F.softplus(-products))
        return self.weight * attribute_error(graph.x, made) + (1 - self.weight) * root(doubt)

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        return {**super().search_space(dataset), "noise_dim": (8, 16, 32), "weight": (0.8, 0.5, 0.2)}


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of no edges, still attached to the network."""
    return values.sum() / max(1, values.numel())
