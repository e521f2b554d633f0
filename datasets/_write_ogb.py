"""Generated graphs written as OGB publishes its own, so that one script reads both."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from graphlossy.core._files import sweep
from graphlossy.datasets._assemble import Arrays
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._facts import FACTS
from graphlossy.datasets._generate import check_scale, generate, papers, part_of, proteins, scaled_name
from graphlossy.datasets._mark import write_mark
from graphlossy.datasets._ogb_raw import PARTS
from graphlossy.datasets._papers_model import Papers
from graphlossy.datasets._planetoid import default_root
from graphlossy.datasets._proteins_model import Proteins

__all__ = ["STAND_INS", "stand_in_folder", "write_ogb"]

STAND_INS = ("synth-arxiv", "synth-papers100M", "synth-products", "synth-proteins")
_STEP = 1 << 16  # rows of text made at a time
_LEVEL = 1  # of gzip: the files are read far more often than space is short


def stand_in_folder(name: str, root: str | os.PathLike[str] | None, scale: float, seed: int) -> Path:
    """The folder that :func:`write_ogb` writes unless it is to have the original's name."""
    base = Path(root) if root is not None else default_root()
    return base / (scaled_name(name, scale).replace("-", "_").replace(" ", "_") + (f"_seed{seed}" if seed else ""))


