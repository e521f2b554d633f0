"""Whether a data set's files are whole and what they should be, and whether a network can be trained on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphlossy.datasets._catalogue import catalogue_entry, locate, quick, stand_in, way
from graphlossy.datasets._check import check_data
from graphlossy.datasets._checksums import PLANETOID_FILES, WORDNET_SHA256
from graphlossy.datasets._convert import check_model
from graphlossy.datasets._debian import NAME as DEBIAN
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._facts import Entry
from graphlossy.datasets._load import load, names
from graphlossy.datasets._manifest import MANIFEST, compare, read_manifest
from graphlossy.datasets._models import MODELS, Model, find_model, known_model
from graphlossy.datasets._planetoid import find_raw
from graphlossy.datasets._wordnet import FILE

__all__ = ["Finding", "known_name", "verify"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: a file, or ``"contents"``, ``"sizes"``, ...
        problem: what is wrong with it; None where it is right.
        detail: what was found, where it is right.
    """

    what: str
    problem: str | None = None
    detail: str = ""


def verify(
    name_or_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    contents: bool = True,
    scale: float | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Looks at a data set's files and, with ``contents``, reads it and checks every value; nothing is downloaded.

    Of a language model that :func:`prepare_model` has made, ``contents`` reads all weights and runs it on a short text.

    Sizes and checksums are those of the publisher where they are known (the embedded graph, the Planetoid graphs), else
    those that ``prepare`` noted in ``manifest.json`` when it made the folder.

    Args:
        name_or_path: as :func:`graphlossy.datasets.load` takes it; or the name or the folder of a model.
        root: folder of the data sets; by default ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.
        contents: False looks at the files only.
        scale: of a generated graph, as :func:`graphlossy.datasets.load` takes it.
        seed: of a generated graph.

    Returns:
        What was looked at, in order; all is right where no ``problem`` is set.

    Raises:
        DatasetError: there is no such data set, file or folder.

    Example:
        >>> from graphlossy.datasets import verify
        >>> [(finding.what, finding.problem) for finding in verify("wordnet-verbs")]
        [('wordnet_verbs.npz', None), ('contents', None), ('sizes', None)]
    """
    name = known_name(os.fspath(name_or_path))
    entry = catalogue_entry(name) if name else None
    if scale is not None and (name is None or way(name) != "generated"):
        raise DatasetError(f"scale is for generated graphs alone; {name_or_path} is none")
    if name is None and (model := _model(os.fspath(name_or_path))) is not None:
        return _verify_model(model, name_or_path, root, contents)
    place = locate(name, root, scale, seed) if name else _existing(Path(name_or_path))
    if name and place is None and way(name) != "generated":
        return [Finding(name, f"is not here; `graphlossy datasets prepare {name}` gets it")]
    found = _files(place) if place is not None else [Finding("files", detail="none are here: generated in memory")]
    if entry is not None and (generated := stand_in(entry, place)) is not None:
        problem = f"{place} is a generated stand-in ({generated}), not {entry.name}; move it, and prepare the original"
        return [*found, Finding("origin", problem)]
    if place is None and entry is not None and not quick(entry, scale):
        return found
    if contents and not any(finding.problem for finding in found):
        text = name or str(name_or_path)
        # By its name, the graph of packages would be built anew whenever the machine's lists have changed.
        source = place if name == DEBIAN and place is not None else text
        found += _contents(lambda: load(source, root=root, split=None, scale=scale, seed=seed), text, entry)
    return found


def _model(text: str) -> Model | None:
    """The model of this name, or that a folder was prepared as."""
    known = known_model(text)
    if known is None and (manifest := read_manifest(Path(text))) is not None:
        known = manifest["name"]
    return MODELS.get(known or "")


def _verify_model(
    model: Model, name_or_path: str | os.PathLike[str], root: str | os.PathLike[str] | None, contents: bool
) -> list[Finding]:
    by_name = known_model(os.fspath(name_or_path)) is not None
    place = find_model(model.name, root) if by_name else Path(name_or_path)
    if place is None:
        return [Finding(model.name, f"is not here, or not whole; `graphlossy datasets prepare {model.name}` gets it")]
    found = _files(place)
    if contents and not any(finding.problem for finding in found):
        try:
            found.append(Finding("contents", detail=check_model(model, place)))
        except DatasetError as error:
            found.append(Finding("contents", str(error)))
    return found


def known_name(text: str) -> str | None:
    """The name as the catalogue writes it; None for a path."""
    return {known.lower(): known for known in names()}.get(text.lower())


def _existing(path: Path) -> Path:
    if not path.exists():
        load(path)  # which says what is wrong, and what there is instead
        raise DatasetError(f"{path}: there is no such file or folder")
    return path


def _files(place: Path) -> list[Finding]:
    if place == FILE:
        return _compared(place.parent, {place.name: {"sha256": WORDNET_SHA256}})
    planetoid = find_raw(place) or find_raw(place / "raw") if place.is_dir() else None
    if planetoid:
        folder = place if find_raw(place) else place / "raw"
        files = {f"ind.{planetoid.lower()}.{part}": {"git": key} for part, key in PLANETOID_FILES[planetoid].items()}
        return _compared(folder, files)
    manifest = read_manifest(place) if place.is_dir() else None
    if manifest is not None:
        return _compared(place, manifest["files"])
    if (place / MANIFEST).exists():
        return [Finding(MANIFEST, "is damaged; remove it, or prepare the data set again")]
    return [Finding("files", detail=f"no checksums are known of {place}")]


def _compared(folder: Path, expected: dict[str, dict[str, Any]]) -> list[Finding]:
    found = []
    for name, problem in compare(folder, expected):
        detail = "" if problem else f"{(folder / name).stat().st_size:,} bytes"
        found.append(Finding(name, problem, detail))
    return found


def _contents(read: Callable[[], Any], text: str, entry: Entry | None) -> list[Finding]:
    try:
        data = read()
        check_data(data, text)
    except DatasetError as error:
        return [Finding("contents", str(error))]
    sizes = {"nodes": data.num_nodes, "features": data.num_features, "classes": data.num_classes}
    shown = f"{data.num_nodes:,} nodes, {data.num_edges:,} edges, {data.num_features:,} features"
    found = [Finding("contents", detail=f"{shown}, {data.num_classes} classes; shapes, values and splits are right")]
    if entry is None or way(entry.name) in ("generated", "index"):  # of any size
        return found
    wrong = [
        f"{value:,} {name}, not {getattr(entry, name):,}"
        for name, value in sizes.items()
        if value != getattr(entry, name)
    ]
    problem = f"it has {', '.join(wrong)}: these are other data than {entry.name}" if wrong else None
    return [*found, Finding("sizes", problem, f"those of {entry.name}")]
