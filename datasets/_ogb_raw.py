"""The published files of an OGB node data set, as tables of ``.csv.gz`` or as ``.npz`` archives, without pickle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from graphlossy.core._files import allowed_globals
from graphlossy.datasets._converted import signature
from graphlossy.datasets._csv import csv_chunks, read_csv
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._npz_stream import members, open_stream

__all__ = ["PARTS", "RawFolder", "is_ogb_layout", "open_raw"]

PARTS = ("train", "valid", "test")
_STEP = 1 << 21  # edges of an archive taken together
_SPECIES = "species.csv.gz"  # what the published archive of ogbn-proteins calls node_species.csv.gz


def is_ogb_layout(folder: Path) -> bool:
    """Whether a folder holds a graph as OGB publishes one."""
    return any((folder / "raw" / name).exists() for name in ("edge.csv.gz", "data.npz"))


def open_raw(folder: Path) -> RawFolder:
    """The reader of a folder; its sizes are read, the rest only when asked for.

    Raises:
        DatasetError: a file is missing or damaged, or there are several graphs.
    """
    return _Archive(folder) if (folder / "raw" / "data.npz").exists() else _Tables(folder)


class RawFolder(ABC):
    """One graph in one of the two layouts.

    Attributes:
        folder: with ``raw`` and ``split`` in it.
        nodes: N.
        edges: E, as stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.raw = folder, folder / "raw"
        self.nodes, self.edges = self._size("node"), self._size("edge")

    def _size(self, kind: str) -> int:
        counts, where = self._counts(kind)
        if counts.size != 1:
            raise DatasetError(f"{where}: must hold one number, the {kind}s of the one graph; it has {counts.size}")
        number = int(counts.reshape(-1)[0])
        if number < (1 if kind == "node" else 0):
            raise DatasetError(f"{where}: says that there are {number} {kind}s; download or write it again")
        return number

    @abstractmethod
    def _counts(self, kind: str) -> tuple[np.ndarray, str]:
        """The numbers of nodes or edges of the graphs, and what messages call the file."""

    @abstractmethod
    def where(self, name: str) -> str:
        """What messages call an array."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is an array ``node_feat``, ``edge_feat``, ..."""

    @abstractmethod
    def rows(self, name: str) -> Iterator[np.ndarray]:
        """The rows of an array in chunks [k, width]."""

    @abstractmethod
    def edge_chunks(self) -> Iterator[np.ndarray]:
        """The edges in chunks [2, k] int64."""

    @abstractmethod
    def extras(self) -> list[str]:
        """The arrays of the nodes besides features and labels, such as ``node_year``."""

    @abstractmethod
    def sources(self, *names: str) -> dict[str, list[Any]]:
        """What tells the files of these arrays from others' (``edge_index``, ``node_label``, ``node_feat``, ...)."""

    def table(self, name: str) -> np.ndarray:
        """A whole array of the nodes [N, width], int64 or float32."""
        chunks = [rows.reshape(len(rows), -1) for rows in self.rows(name)]
        found = sum(map(len, chunks))
        self.check_rows(name, found)
        table = np.concatenate(chunks) if chunks else np.empty((0, 1))
        whole = table.dtype.kind in "iub" or bool((np.isfinite(table) & (table == np.trunc(table))).all())
        return table.astype(np.int64 if whole else np.float32)

    def check_rows(self, name: str, found: int) -> None:
        """Raises unless an array has as many rows as there are nodes or edges."""
        kind = "edges" if name.startswith("edge") else "nodes"
        expected = self.edges if kind == "edges" else self.nodes
        if found != expected:
            raise DatasetError(
                f"{self.where(name)}: has {found:,} rows, but there are {expected:,} {kind}: download or write it again"
            )

    def split_name(self) -> str:
        """The name of the one split there is.

        Raises:
            DatasetError: there is no split, or there are several.
        """
        folder = self.folder / "split"
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        if len(found) != 1:
            raise DatasetError(
                f"{folder}: must hold one folder, the split into training, validation and test nodes; it holds "
                f"{', '.join(found) or 'none'}: download or write the data set again"
            )
        return found[0]

    def _split_folder(self, name: str) -> Path:
        folder = self.folder / "split" / name
        if not folder.is_dir():
            raise DatasetError(f"{folder}: there is no such folder; download or write the data set again")
        return folder

    def split(self, name: str) -> list[np.ndarray]:
        """Numbers of the training, validation and test nodes, [k] int64 each.

        Raises:
            DatasetError: a file is missing or damaged, a part is empty, or a number is no node's.
        """
        folder = self._split_folder(name)
        pickled = folder / "split_dict.pt"
        if pickled.exists():
            found = _split_dict(pickled)
        else:
            found = [read_csv(folder / f"{part}.csv.gz", np.int64, 1)[:, 0] for part in PARTS]
        for part, rows in zip(PARTS, found, strict=True):
            if not len(rows):
                raise DatasetError(f"{folder}: there are no {part} nodes; download or write the data set again")
            if not (rows.min() >= 0 and rows.max() < self.nodes):
                raise DatasetError(
                    f"{folder}: the {part} nodes go from {rows.min()} to {rows.max()}, but nodes go from 0 to "
                    f"{self.nodes - 1}: download or write the data set again"
                )
        return found

    def split_sources(self, name: str) -> dict[str, list[Any]]:
        """What tells the split's files from others'."""
        folder = self._split_folder(name)
        pickled = folder / "split_dict.pt"
        if pickled.exists():
            return {f"split/{name}/split_dict.pt": [pickled.stat().st_size, pickled.stat().st_mtime_ns]}
        return {f"split/{name}/{part}": signature(folder / f"{part}.csv.gz") for part in PARTS}


