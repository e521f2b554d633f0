"""PyGOD 1.1's detectors on today's PyTorch Geometric: full batch, no compiled packages, nothing patched."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from graphlossy.outliers._checks import Graph
from graphlossy.outliers.engines._adapter import EngineDetector, Spec, library

__all__ = ["SPECS", "PyGODDetector"]


def _gpu(device: Any) -> int:
    """PyGOD numbers GPUs and calls the processor -1."""
    found = torch.device(device)
    return -1 if found.type == "cpu" else found.index or 0


# PyG's MLP takes the length of a dropout that is no float: 0 has to be 0.0.
_DEEP = {
    "hid_dim": "hid_dim", "dropout": ("dropout", float), "weight_decay": "weight_decay", "lr": "lr", "epoch": "epoch",
    "device": ("gpu", _gpu),
}  # fmt: skip
# PyGOD adds its weight decay to the diagonal as well, which is our beta.
_RESIDUAL = {"lr": "lr", "epoch": "epoch", "gamma": "gamma", "beta": "weight_decay"}
_LAYERS = {**_DEEP, "num_layers": "num_layers"}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _spec(cls: str, *parts: dict[str, Any], **given: Any) -> Spec:
    return Spec(cls, "pygod.detector", {k: v for part in parts for k, v in part.items()}, given)


_WEIGHTS = _same("w1", "w2", "w3", "w4", "w5")
SPECS: dict[str, Spec] = {
    "mlpae": _spec("GAE", _LAYERS),  # with backbone=MLP, see _arguments
    "gcnae": _spec("GAE", _LAYERS),
    "dominant": _spec("DOMINANT", _LAYERS, _same("weight")),
    "done": _spec("DONE", _LAYERS, _WEIGHTS),
    "adone": _spec("AdONE", _LAYERS, _WEIGHTS),
    "anomalydae": _spec("AnomalyDAE", _DEEP, _same("emb_dim", "alpha", "theta", "eta")),
    "gaan": _spec("GAAN", _LAYERS, _same("noise_dim", "weight")),
    "guide": _spec("GUIDE", _LAYERS, {"hid_dim": "hid_a"}, _same("hid_s", "alpha")),
    "conad": _spec("CONAD", _LAYERS, _same("weight", "eta", "margin", "r", "m", "k", "f")),
    "cola": _spec("CoLA", _LAYERS),
    "ocgnn": _spec("OCGNN", _LAYERS, _same("beta", "eps")),
    "radar": _spec("Radar", _RESIDUAL),
    "anomalous": _spec("ANOMALOUS", _RESIDUAL),
    "scan": _spec("SCAN", _same("eps", "mu")),
}


class PyGODDetector(EngineDetector):
    """A detector of PyGOD.

    What is done about its faults:

    - Its deep detectors make a ``NeighborLoader``, which needs a compiled package, even where one batch holds the whole
      graph. Their ``fit`` is run as a copy of the function in which that name stands for a loader of one batch; neither
      PyGOD nor torch_geometric is changed, so other users of them in the process and other threads see nothing.
    - Duplicate edges, which make entries of its adjacency matrix 2 and stop GAAN, are joined.
    - That matrix has no row for isolated nodes at the end of the graph. The last node trades places with one that has
      an edge, and the scores are put back in order.
    - GUIDE does not count isolated nodes, and counts no motif that holds a self loop: self loops are dropped, and
      isolated nodes get one, which its layers add anyway. It keeps counts in the home folder under the *shape* of the
      graph, and would read those of another graph: the folder is a temporary one.
    - SCAN ends with an error where every node is in a cluster: all scores are 1 then, as it was about to say.
    - Detectors write into the graph they are given: they get a copy.

    Raises:
        ModuleNotFoundError: PyGOD is not installed.
        ValueError: (``fit``) a graph without edges, which no detector with an adjacency matrix takes.
        FloatingPointError: (``fit``) scores that are NaN or infinite.
    """

    engine = "pygod"

    def _run(self, graph: Graph) -> Tensor:
        edges, places = _last_has_an_edge(graph.edge_index, graph.num_nodes)
        if edges.numel() == 0 and self.name not in ("mlpae", "gcnae", "cola", "ocgnn", "scan"):
            raise ValueError(f"pygod's {self.spec.cls} takes no graph without edges; engine='native' does")
        if self.name == "guide":
            edges = _for_motifs(edges, graph.num_nodes)
        from torch_geometric.data import Data

        data = Data(x=graph.x[places].clone(), edge_index=edges)
        with tempfile.TemporaryDirectory(prefix="graphlossy-pygod-") as folder:
            scores = self._fit(data, folder)
        return scores[places]  # a swap is its own inverse

    def _fit(self, data: Any, folder: str) -> Tensor:
        module = library(self.spec.module)
        arguments = dict(self.arguments)
        if self.name == "mlpae":
            from torch_geometric.nn import MLP

            arguments |= {"backbone": MLP, "num_neigh": 0}
        if self.name == "guide":
            arguments["cache_dir"] = folder
        detector = getattr(module, self.spec.cls)(**arguments, contamination=self.contamination)
        if isinstance(detector, module.DeepDetector):
            _with_global(type(detector).fit, "NeighborLoader", _OneBatch)(detector, data)
            return detector.decision_score_
        try:
            detector.fit(data)
        except ValueError as error:
            if self.name == "scan" and "size 0" in str(error):
                return torch.ones(data.num_nodes)
            raise
        return detector.decision_score_


class _OneBatch:
    """Stands for NeighborLoader where the batch is the whole graph."""

    def __init__(self, data: Any, num_neighbors: Sequence[int], *, batch_size: int) -> None:
        if batch_size < data.num_nodes:
            raise ValueError(
                f"batch_size is {batch_size}; the engine runs full batches only, of {data.num_nodes} nodes"
            )
        self.batch = data.clone()
        self.batch.n_id = self.batch.input_id = torch.arange(data.num_nodes)
        self.batch.batch_size = data.num_nodes

    def __iter__(self) -> Iterator[Any]:
        yield self.batch


def _with_global(function: Any, name: str, value: Any) -> FunctionType:
    """A copy of a function for which the global ``name`` is ``value``; the function and its module stay as they are."""
    if name not in function.__code__.co_names:
        raise RuntimeError(f"{function.__module__}.{function.__qualname__} uses no {name}: another version of PyGOD?")
    names = {**function.__globals__, name: value}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


def _last_has_an_edge(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """The edges after the last node traded places with the last one that has an edge, and where each node went [N]."""
    places = torch.arange(num_nodes)
    if edge_index.numel() == 0:
        return edge_index, places
    last = int(edge_index.max())
    places[last], places[num_nodes - 1] = num_nodes - 1, last
    return places[edge_index], places


def _for_motifs(edge_index: Tensor, num_nodes: int) -> Tensor:
    """The edges without self loops, and a self loop for each node that has no other edge."""
    edges = edge_index[:, edge_index[0] != edge_index[1]]
    alone = torch.ones(num_nodes, dtype=torch.bool)
    alone[edges.flatten()] = False
    nodes = alone.nonzero().flatten()
    return torch.cat([edges, torch.stack([nodes, nodes])], dim=1)
