"""The graph of Debian's packages, built from a package index and kept as a folder of arrays."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphlossy.core._files import sweep
from graphlossy.datasets._assemble import Arrays, assemble
from graphlossy.datasets._debian_graph import (
    CLASS_SIZE,
    dependency_edges,
    description_features,
    group_masks,
    section_labels,
)
from graphlossy.datasets._debian_index import LISTS, find_index, is_index_name, read_index
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._folder import read_folder, save_folder
from graphlossy.datasets._manifest import read_manifest, sha256, whole, write_manifest
from graphlossy.datasets._planetoid import default_root

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["NAME", "build_debian", "find_prepared", "prepare_debian", "read_debian"]

NAME = "debian-packages"
_FORMAT = 1  # of what is built from an index; folders of another one are built again


def read_debian(
    index: str | os.PathLike[str] | None = None, root: str | os.PathLike[str] | None = None, seed: int = 0
) -> Arrays:
    """The packages of a Debian release (about 63,000 in Debian 12) and who depends on whom.

    ======================  ========================================================================================
    nodes                   binary packages, one for each name, sorted by it
    edges                   the first alternative of each clause of Depends, Pre-Depends and Recommends; virtual
                            packages stand for a provider; versions and architectures are not looked at
    features                128, from the words of the one-line description; a package's name is no feature
    classes                 sections (``libs``, ``python``, ``games``, ...; ``contrib/net`` is ``net``); those of fewer
                            than 100 packages together are ``other``
    splits                  ten for each seed, 60 % / 20 % / 20 % of the packages, all packages of a source in one part:
                            their descriptions are much the same, so any other split would leak
    ======================  ========================================================================================

    Measured on Debian 12.11, amd64: 63,436 nodes, 290,751 edges, 51 classes, the largest 10.6 %; degree 9.2 on
    average, median 4, 21,809 at most (libc6); 3,086 isolated nodes; homophily 0.50.

    The graph is built once (some ten seconds) and kept under ``root`` by the index's checksum: see
    :func:`prepare_debian`.

    Args:
        index: path of a ``Packages`` file, plain or compressed; by default a file ``Packages*`` in
            ``root/debian-packages``, else this machine's own list of packages, else a graph prepared before.
        root: folder of prepared data sets; by default ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.
        seed: of the splits.

    Raises:
        DatasetError: as :func:`prepare_debian`.
    """
    folder = prepare_debian(index, root)
    arrays = read_folder(folder)
    arrays.name = arrays.where = NAME
    arrays.masks = group_masks(np.load(folder / "source.npy"), seed)
    return arrays


def prepare_debian(index: str | os.PathLike[str] | None = None, root: str | os.PathLike[str] | None = None) -> Path:
    """Builds the graph unless a whole one of the same index is there, and says in which folder it is.

    The folder, ``root/debian-packages/CHECKSUM``, is one that :func:`load` reads by its path too, with three more
    files: ``source.npy`` (the number of each package's source), ``packages.txt`` and ``classes.txt`` (names). It
    appears at once when it is finished. A folder with a file missing or cut off is built again.

    Raises:
        DatasetError: there is no index, it is damaged, no two packages depend on each other, all are in one section, or
            scikit-learn is not installed.
    """
    base = Path(root) if root is not None else default_root()
    source = Path(index) if index is not None else _own_index(base / NAME) or find_index()
    if source is None:
        return _only_prepared(base)
    checksum = sha256(source) if source.is_file() else ""  # what is no file, the reader names better
    folder = base / NAME / checksum[:16]
    if not checksum or not _usable(folder, checksum):
        data, group, packages, classes = build_debian(source)
        _keep(data, group, packages, classes, folder, source, checksum)
    return folder


def find_prepared(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders of finished graphs under ``root``."""
    base = (Path(root) if root is not None else default_root()) / NAME
    return [path.parent for path in sorted(base.glob("*/manifest.json")) if _usable(path.parent)]


def build_debian(index: Path, least: int = CLASS_SIZE) -> tuple[Data, np.ndarray, list[str], list[str]]:
    """The graph of an index.

    Args:
        index: a ``Packages`` file.
        least: packages that make a section a class of its own.

    Returns:
        The data with all ten splits of seed 0, the source packages' numbers [N], names of packages and of classes.

    Raises:
        DatasetError: as :func:`prepare_debian`.
    """
    packages = read_index(index).packages
    edges = dependency_edges(packages)
    if not edges.shape[1]:
        raise DatasetError(f"{index}: none of its {len(packages)} packages depends on another; give the main index")
    y, classes = section_labels([package.section for package in packages], least)
    if len(classes) < 2:
        raise DatasetError(
            f"{index}: only one class, {classes[0]!r}, among {len(packages)} packages (a section needs {least} to be "
            "one); give the main index of a release"
        )
    try:
        x = description_features([package.description for package in packages])
    except DatasetError as error:
        raise DatasetError(f"{index}: {error}") from None
    group = np.unique([package.source for package in packages], return_inverse=True)[1].astype(np.int32)
    arrays = Arrays(NAME, str(index), x, edges, y, group_masks(group, 0), num_classes=len(classes))
    return assemble(arrays, None, 0), group, [package.name for package in packages], classes


def _usable(folder: Path, checksum: str | None = None) -> bool:
    """Whether a folder holds a whole graph of this format and, where it is asked for, of this index."""
    manifest = read_manifest(folder)
    if manifest is None or manifest["origin"].get("format") != _FORMAT or not whole(folder):
        return False
    return checksum is None or manifest["origin"].get("index_sha256") == checksum


def _keep(
    data: Data, group: np.ndarray, packages: list[str], classes: list[str], folder: Path, index: Path, checksum: str
) -> None:
    made = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        made = folder.with_name(f".{folder.name}-{socket.gethostname()}-{os.getpid()}")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        ready = save_folder(data, made / "graph")
        np.save(ready / "source.npy", group)
        (ready / "packages.txt").write_text("\n".join(packages) + "\n", "utf-8")
        (ready / "classes.txt").write_text("\n".join(classes) + "\n", "utf-8")
        write_manifest(ready, NAME, {"format": _FORMAT, "index": index.name, "index_sha256": checksum})
        if folder.exists() and not _usable(folder, checksum):  # a half one, or one of another format
            folder.rename(made / "old")
        if not folder.exists():  # else another process was faster
            ready.rename(folder)
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be written ({error.strerror or error}); set GRAPHLOSSY_DATA (in Python, root=) to a "
            "folder that can"
        ) from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _own_index(folder: Path) -> Path | None:
    """An index that the user put into the data set's folder."""
    found = sorted(path for path in folder.glob("*") if path.is_file() and is_index_name(path))
    if len(found) > 1:
        raise DatasetError(
            f"{folder}: holds {len(found)} package indexes ({', '.join(path.name for path in found)}); leave one there"
        )
    return found[0] if found else None


def _only_prepared(base: Path) -> Path:
    found = find_prepared(base)
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(f"{NAME}: several graphs are prepared; give the path of one: {', '.join(map(str, found))}")
    raise DatasetError(
        f"{NAME}: there is no package index in {LISTS} nor in {base / NAME}; run `apt-get update` on a Debian machine, "
        f"or put a release's Packages.xz into {base / NAME}"
    )