class _Tables(RawFolder):
    def _counts(self, kind: str) -> tuple[np.ndarray, str]:
        file = self.raw / f"num-{kind}-list.csv.gz"
        return read_csv(file, np.int64), str(file)

    def file(self, name: str) -> Path:
        known = {"edge_index": "edge", "node_feat": "node-feat", "edge_feat": "edge-feat", "node_label": "node-label"}
        if name == "node_species" and not (self.raw / "node_species.csv.gz").exists():
            return self.raw / _SPECIES
        return self.raw / f"{known.get(name, name)}.csv.gz"

    def where(self, name: str) -> str:
        return str(self.file(name))

    def has(self, name: str) -> bool:
        return self.file(name).exists()

    def rows(self, name: str) -> Iterator[np.ndarray]:
        return csv_chunks(self.file(name), np.float32 if name.endswith("_feat") else np.float64)

    def edge_chunks(self) -> Iterator[np.ndarray]:
        return (rows.T for rows in csv_chunks(self.file("edge_index"), np.int64, 2))

    def extras(self) -> list[str]:
        found = [file.name.removesuffix(".csv.gz") for file in self.raw.glob("node_*.csv.gz")]
        return sorted({*found, *(["node_species"] if (self.raw / _SPECIES).exists() else [])})

    def sources(self, *names: str) -> dict[str, list[Any]]:
        sizes = {f"raw/num-{kind}-list": signature(self.raw / f"num-{kind}-list.csv.gz") for kind in ("node", "edge")}
        return sizes | {f"raw/{self.file(name).name}": signature(self.file(name)) for name in names}


class _Archive(RawFolder):
    def __init__(self, folder: Path) -> None:
        self._known = set(members(folder / "raw" / "data.npz"))
        super().__init__(folder)

    def file(self, name: str) -> Path:
        return self.raw / ("node-label.npz" if name == "node_label" else "data.npz")

    def _counts(self, kind: str) -> tuple[np.ndarray, str]:
        key = f"num_{kind}s_list"
        with open_stream(self.file(key), key) as stream:
            return stream.take(int(np.prod(stream.shape))), stream.where

    def where(self, name: str) -> str:
        return f"{self.file(name)}: {name}"

    def has(self, name: str) -> bool:
        return self.file(name).exists() if name == "node_label" else name in self._known

    def rows(self, name: str) -> Iterator[np.ndarray]:
        with open_stream(self.file(name), name) as stream:
            yield from stream.rows()

    def edge_chunks(self) -> Iterator[np.ndarray]:
        file = self.file("edge_index")
        with open_stream(file, "edge_index") as sources, open_stream(file, "edge_index") as targets:
            if len(sources.shape) != 2 or sources.shape[0] != 2 or sources.dtype.kind not in "iu":
                found = f"shape {list(sources.shape)} and type {sources.dtype}"
                raise DatasetError(f"{sources.where} has {found}; it must be [2, edges], of whole numbers")
            count = sources.shape[1]
            targets.skip(count)  # the ends of all edges come after their beginnings
            for first in range(0, count, _STEP):
                number = min(_STEP, count - first)
                yield np.stack([sources.take(number), targets.take(number)]).astype(np.int64, copy=False)

    def extras(self) -> list[str]:
        return sorted(name for name in self._known if name.startswith("node_") and name != "node_feat")

    def sources(self, *names: str) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for name in names:
            keys = [name] if name == "node_label" else [name, "num_nodes_list", "num_edges_list"]
            found[f"raw/{self.file(name).name}/{name}"] = signature(self.file(name), keys)
        return found


def _split_dict(file: Path) -> list[np.ndarray]:
    """What OGB's ``DatasetSaver`` writes: a pickled dictionary, of which nothing but arrays of numbers is accepted."""
    import torch

    reconstruct = np.empty(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("int64", "int32", "uint64", "uint32", "bool")]
    allowed: list[Any] = [reconstruct, np.ndarray, np.dtype, *kinds]
    try:
        with allowed_globals(allowed):
            content = torch.load(file, weights_only=True, map_location="cpu")
        return [np.asarray(content[part], np.int64).reshape(-1) for part in PARTS]
    except Exception as error:  # damaged bytes raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DatasetError(f"{file}: cannot be read as a split ({reason}); write it again") from None
