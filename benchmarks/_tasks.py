"""The data sets of the accuracy benchmark."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks._graphs import Problem
from benchmarks._variants import Shape

__all__ = ["PROTOCOLS", "Protocol", "Task", "load"]


class Protocol(NamedTuple):
    """How a data set is trained: the same for every scheme, chosen for float32."""

    hidden: int
    layers: int
    dropout: float
    norm: bool
    input_dropout: bool
    lr: float
    weight_decay: float
    epochs: int
    metric: str


PROTOCOLS = {
    # Kipf and Welling's GCN (ICLR 2017), which published 81.5 on Cora's public split, with 64 hidden channels.
    "wordnet-verbs": Protocol(128, 3, 0.5, True, False, 0.01, 0.0, 60, "accuracy"),
    "cora": Protocol(64, 2, 0.5, False, True, 0.01, 5e-4, 100, "accuracy"),
    "tolokers": Protocol(128, 3, 0.5, True, False, 0.01, 0.0, 60, "rocauc"),
    # Generated, for trying the benchmark out.
    "planted": Protocol(32, 2, 0.5, True, False, 0.01, 0.0, 10, "accuracy"),
}


class Task(NamedTuple):
    """Data, classes, and one (training, validation, test) triple of row numbers per split."""

    problem: Problem
    classes: int
    splits: list[tuple[Tensor, Tensor, Tensor]]

    def split(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.splits[number % len(self.splits)]

    def shape(self, protocol: Protocol) -> Shape:
        """Of the network: a GCN."""
        return Shape(
            "gcn", self.problem.x.size(1), protocol.hidden, self.classes, protocol.layers, protocol.dropout,
            protocol.norm, protocol.input_dropout,
        )  # fmt: skip


@lru_cache(maxsize=1)
def load(name: str, path: str | None) -> Task:
    """The data set ``name``; ``path`` is where its files are, for those that are not embedded."""
    if name == "planted":
        return _planted()
    if name == "wordnet-verbs":
        from graphlossy.datasets import load as load_embedded

        data = load_embedded(name)
        return _task(data.x.float(), data.edge_index, data.y, [(data.train_mask, data.val_mask, data.test_mask)])
    if path is None:
        raise ValueError(f"{name} is not embedded: say where its files are")
    return _cora(Path(path)) if name == "cora" else _tolokers(Path(path))


def _task(x: Tensor, edge_index: Tensor, y: Tensor, masks: list[tuple[Tensor, Tensor, Tensor]]) -> Task:
    splits = [tuple(m.squeeze().nonzero().squeeze(1) for m in triple) for triple in masks]
    none = torch.empty(0, dtype=torch.int64)
    return Task(Problem(x, edge_index, y, none), int(y.max()) + 1, splits)  # type: ignore[arg-type]


def _cora(root: Path) -> Task:
    from torch_geometric.io import read_planetoid_data

    folders = [root, root / "Cora", root / "Cora" / "raw", root / "raw"]
    folder = next((f for f in folders if (f / "ind.cora.graph").exists()), None)
    if folder is None:
        raise FileNotFoundError(f"no ind.cora.graph in {root}, nor in Cora/ or Cora/raw/ under it")
    data = read_planetoid_data(str(folder), "cora")
    x = data.x / data.x.sum(1, keepdim=True).clamp(min=1)
    return _task(x, data.edge_index, data.y, [(data.train_mask, data.val_mask, data.test_mask)])


def _tolokers(file: Path) -> Task:
    from torch_geometric.utils import to_undirected

    with np.load(file) as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    edge_index = to_undirected(arrays["edges"].t().contiguous())
    masks = list(zip(arrays["train_masks"], arrays["val_masks"], arrays["test_masks"], strict=True))
    return _task(arrays["node_features"].float(), edge_index, arrays["node_labels"], masks)


def _planted(nodes: int = 600, classes: int = 4) -> Task:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (nodes,), generator=generator)
    pairs = torch.randint(nodes, (2, 12 * nodes), generator=generator)
    alike = y[pairs[0]] == y[pairs[1]]
    kept = alike | (torch.rand(pairs.size(1), generator=generator) < 0.1)
    pairs = pairs[:, kept & (pairs[0] != pairs[1])]
    edge_index = torch.cat([pairs, pairs.flip(0)], dim=1).unique(dim=1)
    x = torch.nn.functional.one_hot(y, classes).float().repeat(1, 8)
    x = x + 2 * torch.randn(x.shape, generator=generator)
    part = torch.rand(nodes, generator=generator)
    return _task(x, edge_index, y, [(part < 0.3, (part >= 0.3) & (part < 0.6), part >= 0.6)])
