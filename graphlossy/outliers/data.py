"""Graphs with labelled outliers: PyGOD's files, a user's own, the embedded graph and generated ones, by one verb."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphlossy.datasets import DatasetError
from graphlossy.datasets import load as load_graph
from graphlossy.datasets import names as graph_names
from graphlossy.datasets._planetoid import default_root
from graphlossy.outliers._checks import prepare
from graphlossy.outliers._files_npz import read_npz, save_npz
from graphlossy.outliers._files_pygod import is_pt, read_pt
from graphlossy.outliers._labels import LEFT_OUT, labels, read_labels, types
from graphlossy.outliers.generate import LARGEST, SMALLEST, generate
from graphlossy.outliers.injection import inject

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["DESCRIPTIONS", "find", "labels", "load", "names", "save_npz", "types"]

_PYGOD = "github.com/pygod-team/data"
# What each of PyGOD's files holds (BOND, Liu et al., NeurIPS 2022).
_FILES = {
    "weibo": "users of Weibo who post the same hashtags; outliers posted suspiciously often within a minute",
    "reddit": "users of Reddit and the topics they post in; outliers were banned",
    "disney": "films of Disney bought together on Amazon; outliers as students labelled them",
    "books": "books bought together on Amazon; outliers were tagged 'amazonfail'",
    "enron": "mail of Enron; outliers sent spam",
    "inj_cora": "citations of Cora, outliers injected",
    "inj_amazon": "computers bought together on Amazon, outliers injected",
    "inj_flickr": "pictures of Flickr with common properties, outliers injected",
    **{f"gen_{size}": f"generated, about {size:,} nodes, outliers injected" for size in (100, 500, 1000, 5000, 10000)},
    "gen_time": "generated, 1,000 nodes, outliers injected, for measuring time",
}
_EMBEDDED = {
    "inj_wordnet": "verbs of WordNet 3.0, outliers injected as published",
    "inj_wordnet_leakfree": "verbs of WordNet 3.0, outliers injected that keep degrees and norms",
}
_SYNTHETIC = {
    "synth_N": "generated, N nodes for any N, outliers injected as published: synth_1000, synth_1000000, ...",
    "synth_N_leakfree": "generated, N nodes for any N, outliers injected that keep degrees and norms",
}
DESCRIPTIONS = {**_FILES, **_EMBEDDED, **_SYNTHETIC}

_SUFFIXES = (".pt", ".pt.zip", ".npz")
_BIT_FIELDS = ("inj_", "gen_")  # PyGOD's files with labels of both types
_SYNTH = re.compile(r"synth_(\d+)(_leakfree)?")


def names() -> list[str]:
    """The names that :func:`load` knows besides ``synth_N``, the names of :mod:`graphlossy.datasets`, and paths.

    Example:
        >>> names()
        ['books', 'disney', 'enron', ..., 'inj_wordnet', 'inj_wordnet_leakfree', 'reddit', 'weibo']
    """
    return sorted([*_FILES, *_EMBEDDED])


def find(name: str, root: str | os.PathLike[str] | None = None) -> Path | None:
    """The file of one of PyGOD's data sets, or None where there is none.

    Args:
        name: one of :func:`names`.
        root: the folder to look in, and ``root/outliers``; by default ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``
            and, last, ``~/.pygod/data``, where PyGOD keeps what it downloads.

    Example:
        >>> find("books", "nowhere") is None
        True
    """
    candidates = (place / f"{name}{suffix}" for place in _places(root) for suffix in _SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def load(name_or_path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, seed: int = 0) -> Data:
    """Loads an attributed graph and, where it has them, the labels of its outliers.

    ====================================  ============================================================================
    ``"books"``, ``"inj_cora"``, ...      PyGOD's data sets (BOND, Liu et al., NeurIPS 2022), from files NAME.pt,
                                          NAME.pt.zip or NAME.npz: see :func:`find`
    ``"inj_wordnet"``,                    the embedded graph of WordNet's verbs with outliers injected by
    ``"inj_wordnet_leakfree"``            :func:`graphlossy.outliers.inject`, of both kinds
    ``"synth_1000"``,                     generated with as many nodes (100 to ten million) by
    ``"synth_1000_leakfree"``, ...        :func:`graphlossy.outliers.generate`
    a name of ``graphlossy.datasets``     that graph, without labels of outliers
    a path ending in ``.pt``,             PyG ``Data``, or a dictionary of tensors, as ``torch.save`` writes it; nothing
    ``.pt.zip``                           in it is ever run (``weights_only``)
    a path ending in ``.npz``             as :func:`save_npz` writes it: ``x`` [N, F], ``edge_index`` [2, E] and maybe
                                          ``y`` [N]; or a format of ``graphlossy.datasets``
    a folder                              OGB's layout, or another of ``graphlossy.datasets``, without such labels
    any of these and ``#LABELS``          with labels from the array of that name in the file, or from a file of its
                                          own: ``.npy``, ``.pt`` (a tensor), or text with one number a line
    ====================================  ============================================================================

    Labels of value 0 and 1 are kept as they are; those of PyGOD's injected sets are a bit field, as are labels up to 3
    that ``#LABELS`` names, as an array or as a file: in the present folder, in that of the graph, or beside the graph.
    A ``y`` of class numbers in a file is left out; one up to 3 may be a bit field, which ``#y`` says it is.

    Args:
        name_or_path: as above; names are matched in any case and come before paths.
        root: folder of the files; see :func:`find`.
        seed: of injected outliers and generated graphs.

    Returns:
        ``Data`` with ``x`` [N, F] float32, ``edge_index`` [2, E] int64 (sorted, without duplicates, directions and self
        loops as in the file), ``y`` [N] int64 where there are labels (bit 0 contextual, bit 1 structural where
        ``typed``, else 0 and 1), ``typed``, ``name`` and ``note`` (source, licence, how many duplicates there were).

    Raises:
        ValueError: no such data set (close names are suggested, and where it was looked for), a file is damaged or of
            another format, features are NaN or infinite, edges lead to no node, or labels are no labels of outliers.

    Example:
        >>> data = load("inj_wordnet")
        >>> data.num_nodes, data.typed, {name: int(mask.sum()) for name, mask in types(data).items()}
        (13767, True, {'contextual': 345, 'structural': 345})
        >>> load("inj_wordnett")
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: there is no data set 'inj_wordnett'; did you mean 'inj_wordnet' or ...
    """
    text = os.fspath(name_or_path)
    if not isinstance(text, str):
        raise TypeError(f"name_or_path must be text or a path, got {name_or_path!r}")
    place, _, key = text.rpartition("#") if "#" in text and not Path(text).exists() else (text, "", "")
    if "#" in text and place != text and not (place and key):
        raise DatasetError(f"{text}: before # comes a name or path, after it an array's name or a file of labels")
    known = {name.lower(): name for name in [*graph_names(), *names()]}  # "reddit" is PyGOD's, not the larger "Reddit"
    name = known.get(place.lower(), place.lower())
    if name in _FILES:
        return _with_labels(_read_file(_found(name, root), name), key)
    if name in _EMBEDDED:
        made = inject(load_graph("wordnet-verbs"), _kind(name), seed=seed)
        made.note = f"WordNet 3.0's verbs, under WordNet's licence; {made.note}"
    elif synthetic := _SYNTH.fullmatch(name):
        nodes = int(synthetic[1])
        if not SMALLEST <= nodes <= LARGEST:
            raise DatasetError(f"{place}: N must be from {SMALLEST} to {LARGEST}, got {nodes}")
        made = generate(nodes, kind=_kind(name), seed=seed)
    elif name in graph_names():
        return _with_labels(_unlabelled(load_graph(name, root=root, seed=seed), name, name), key)
    else:
        return _with_labels(_read_path(Path(place), root), key)
    made.name = name
    return made if not key else _with_labels({**made.to_dict(), "where": name, "y": None}, key)


def _kind(name: str) -> str:
    return "leakfree" if name.endswith("_leakfree") else "published"


def _places(root: str | os.PathLike[str] | None) -> list[Path]:
    base = Path(root) if root is not None else default_root()
    return [base, base / "outliers", *([] if root is not None else [Path.home() / ".pygod" / "data"])]


def _found(name: str, root: str | os.PathLike[str] | None) -> Path:
    file = find(name, root)
    if file is None:
        places = _places(root)
        raise DatasetError(
            f"{name}: no file {', '.join(name + suffix for suffix in _SUFFIXES)} in {', '.join(map(str, places))}; "
            f"download {name}.pt.zip from https://{_PYGOD} into {places[1]}, or set GRAPHLOSSY_DATA (in Python, root=) "
            "to the folder that holds it"
        )
    return file


def _read_path(path: Path, root: str | os.PathLike[str] | None) -> dict[str, Any]:
    if path.is_file() and (is_pt(path) or path.suffix.lower() == ".npz"):
        return _read_file(path, path.name.split(".")[0])
    if path.is_dir():
        return _unlabelled(load_graph(path), path.resolve().name, str(path))
    if path.is_file():
        raise DatasetError(f"{path}: a file of a graph ends in .pt, .pt.zip or .npz")
    if len(path.parts) > 1 or is_pt(path) or path.suffix:
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, there, n=1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise DatasetError(f"{path}: there is no such file or folder{hint}")
    known = [*names(), "synth_1000", *graph_names()]
    lower = {name.lower(): name for name in known}
    close = [lower[name] for name in difflib.get_close_matches(str(path).lower(), lower, n=2, cutoff=0.6)]
    suggested = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise DatasetError(
        f"there is no data set {str(path)!r}; {suggested}the names are {', '.join([*names(), 'synth_N'])}, those of "
        "graphlossy.datasets, and the paths of files and folders"
    )


def _read_file(path: Path, name: str) -> dict[str, Any]:
    """The attributes of a graph in a file, with ``where`` they are from."""
    found = read_pt(path) if is_pt(path) else read_npz(path)
    if not found:
        return _unlabelled(load_graph(path), name, str(path))
    if missing := [key for key in ("x", "edge_index") if found.get(key) is None]:
        raise DatasetError(
            f"{path}: has no {' and no '.join(missing)}; its attributes are {', '.join(sorted(found)) or 'none'}"
        )
    source = found.get("note") if isinstance(found.get("note"), str) else str(path)
    if name in _FILES and "note" not in found:
        source = f"PyGOD's {path.name} ({_PYGOD}, MIT licence): {_FILES[name]}"
    typed = found.get("typed")
    typed = name in _FILES and name.startswith(_BIT_FIELDS) if typed is None else bool(typed)
    return {**found, "name": name, "note": source, "where": str(path), "typed": typed}


def _unlabelled(data: Data, name: str, where: str) -> dict[str, Any]:
    """A graph of :mod:`graphlossy.datasets`, whose labels are classes."""
    return {
        "x": data.x, "edge_index": data.edge_index, "name": name, "where": where, "typed": False, "classes": data.y,
        "note": f"graphlossy.datasets.load({str(data.name)!r})",
    }  # fmt: skip


def _with_labels(found: dict[str, Any], key: str) -> Data:
    """The checked ``Data``, its labels those under ``key`` where that is given."""
    from torch_geometric.data import Data

    where, x, edges = found["where"], found["x"], found["edge_index"]
    if isinstance(edges, torch.Tensor) and edges.numel() == 0:
        edges = torch.empty(2, 0, dtype=torch.int64)  # of whatever type no edges were saved with
    try:
        graph = prepare(Data(x=x, edge_index=edges))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: {str(error).replace('data.', '')}") from None
    note, typed, y = found["note"], found["typed"], found.get("y")
    if merged := edges.size(1) - graph.num_edges:
        note += f"; {merged:,} duplicate edges merged"
    if key:
        y = read_labels(*_named(found, key, graph.num_nodes))
        typed = bool((y > 1).any())
    elif y is not None:
        try:
            y = read_labels(y, graph.num_nodes, where)
            classes = not typed and bool((y > 1).any())
            hint = f"; if it is a bit field of outliers, 1 contextual and 2 structural, name it: {where}#y"
        except DatasetError:
            if typed or not _whole(y, graph.num_nodes):
                raise
            classes, hint = True, ""
        if classes:
            y, note = None, f"{note}; {LEFT_OUT}{hint}"
    data = Data(x=graph.x, edge_index=graph.edge_index)
    if y is not None:
        data.y = y
    data.name, data.note, data.typed = found["name"], note, typed
    return data


def _whole(y: Any, nodes: int) -> bool:
    """Whether an array may be class numbers: whole, at least 0, one a node."""
    values = np.asarray(y)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    return values.shape == (nodes,) and values.dtype.kind in "iuf" and bool(((values >= 0) & (values % 1 == 0)).all())


def _named(found: dict[str, Any], key: str, nodes: int) -> tuple[Any, int, str]:
    """The labels that ``#key`` names: an array of the file, or a file of its own."""
    where = f"{found['where']}#{key}"
    if key in found and key not in ("x", "edge_index", "name", "note", "where"):
        return found[key], nodes, where
    graph = Path(found["where"])
    places = [Path(key), *([graph / key] if graph.is_dir() else []), graph.parent / key]
    file = next((path for path in places if path.is_file()), None)
    if file is None:
        one = ((nodes,), (nodes, 1))
        arrays = sorted(name for name, value in found.items() if tuple(getattr(value, "shape", ())) in one)
        raise DatasetError(
            f"{where}: there is no file {' or '.join(map(str, places))}, and no array of that name in the graph; "
            f"arrays with one value a node are {', '.join(arrays) or 'none'}"
        )
    try:
        if file.suffix == ".npy":
            values = np.load(file, allow_pickle=False)
        elif file.suffix == ".pt":
            values = torch.load(file, map_location="cpu", weights_only=True)
        else:
            values = np.array(file.read_text().split(), dtype=np.float64)
    except Exception as error:  # damaged bytes raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DatasetError(f"{file}: cannot be read as labels, one number a node ({reason})") from None
    return values, nodes, str(file)