def write_ogb(
    name: str,
    root: str | os.PathLike[str] | None = None,
    scale: float | None = None,
    seed: int = 0,
    *,
    official_name: bool = False,
) -> Path:
    """Writes a generated graph in the on-disk layout of the OGB data set that it stands in for.

    ``load(folder)``, ``load(NAME, root=..., scale=..., seed=...)`` and OGB's own loaders read it, all to the same
    graph. ``mapping/README.md``, ``RELEASE_v1.txt`` and ``raw/README.md`` say that it is a stand-in; what is loaded
    from it has ``data.synthetic = True`` and the generator's name and scale in ``data.name``.

    Args:
        name: ``"synth-arxiv"``, ``"synth-products"``, ``"synth-proteins"`` or ``"synth-papers100M"``.
        root: folder of the data sets; by default ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.
        scale: share of the original's nodes; None takes all, or 0.001 for ``"synth-papers100M"``.
        seed: of everything.
        official_name: writes ``root/ogbn_arxiv`` and so on, for scripts that name the original; otherwise
            ``root/synth_arxiv``, followed by the scale and the seed where they are not 1 and 0.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder exists already or cannot be written. Nothing is left there when writing fails.
        ValueError: the name or the scale is not allowed.

    Example:
        >>> from graphlossy.datasets import load, write_ogb
        >>> folder = write_ogb("synth-arxiv", "data", scale=0.01, official_name=True)
        >>> sorted(path.name for path in (folder / "raw").iterdir())[:3]
        ['README.md', 'edge.csv.gz', 'node-feat.csv.gz']
        >>> data = load("ogbn-arxiv", root="data")
        >>> data.name, data.synthetic, data.reference, data.x.equal(load("synth-arxiv", scale=0.01).x)
        ('synth-arxiv x0.01', True, 'ogbn-arxiv', True)
    """
    if name not in STAND_INS:
        raise ValueError(f"name must be one of {', '.join(STAND_INS)}, got {name!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {seed!r}")
    scale = check_scale(name, scale)
    entry = FACTS[name]
    folder = stand_in_folder(name, root, scale, seed)
    if official_name:
        folder = folder.with_name(str(entry.reference).replace("-", "_"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(_there(folder))
    made = folder.with_name(f".{folder.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        shutil.rmtree(made, ignore_errors=True)
        for inside in ("raw", f"split/{entry.split}", "mapping", "processed"):
            (made / inside).mkdir(parents=True)
        classes = _write(made, name, scale, seed, entry.split)
        facts = {
            "name": scaled_name(name, scale), "reference": entry.reference, "scale": scale, "seed": int(seed),
            "num_classes": classes,
        }  # fmt: skip
        write_mark(made, facts)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.is_dir():  # another process was faster
            raise DatasetError(_there(folder)) from None
        raise DatasetError(f"{folder}: cannot be written ({error.strerror or error}); give another root") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _there(folder: Path) -> str:
    return f"{folder}: exists already; remove it first, or give another root"


def _write(made: Path, name: str, scale: float, seed: int, split: str) -> int:
    raw = made / "raw"
    if name == "synth-papers100M":
        graph = papers(seed, scale)
        _write_archive(raw, graph)
        _write_split(made / "split" / split, graph.split)
        return graph.model.num_classes
    scores = None
    if name == "synth-proteins":
        made_proteins: Proteins = proteins(seed, scale)
        arrays, scores = made_proteins.arrays, made_proteins.scores
    else:
        arrays = generate(name, seed, scale)
    _write_tables(raw, arrays, with_features=scores is None)
    if scores is not None:
        chunks = (scores(edges) for edges in _once(arrays.edges))
        _write_csv(raw / "edge-feat.csv.gz", chunks, "%.3f")
    _write_split(made / "split" / split, part_of(arrays, seed))
    return int(arrays.num_classes or 0)


def _write_tables(raw: Path, arrays: Arrays, with_features: bool) -> None:
    edges = 0
    with _Gzip(raw / "edge.csv.gz") as stream:
        for pairs in _once(arrays.edges):
            edges += pairs.shape[1]
            stream.rows(pairs.T, "%d")
    for kind, count in (("node", len(arrays.y)), ("edge", edges)):
        _write_csv(raw / f"num-{kind}-list.csv.gz", [np.array([[count]])], "%d")
    if with_features:
        _write_csv(raw / "node-feat.csv.gz", [arrays.x], "%.9g")  # nine digits are what float32 has, exactly
    _write_csv(raw / "node-label.csv.gz", [arrays.y.reshape(len(arrays.y), -1)], "%d")
    for name in arrays.extras:
        if name.startswith("node_"):
            _write_csv(raw / f"{name}.csv.gz", [arrays.extras[name]], "%d")


def _once(edges: np.ndarray, step: int = 1 << 17) -> Iterator[np.ndarray]:
    """Each undirected edge in one direction, [2, k] at a time."""
    for first in range(0, edges.shape[1], step):
        part = edges[:, first : first + step]
        yield part[:, part[0] < part[1]]


def _write_split(folder: Path, part: np.ndarray) -> None:
    for value, name in enumerate(PARTS):
        _write_csv(folder / f"{name}.csv.gz", [np.flatnonzero(part == value)[:, None]], "%d")


def _write_csv(file: Path, chunks: Iterable[np.ndarray], pattern: str) -> None:
    with _Gzip(file) as stream:
        for chunk in chunks:
            stream.rows(chunk, pattern)


class _Gzip:
    """Writes rows of numbers as gzipped text; without a time of writing, so that equal graphs are equal files."""

    def __init__(self, file: Path) -> None:
        self._stream = open(file, "wb")
        self._deflate = zlib.compressobj(_LEVEL, wbits=31)

    def __enter__(self) -> _Gzip:
        return self

    def __exit__(self, *error: object) -> None:
        with self._stream:
            self._stream.write(self._deflate.flush())

    def rows(self, rows: np.ndarray, pattern: str) -> None:
        line = ",".join([pattern] * rows.shape[1]) + "\n"
        step = max(1, _STEP // rows.shape[1])
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            text = (line * len(part)) % tuple(part.reshape(-1).tolist())
            self._stream.write(self._deflate.compress(text.encode()))


def _write_archive(raw: Path, graph: Papers) -> None:
    model = graph.model
    spilled = raw / "targets"
    with zipfile.ZipFile(raw / "data.npz", "w", zipfile.ZIP_STORED) as archive, open(spilled, "wb") as targets:
        with _array(archive, "edge_index", (2, model.num_edges), "<i8") as stream:
            for source, target in graph.edges():
                stream.write(memoryview(source.astype("<i8").view(np.uint8)))
                targets.write(memoryview(target.astype("<i8").view(np.uint8)))
            targets.flush()
            with open(spilled, "rb") as again:
                shutil.copyfileobj(again, stream, 1 << 22)
        spilled.unlink()
        for key, count in (("num_nodes_list", model.num_nodes), ("num_edges_list", model.num_edges)):
            with _array(archive, key, (1,), "<i8") as stream:
                stream.write(np.array([count], "<i8").tobytes())
        with _array(archive, "node_feat", (model.num_nodes, model.num_features), "<f4") as stream:
            for x in graph.features():
                stream.write(memoryview(x.reshape(-1).view(np.uint8)))
        with _array(archive, "node_year", graph.year.shape, "<i8") as stream:
            stream.write(memoryview(graph.year.reshape(-1).view(np.uint8)))
    np.savez(raw / "node-label.npz", node_label=graph.labels())


def _array(archive: zipfile.ZipFile, key: str, shape: tuple[int, ...], kind: str) -> IO[bytes]:
    """Opens one array of an archive, whose values are then to be written."""
    info = zipfile.ZipInfo(f"{key}.npy")  # with a fixed time, so that equal graphs are equal files
    stream = archive.open(info, "w", force_zip64=True)
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream
