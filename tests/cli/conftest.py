import numpy as np
import pytest


def graph_arrays(nodes=240, features=20, classes=3, seed=0):
    """The arrays of a small graph in the layout of the heterophilous-graph benchmark files."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=nodes)
    ends = rng.integers(nodes, size=(nodes * 6, 2))
    keep = (labels[ends[:, 0]] == labels[ends[:, 1]]) | (rng.random(len(ends)) < 0.2)
    place = rng.permutation(nodes)
    x = rng.normal(size=(nodes, features)) + 1.5 * np.eye(classes, features)[labels]
    return {
        "node_features": x.astype(np.float32),
        "node_labels": labels,
        "edges": ends[keep],
        "train_masks": (place < nodes // 2)[None],
        "val_masks": ((place >= nodes // 2) & (place < 3 * nodes // 4))[None],
        "test_masks": (place >= 3 * nodes // 4)[None],
    }


@pytest.fixture
def arrays():
    return graph_arrays()


@pytest.fixture(scope="session")
def write_graph():
    def write(path):
        np.savez(path, **graph_arrays())
        return path

    return write


@pytest.fixture
def graph(tmp_path, write_graph):
    return write_graph(tmp_path / "toy.npz")
