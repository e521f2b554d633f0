"""PyOD 3's graph detectors, and its LOF and Isolation Forest, behind our interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphlossy.outliers._checks import Graph
from graphlossy.outliers.engines._adapter import EngineDetector, Spec, library

__all__ = ["SPECS", "PyODDetector"]

_Target = str | tuple[str, Callable[[Any], Any]]


def _half(layers: int) -> int:
    """We count encoder and decoder together, as PyGOD does; PyOD counts the encoder."""
    return max(1, layers // 2)


_TRAINED: dict[str, _Target] = {"lr": "lr", "epoch": "epochs", "dropout": ("dropout", float)}
_GCN: dict[str, _Target] = {**_TRAINED, "hid_dim": "hidden_dim", "num_layers": ("num_layers", _half)}


def _spec(name: str, cls: str, *parts: dict[str, _Target]) -> Spec:
    return Spec(cls, f"pyod.models.{name}", {k: v for part in parts for k, v in part.items()})


SPECS: dict[str, Spec] = {
    # PyOD's alpha is the share of the structure, our weight that of the features.
    "dominant": _spec("pyg_dominant", "DOMINANT", _GCN, {"weight": ("alpha", lambda weight: 1 - weight)}),
    "conad": _spec("pyg_conad", "CONAD", _GCN),
    "cola": _spec(
        "pyg_cola", "CoLA",
        {"lr": "lr", "epoch": "epochs", "hid_dim": "hidden_dim", "num_layers": "num_layers"},
    ),
    "guide": _spec("pyg_guide", "GUIDE", _GCN),
    "anomalydae": _spec("pyg_anomalydae", "AnomalyDAE", _TRAINED, {"hid_dim": "embed_dim", "alpha": "alpha"}),
    "radar": _spec("pyg_radar", "Radar", {"alpha": "alpha", "gamma": "gamma", "max_iter": "max_iter"}),
    "anomalous": _spec("pyg_anomalous", "ANOMALOUS", {"gamma": "gamma", "epoch": "max_iter"}),
    "scan": _spec("pyg_scan", "SCAN", {"eps": "epsilon", "mu": "mu"}),
    "lof": _spec("lof", "LOF", {"n_neighbors": "n_neighbors"}),
    "if": _spec("iforest", "IForest", {"n_estimators": "n_estimators", "max_samples": "max_samples"}),
}  # fmt: skip


class PyODDetector(EngineDetector):
    """A detector of PyOD.

    Its graph detectors bear the papers' names but are models of their own: sigmoid(Z Z^T) for the structure and one
    linear layer for the features in DOMINANT, AnomalyDAE and CONAD, a matrix of triangles in place of motif degrees in
    GUIDE, alternating minimisation in Radar and ANOMALOUS, graded scores in SCAN, scores taken after training with
    dropout off. It has no weight decay. ``dropped`` names what could not be handed over.

    LOF scores the nodes as if they were new, so that a node counts among its own neighbours, as the benchmark of the
    BOND paper does.

    Raises:
        ModuleNotFoundError: PyOD is not installed.
        ValueError: (``fit``) from GUIDE, where the graph has no triangle.
        FloatingPointError: (``fit``) scores that are NaN or infinite.
    """

    engine = "pyod"

    def _run(self, graph: Graph) -> Tensor:
        cls = getattr(library(self.spec.module), self.spec.cls)
        if self.name in ("lof", "if"):
            return self._tabular(cls, graph)
        from torch_geometric.data import Data

        detector = cls(**self.arguments, contamination=self.contamination)
        detector.fit(Data(x=graph.x.clone(), edge_index=graph.edge_index, num_nodes=graph.num_nodes))
        return torch.from_numpy(detector.decision_scores_)

    def _tabular(self, cls: Any, graph: Graph) -> Tensor:
        x = graph.x.numpy()
        if self.name == "lof":
            detector = cls(**self.arguments, contamination=self.contamination).fit(x)
            return torch.from_numpy(detector.decision_function(x))
        seed = int(torch.randint(2**31, ()))
        detector = cls(**self.arguments, contamination=self.contamination, random_state=seed).fit(x)
        return torch.from_numpy(detector.decision_scores_)
