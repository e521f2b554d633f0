"""Small folders in the layouts that OGB publishes, written without the code under test."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from graphlossy.datasets._mark import mark_text

NODES = 500
SPLIT = {"ogbn-arxiv": "time", "ogbn-papers100M": "time", "ogbn-products": "sales_ranking", "ogbn-proteins": "species"}


def write_csv(path: Path, rows: np.ndarray, pattern: str = "%d") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(",".join(pattern % value for value in row) + "\n" for row in np.asarray(rows).tolist())
    path.write_bytes(gzip.compress(text.encode()))


def fake_ogb(root: Path, name: str, mark: bool = True, nodes: int = NODES) -> Path:
    """A folder as the archive of ``name`` unpacks, of another size; where that is no secret, it reads as a stand-in."""
    folder = root / name.replace("-", "_")
    rng = np.random.RandomState(0)
    edges = rng.randint(nodes, size=(6 * nodes, 2))  # with self-loops and parallel edges
    if name in ("ogbn-products", "ogbn-proteins"):  # undirected sets hold each edge once
        edges = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
        edges = edges[rng.permutation(len(edges))]
    part = np.array_split(rng.permutation(nodes), [nodes // 2, 3 * nodes // 4])
    for each, rows in zip(("train", "valid", "test"), part, strict=True):
        write_csv(folder / "split" / SPLIT[name] / f"{each}.csv.gz", rows[:, None])
    for inside in ("processed", "mapping"):
        (folder / inside).mkdir()
    facts = {"name": f"fake-{name}", "reference": name, "scale": 0.01, "seed": 0, "num_classes": 7}
    text = mark_text(facts) if mark else "v1\n"
    for file in (folder / "RELEASE_v1.txt", folder / "mapping" / "README.md"):
        file.write_text(text)
    label = rng.randint(7, size=(nodes, 1))
    x = rng.randn(nodes, 5).astype(np.float32)
    raw = folder / "raw"
    if name == "ogbn-papers100M":
        raw.mkdir()
        year = rng.randint(2000, 2020, size=(nodes, 1))
        known = np.zeros(nodes, bool)
        known[np.concatenate(part)[: nodes - 40]] = True  # the last ones of the test part are taken out of it below
        write_csv(folder / "split" / "time" / "test.csv.gz", part[2][:-40, None])
        np.savez_compressed(
            raw / "data.npz", edge_index=edges.T.copy(), num_nodes_list=np.array([nodes]), node_feat=x,
            num_edges_list=np.array([len(edges)]), node_year=year,
        )  # fmt: skip
        np.savez_compressed(raw / "node-label.npz", node_label=np.where(known[:, None], label.astype("f4"), np.nan))
        return folder
    write_csv(raw / "edge.csv.gz", edges)
    write_csv(raw / "num-node-list.csv.gz", [[nodes]])
    write_csv(raw / "num-edge-list.csv.gz", [[len(edges)]])
    if name == "ogbn-proteins":
        write_csv(raw / "edge-feat.csv.gz", rng.randint(1, 1000, size=(len(edges), 8)) / 1000, "%.3f")
        write_csv(raw / "species.csv.gz", rng.randint(8, size=(nodes, 1)))  # as in the published archive
        write_csv(raw / "node-label.csv.gz", rng.randint(2, size=(nodes, 112)))
    else:
        write_csv(raw / "node-feat.csv.gz", x, "%.6f")
        write_csv(raw / "node-label.csv.gz", label)
    if name == "ogbn-arxiv":
        write_csv(raw / "node_year.csv.gz", rng.randint(1990, 2021, size=(nodes, 1)))
    return folder
