"""Node data sets of the Open Graph Benchmark, from the folders that OGB publishes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from graphlossy.datasets._assemble import Arrays
from graphlossy.datasets._converted import converted
from graphlossy.datasets._csc import build_csc, expand
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._facts import FACTS, OGB_FACTS, Entry
from graphlossy.datasets._mark import read_mark
from graphlossy.datasets._npy import NpyWriter, map_npy
from graphlossy.datasets._ogb_raw import RawFolder, is_ogb_layout, open_raw
from graphlossy.datasets._splits import TEST, TRAIN, UNUSED, VALIDATION

__all__ = ["OGB", "OgbFolder", "find_ogb", "read_ogb"]

OGB = tuple(entry.name for entry in OGB_FACTS)
_IN_MEMORY = 8 << 30  # bytes of edge_index over which it is a file that is mapped
_ROWS = 1 << 16  # nodes whose edges' features are averaged together


def find_ogb(name: str, root: str | os.PathLike[str]) -> Path | None:
    """Where a data set lies under ``root``: the folder that OGB's own loaders use, if there is one."""
    places = [Path(root) / f"{name.replace('-', '_')}{suffix}" for suffix in ("", "_pyg")]
    return next((place for place in places if is_ogb_layout(place)), None)


def read_ogb(folder: Path, name: str | None = None, *, edge_features: bool = False) -> Arrays:
    """Reads a folder in OGB's layout, with its published split, undirected.

    What is read from the text files is kept in ``graphlossy/`` beside ``raw/`` as ``.npy`` files, so that the next time
    takes no more than mapping them.

    Args:
        folder: with ``raw`` and ``split`` in it.
        name: of the data set that it must be (or be a marked stand-in for); None takes any graph.
        edge_features: adds ``edge_attr`` [E, D] float32, in the order of ``edge_index``.

    Raises:
        DatasetError: a file is missing, truncated, malformed, or does not fit the others; the sizes are not those of
            the data set called ``name``; or it has no features.
    """
    ogb = OgbFolder(folder, name)
    y, part, kept = ogb.labels()
    x, extras = ogb.features()
    colptr, row, edges = ogb.structure()
    if edge_features:
        extras["edge_attr"] = ogb.edge_attributes(edges)
    masks = (part == TRAIN, part == VALIDATION, part == TEST)
    return Arrays(
        ogb.name, str(folder), x, ogb.edge_index(colptr, row), y, masks, num_classes=kept["num_classes"],
        trusted=True, synthetic=ogb.mark is not None, reference=ogb.reference, extras=extras,
        metric=ogb.entry.metric if ogb.entry else None,
    )  # fmt: skip


