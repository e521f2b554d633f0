"""Small graphs in the formats that are read, made on the spot."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def _heterophilous(classes: int = 3, splits: int = 10) -> dict[str, np.ndarray]:
    """The keys of the heterophilous graphs: 30 nodes on a path, each edge once."""
    nodes = 30
    rng = np.random.RandomState(0)
    part = np.stack([rng.permutation(nodes) % 3 for _ in range(splits)])
    return {
        "node_features": rng.randn(nodes, 4).astype(np.float32),
        "node_labels": np.arange(nodes) % classes,
        "edges": np.stack([np.arange(nodes - 1), np.arange(1, nodes)], axis=1),
        "train_masks": part == 0,
        "val_masks": part == 1,
        "test_masks": part == 2,
    }


def _attributed() -> dict[str, np.ndarray]:
    """The keys of the attributed graphs: 300 nodes in a directed ring and a self-loop, identity-like features."""
    nodes = 300
    return {
        "adj_data": np.ones(nodes + 1, np.float32),
        "adj_indices": np.concatenate([[0], (np.arange(nodes) + 1) % nodes]).astype(np.int32),
        "adj_indptr": np.concatenate([[0], np.arange(nodes) + 2]).astype(np.int32),
        "adj_shape": np.array([nodes, nodes]),
        "attr_data": np.full(nodes, 2, np.float32),
        "attr_indices": (np.arange(nodes) % 7).astype(np.int32),
        "attr_indptr": np.arange(nodes + 1).astype(np.int32),
        "attr_shape": np.array([nodes, 7]),
        "labels": (np.arange(nodes) % 3).astype(np.int8),
    }


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def _write_planetoid(folder: Path, name: str = "cora", gap: bool = False) -> Path:
    """Raw files as the Planetoid authors pickled them: 12 + 520 known nodes, then 6 test nodes in a mixed order."""
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.RandomState(0)
    known, train, classes = 532, 12, 3
    test = np.array([3, 0, 5, 1, 4, 2]) + known
    if gap:  # a number in the middle of the test range that the files leave out, as in CiteSeer
        test = np.where(test >= known + 3, test + 1, test)
    matrix = sparse.csr_matrix((rng.rand(known + len(test), 9) < 0.3).astype(np.float32))
    labels = np.eye(classes, dtype=np.int32)[rng.randint(classes, size=known + len(test))]
    graph = defaultdict(list)
    nodes = int(test.max()) + 1
    for node in range(nodes):
        graph[node] += [(node + 1) % nodes, (node + 1) % nodes, node] if node % 5 == 0 else [(node + 1) % nodes]
    parts = {
        "x": matrix[:train], "tx": matrix[known:], "allx": matrix[:known], "graph": graph,
        "y": labels[:train], "ty": labels[known:], "ally": labels[:known],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for part, value in parts.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / f"ind.{name}.test.index").write_text("\n".join(map(str, test)) + "\n")
    return folder


@pytest.fixture
def heterophilous() -> Callable[..., dict[str, np.ndarray]]:
    return _heterophilous


@pytest.fixture
def attributed() -> Callable[..., dict[str, np.ndarray]]:
    return _attributed


@pytest.fixture
def save_npz(tmp_path: Path) -> Callable[[dict[str, np.ndarray]], Path]:
    return lambda arrays: _save_npz(tmp_path / "graph.npz", arrays)


@pytest.fixture
def write_planetoid() -> Callable[..., Path]:
    return _write_planetoid
