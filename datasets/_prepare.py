"""Getting a data set before it is needed: finding, downloading, building or generating it."""

from __future__ import annotations

import os
from pathlib import Path

from graphlossy.datasets._catalogue import catalogue_entry, locate, stand_in, way
from graphlossy.datasets._checksums import PLANETOID_FILES
from graphlossy.datasets._debian import NAME as DEBIAN
from graphlossy.datasets._debian import prepare_debian
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._generate import check_scale
from graphlossy.datasets._load import load
from graphlossy.datasets._manifest import compare, read_manifest, write_manifest
from graphlossy.datasets._ogb import OGB, read_ogb
from graphlossy.datasets._ogb_download import prepare_ogb
from graphlossy.datasets._planetoid import PLANETOID
from graphlossy.datasets._planetoid import prepare as prepare_planetoid
from graphlossy.datasets._wordnet import NAME as WORDNET
from graphlossy.datasets._write_ogb import STAND_INS, write_ogb

__all__ = ["prepare"]

_PUBLISHED = ("raw", "split")  # what of a folder in OGB's layout is listed; the rest may be made again


def prepare(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    scale: float | None = None,
    seed: int = 0,
) -> Path:
    """Finds a data set, downloads, builds or generates it if it is not here, and says where it is.

    Planetoid's graphs are looked for in ``root/NAME/raw`` (where PyTorch Geometric keeps them), ``root/NAME``,
    ``root/raw`` and ``root``; OGB's in ``root/ogbn_NAME`` (where OGB's own loaders keep them). Nothing is asked on the
    terminal, so the archive of ogbn-papers100M, 60 GB, is downloaded by this function and never by :func:`load`.
    Generated graphs are written by :func:`write_ogb`.

    Args:
        name: one of :func:`names`, in any case.
        root: folder of the data sets; by default the environment variable ``GRAPHLOSSY_DATA`` or, without it,
            ``~/.cache/graphlossy``.
        download: False never uses the network.
        scale: of a generated graph, as :func:`load` takes it.
        seed: of a generated graph.

    Returns:
        The embedded graph's file, or the folder that holds the files.

    Raises:
        DatasetError: there is no such data set; or it is not here and was not to be, or could not be, fetched or made.

    Example:
        >>> from graphlossy.datasets import prepare
        >>> prepare("cora", root="nowhere", download=False)
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: Cora: no file ind.cora.x in nowhere/Cora/raw, nowhere/Cora, ...
    """
    entry = catalogue_entry(name)
    name = entry.name
    if name in STAND_INS:
        scale = check_scale(name, scale)
    elif scale is not None:
        raise DatasetError(f"scale is for generated graphs alone, {', '.join(STAND_INS)}; {name} is none")
    if name in PLANETOID:
        return locate(name, root) or _checked(prepare_planetoid(name, root, download=download), name)
    if name == DEBIAN:
        return prepare_debian(root=root)
    found = locate(name, root, scale, seed)
    if found is None and name in OGB:
        found = prepare_ogb(name, root, download=download)
    elif found is None and name in STAND_INS:
        found = _written(name, root, scale, seed)
    elif found is None:
        return _by_loading(name, root, download)
    if (found / "raw" / "edge.csv.gz").exists():
        # Converts the texts, so that whoever loads the graph next has only to map arrays; a damaged one is refused.
        read_ogb(found, name if name in OGB else None)
    if name != WORDNET and read_manifest(found) is None and os.access(found, os.W_OK):
        # A folder that is read-only is as good, but cannot be verified.
        generated = stand_in(entry, found)
        origin = {"scale": scale, "seed": seed} if name in STAND_INS else {"source": generated or entry.source}
        write_manifest(found, name, origin, _PUBLISHED)
    return found


def _written(name: str, root: str | os.PathLike[str] | None, scale: float | None, seed: int) -> Path:
    """Writes a stand-in, unless another process that was asked for the same is faster."""
    try:
        return write_ogb(name, root, scale, seed)
    except DatasetError:
        if (found := locate(name, root, scale, seed)) is None:
            raise
        return found


def _checked(folder: Path, name: str) -> Path:
    """Compares what was downloaded with what its publisher lists."""
    files = {f"ind.{name.lower()}.{part}": {"git": key} for part, key in PLANETOID_FILES[name].items()}
    for file, problem in compare(folder, files):
        if problem:
            raise DatasetError(f"{folder / file}: {problem}; remove it and prepare {name} again")
    return folder


def _by_loading(name: str, root: str | os.PathLike[str] | None, download: bool) -> Path:
    """What another package downloads when it is loaded."""
    if way(name) == "generated":
        raise DatasetError(f"{name} is generated when it is loaded; there is nothing to prepare")
    if not download:
        raise DatasetError(f"{name}: is not here; PyTorch Geometric downloads it when it is loaded")
    load(name, root=root, split=None)
    return prepare(name, root, download=False)
