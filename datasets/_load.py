"""One verb for every source of graphs: an embedded name, a published one, a generated one, a file or a folder."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphlossy.datasets._assemble import Arrays, assemble
from graphlossy.datasets._debian import NAME as DEBIAN
from graphlossy.datasets._debian import read_debian
from graphlossy.datasets._debian_index import is_index_name
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._folder import is_folder_layout, read_folder
from graphlossy.datasets._generate import GENERATED, check_scale, generate, scaled_name
from graphlossy.datasets._mark import read_mark
from graphlossy.datasets._models import known_model, not_a_graph
from graphlossy.datasets._npz import read_npz
from graphlossy.datasets._ogb import OGB, read_ogb
from graphlossy.datasets._ogb_download import prepare_ogb
from graphlossy.datasets._ogb_raw import is_ogb_layout
from graphlossy.datasets._planetoid import PLANETOID, find_raw, prepare, read_planetoid
from graphlossy.datasets._pyg import PYG, read_pyg
from graphlossy.datasets._wordnet import NAME as WORDNET
from graphlossy.datasets._wordnet import read_wordnet
from graphlossy.datasets._write_ogb import STAND_INS, stand_in_folder

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["load", "names"]

_BY_HAND = "ogbn-papers100M"  # too large to be downloaded unasked


def names() -> list[str]:
    """The names that :func:`load` knows besides files and folders.

    Example:
        >>> names()
        ['Actor', 'Amazon-Computers', ..., 'CiteSeer', ..., 'Cora', ..., 'synth-arxiv-tiny', ..., 'wordnet-verbs']
    """
    return sorted([*PLANETOID, *PYG, *OGB, *GENERATED, DEBIAN, WORDNET])


def load(
    name_or_path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    split: int | None = 0,
    seed: int = 0,
    scale: float | None = None,
    edge_features: bool = False,
) -> Data:
    """Loads a graph for node classification, checked, undirected, and with training, validation and test nodes.

    ==========================================  ======================================================================
    ``"wordnet-verbs"``                         the embedded graph, 13,767 nodes, 15,653 edges, 15 classes
    ``"Cora"``, ``"CiteSeer"``, ``"PubMed"``    the citation graphs with their public split, from files under ``root``
                                                or downloaded to it (see :func:`prepare`)
    ``"Amazon-Photo"``, ``"Coauthor-CS"``,      what PyTorch Geometric downloads, by its own classes: see :func:`names`
    ``"Flickr"``, ``"Reddit"``, ...
    ``"ogbn-arxiv"``, ``"ogbn-products"``,      of the Open Graph Benchmark, from the folders that its own loaders keep,
    ``"ogbn-proteins"``, ``"ogbn-papers100M"``  ``root/ogbn_arxiv`` and so on; downloaded where ``ogb`` is installed
                                                (papers100M by :func:`prepare` alone)
    ``"synth-arxiv"``, ``"synth-products"``,    generated, of the shape of these at any ``scale``: see docs/datasets.md
    ``"synth-proteins"``,                       and :func:`graphlossy.datasets.synthetic.dc_sbm`; read from disk where
    ``"synth-papers100M"``                      :func:`write_ogb` has written the same under ``root``
    ``"synth-arxiv-tiny"``                      generated, 1,500 nodes, for tests
    ``"debian-packages"``                       who depends on whom in this machine's Debian release: 63,436 nodes in
                                                Debian 12; a path ending in ``Packages`` (``.gz``, ``.xz``, ...) reads
                                                another release's index
    a path ending in ``.npz``                   a heterophilous graph (keys ``node_features``, ``edges``, ...) with its
                                                ten splits, or an attributed one (keys ``adj_data``, ``attr_data``, ...)
                                                with 20 training and 30 validation nodes a class
    a folder                                    ``.npy`` files as :func:`save_folder` writes them, memory-mapped; or
                                                OGB's layout; or Planetoid's raw files
    ==========================================  ======================================================================

    Every edge is there in both directions and once, sorted by source; self-loops are left out, as convolutions that
    want them add their own. Names are matched in any case and come before paths: ``./Cora`` is a path.

    Args:
        name_or_path: as above.
        root: folder of downloaded files; by default ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.
        split: number of the split; None gives all of them, as masks [N, S]. Sources without splits of their own have
            ten, 60 % / 20 % / 20 % unless the table says otherwise, drawn from ``seed``.
        seed: of drawn splits and of generated graphs.
        scale: of generated graphs, the share of the original's nodes; mean degree, tail, homophily and class balance
            are kept. None makes all of it, or 0.001 of ``"synth-papers100M"``.
        edge_features: adds ``edge_attr`` [E, D] float32, which ogbn-proteins and its stand-in have.

    Returns:
        ``Data`` with ``x`` [N, F] float32, ``edge_index`` [2, E] int64, ``y`` [N] int64 (or [N, T] float32, 0, 1 and
        NaN, one column a task), boolean ``train_mask``, ``val_mask`` and ``test_mask``, and the plain values ``name``,
        ``num_classes`` (tasks, for [N, T]), ``metric`` (``"accuracy"`` or ``"rocauc"``), ``synthetic`` (whether it is
        generated) and, where there is one, ``reference`` (the leaderboard that it is on or stands in for, such as
        ``"ogbn-arxiv"``). Graphs in time or of several species also have ``node_year`` or ``node_species``, int64
        [N, 1].

    Raises:
        DatasetError: there is no such data set (close names are suggested) or split, a file is damaged or of another
            format, a download failed, or the data fail :func:`check_data`.
        TypeError: ``split`` or ``seed`` is no integer.

    Example:
        >>> from graphlossy.datasets import load
        >>> data = load("wordnet-verbs")
        >>> data.num_nodes, data.num_edges, data.num_features, data.num_classes, data.metric
        (13767, 31306, 512, 15, 'accuracy')
        >>> load("wordnet-verb")
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: there is no data set 'wordnet-verb'; did you mean 'wordnet-verbs'? ...
    """
    text = os.fspath(name_or_path)
    if split is not None:
        _check_number("split", split)
    _check_number("seed", seed)
    name = {known.lower(): known for known in names()}.get(text.lower())
    if name is not None and name in GENERATED:
        arrays = _generated(name, root, seed, scale, edge_features)
    elif scale is not None:
        raise DatasetError(f"scale is for generated graphs alone, {', '.join(sorted(GENERATED))}; {text} is none")
    elif name in OGB:
        arrays = read_ogb(prepare_ogb(name, root, download=name != _BY_HAND), name, edge_features=edge_features)
    elif name is None and is_ogb_layout(Path(text)):
        arrays = read_ogb(Path(text), edge_features=edge_features)
    elif edge_features:
        raise DatasetError(f"{text}: its edges have no features; leave edge_features out")
    else:
        arrays = _read(text, name, root, seed)
    return assemble(arrays, split, seed)


def _generated(
    name: str, root: str | os.PathLike[str] | None, seed: int, scale: float | None, edge_features: bool
) -> Arrays:
    """From disk where it has been written, else made in memory."""
    scale = check_scale(name, scale)
    folder = stand_in_folder(name, root, scale, seed)
    if name in STAND_INS and is_ogb_layout(folder):
        mark = read_mark(folder)
        if mark is not None and (mark["name"], mark["seed"]) == (scaled_name(name, scale), seed):
            return read_ogb(folder, mark["reference"], edge_features=edge_features)
    return generate(name, seed, scale, edge_features)


def _read(text: str, name: str | None, root: str | os.PathLike[str] | None, seed: int) -> Arrays:
    if name == WORDNET:
        return read_wordnet()
    if name == DEBIAN:
        return read_debian(root=root, seed=seed)
    if name in PYG:
        return read_pyg(name, root)
    if name is not None:
        return read_planetoid(prepare(name, root))
    path = Path(text)
    if path.is_dir():
        return _read_directory(path)
    if path.is_file():
        if path.suffix == ".npz":
            return read_npz(path)
        if is_index_name(path):
            return read_debian(path, root, seed)
        raise DatasetError(f"{path}: a graph file ends in .npz; for .npy files give the folder that holds them")
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise DatasetError(f"{path}: there is no such file or folder{_in_parent(path)}")
    if known_model(text) is not None:
        raise not_a_graph(text)
    close = difflib.get_close_matches(text.lower(), [known.lower() for known in names()], n=2, cutoff=0.6)
    suggested = " or ".join(repr(known) for known in names() if known.lower() in close)
    raise DatasetError(
        f"there is no data set {text!r}; {f'did you mean {suggested}? ' if suggested else ''}"
        f"the names are {', '.join(names())}; else give the path of an .npz file or a folder"
    )


def _read_directory(path: Path) -> Arrays:
    if is_folder_layout(path):
        return read_folder(path)
    for folder in (path, path / "raw"):
        if find_raw(folder):
            return read_planetoid(folder)
    raise DatasetError(
        f"{path}: holds no graph; a folder needs edge_index.npy, x.npy and y.npy, or raw/ and split/ of an OGB graph, "
        "or the raw files of a Planetoid graph"
    )


def _in_parent(path: Path) -> str:
    """Says what there is instead, where the folder exists."""
    if not path.parent.is_dir():
        return f"; nor is there a folder {path.parent}"
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not 0 <= value < 2**32:
        raise DatasetError(f"{name} must be from 0 to {2**32 - 1}, got {value}")