class OgbFolder:
    """The parts of a data set in OGB's layout, each converted when it is first asked for.

    Attributes:
        raw: the reader of the published files.
        mark: what a generated stand-in says of itself.
        name: of the data set, or of the stand-in.
        reference: name of the leaderboard it is on, or stands in for.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder, self.raw, self.mark = folder, open_raw(folder), read_mark(folder)
        self.entry = _entry(self.raw, self.mark, name)
        self.reference = self.entry.reference if self.entry else None
        self.name = self.mark["name"] if self.mark else name or (self.entry or folder.resolve()).name
        self.split = self.entry.split if self.entry else self.raw.split_name()

    def labels(self) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """``y`` int64 [N] or float32 [N, T], the split int8 [N], and ``num_classes``."""
        sources = self.raw.sources("node_label") | self.raw.split_sources(self.split)
        sources |= {"sizes": [self.raw.nodes, self._known_classes()]}
        folder, kept = converted(self.folder, "labels", sources, self._write_labels)
        return map_npy(folder / "y.npy"), map_npy(folder / "split.npy"), kept

    def features(self) -> tuple[np.ndarray, dict[str, Any]]:
        """``x`` float32 [N, F], memory-mapped, and further arrays of the nodes, such as ``node_year``."""
        names, extras = self._feature_names(), self.raw.extras()
        folder, _ = converted(self.folder, "features", self.raw.sources(*names, *extras), self._write_features)
        return map_npy(folder / "x.npy"), {name: map_npy(folder / f"{name}.npy") for name in extras}

    def structure(self, undirected: bool = True) -> tuple[np.ndarray, np.ndarray, Path]:
        """``colptr`` int64 [N + 1] and ``row`` [E], memory-mapped, and the folder with the edges' features."""
        part, write = ("structure", self._write_structure) if undirected else ("structure-directed", self._write_arcs)
        names = ["edge_index", *(["edge_feat"] if undirected and self.raw.has("edge_feat") else [])]
        folder, _ = converted(self.folder, part, self.raw.sources(*names), write)
        return map_npy(folder / "colptr.npy"), map_npy(folder / "row.npy"), folder

    def edge_index(self, colptr: np.ndarray, row: np.ndarray) -> np.ndarray:
        """``edge_index`` [2, E] int64 of the structure; a file that is mapped where it is large."""
        if 16 * len(row) <= _IN_MEMORY:
            return expand(colptr, row)

        def write(made: Path) -> dict[str, Any]:
            shape = (2, len(row))
            expand(colptr, row, np.lib.format.open_memmap(made / "edge_index.npy", "w+", np.int64, shape))
            return {}

        folder, _ = converted(self.folder, "edge_index", self.raw.sources("edge_index"), write)
        return map_npy(folder / "edge_index.npy")

    def edge_attributes(self, structure: Path) -> np.ndarray:
        """``edge_attr`` [E, D] float32 in the order of ``edge_index``."""
        if not (structure / "edge_attr.npy").exists():
            raise DatasetError(f"{self.folder}: its edges have no features; leave edge_features out")
        return map_npy(structure / "edge_attr.npy", "r")[map_npy(structure / "edge_id.npy", "r")]

    def _feature_names(self) -> list[str]:
        if self.raw.has("node_feat"):
            return ["node_feat"]
        if self.raw.has("edge_feat"):
            return ["edge_index", "edge_feat"]
        raise DatasetError(
            f"{self.folder}: has no node features, {self.raw.where('node_feat')}; download or write it again"
        )

    def _write_labels(self, made: Path) -> dict[str, Any]:
        labels = [rows.reshape(len(rows), -1) for rows in self.raw.rows("node_label")]
        self.raw.check_rows("node_label", sum(map(len, labels)))
        y = np.concatenate(labels)
        known, where = np.isfinite(y), self.raw.where("node_label")
        part = np.full(self.raw.nodes, UNUSED, np.int8)
        split = self.raw.split(self.split)
        listed = np.bincount(np.concatenate(split))
        if listed.max() > 1:
            raise DatasetError(
                f"{self.folder / 'split' / self.split}: node {int(listed.argmax()):,} is listed {listed.max()} times; "
                "a node may be in one part only: download or write the data set again"
            )
        for value, rows in zip((TRAIN, VALIDATION, TEST), split, strict=True):
            part[rows] = value
        if y.shape[1] > 1:
            classes, y = y.shape[1], y.astype(np.float32)
        else:
            y, known = y[:, 0], known[:, 0]
            if (y[known] != np.trunc(y[known])).any():
                raise DatasetError(f"{where}: class numbers must be whole; download or write it again")
            if not known[part != UNUSED].all():
                node = int(np.flatnonzero(~known & (part != UNUSED))[0])
                raise DatasetError(f"{where}: node {node:,} is in the split but has no label; download it again")
            y = np.where(known, y, 0).astype(np.int64)  # nodes without a label are in no part of the split
            least, most = int(y.min(initial=0)), int(y.max(initial=0))
            classes = self._known_classes() or most + 1
            if least < 0 or most >= classes:
                raise DatasetError(f"{where}: labels go from {least} to {most}; there are {classes} classes, from 0")
        np.save(made / "y.npy", y)
        np.save(made / "split.npy", part)
        return {"num_classes": classes}

    def _known_classes(self) -> int | None:
        if self.mark is not None:
            return int(self.mark["num_classes"])
        return self.entry.classes if self.entry else None

    def _write_features(self, made: Path) -> dict[str, Any]:
        chunks = self.raw.rows("node_feat") if self.raw.has("node_feat") else self._edge_means()
        _write_rows(made / "x.npy", chunks, "node_feat", self.raw)
        for name in self.raw.extras():
            np.save(made / f"{name}.npy", self.raw.table(name))
        return {}

    def _edge_means(self) -> Iterator[np.ndarray]:
        """The mean of the features of each node's edges: what OGB's references give proteins as features."""
        colptr, _, folder = self.structure()
        values, number = map_npy(folder / "edge_attr.npy", "r"), map_npy(folder / "edge_id.npy", "r")
        for low in range(0, self.raw.nodes, _ROWS):
            ends = colptr[low : low + _ROWS + 1]
            mean = np.zeros((len(ends) - 1, values.shape[1]), np.float32)
            for first in range(0, len(mean), 1024):  # edges at hand stay few, as a node may have thousands
                part = ends[first : first + 1025]
                taken = values[number[part[0] : part[-1]]].astype(np.float64)
                some = np.flatnonzero(np.diff(part))
                if len(some):
                    sums = np.add.reduceat(taken, part[some] - part[0], axis=0)
                    mean[first + some] = sums / np.diff(part)[some, None]
            yield mean

    def _write_structure(self, made: Path) -> dict[str, Any]:
        weighed = self.raw.has("edge_feat")
        kept = self._build(made, undirected=True, ids=weighed)
        if weighed:
            _write_rows(made / "edge_attr.npy", self.raw.rows("edge_feat"), "edge_feat", self.raw)
        return kept

    def _write_arcs(self, made: Path) -> dict[str, Any]:
        return self._build(made, undirected=False, ids=False)

    def _build(self, made: Path, **options: bool) -> dict[str, Any]:
        raw = self.raw
        where = raw.where("edge_index")
        return {"edges": build_csc(raw.edge_chunks(), raw.nodes, raw.edges, made, where, **options)}


def _write_rows(file: Path, chunks: Iterator[np.ndarray], name: str, raw: RawFolder) -> None:
    """Writes rows of real numbers as they come; each must be finite."""
    first = next(chunks, np.empty((0, 1), np.float32))
    if not first.size:
        raise DatasetError(f"{raw.where(name)}: is empty; download or write it again")
    with NpyWriter(file, np.float32, (first[:1].size,)) as writer:
        for rows in chain([first], chunks):
            rows = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
            if not np.isfinite(rows).all():
                row, column = np.argwhere(~np.isfinite(rows))[0].tolist()
                kind = "edge" if name.startswith("edge") else "node"
                raise DatasetError(
                    f"{raw.where(name)}: NaN or infinite value at {kind} {writer.rows + row:,}, feature {column}; "
                    "every feature must be finite: fill it or download the file again"
                )
            writer.append(rows)
    raw.check_rows(name, writer.rows)


def _entry(raw: RawFolder, mark: dict[str, Any] | None, name: str | None) -> Entry | None:
    """What is known of the data set in a folder: by its mark, by the name it is asked for, or by its sizes."""
    if mark is not None:
        if name not in (None, mark["reference"]):
            raise DatasetError(
                f"{raw.folder}: is {mark['name']}, a stand-in for {mark['reference']} and not for {name}; move it, or "
                "give the folder's path"
            )
        return FACTS[mark["reference"]]
    if name is None:
        return next((entry for entry in OGB_FACTS if (entry.nodes, entry.edges) == (raw.nodes, raw.edges)), None)
    entry = FACTS[name]
    if (raw.nodes, raw.edges) != (entry.nodes, entry.edges):
        raise DatasetError(
            f"{raw.folder}: says that it has {raw.nodes:,} nodes and {raw.edges:,} edges; {name} has {entry.nodes:,} "
            f"and {entry.edges:,}: download it again, or give the folder's path to read it as a graph of its own"
        )
    return entry
