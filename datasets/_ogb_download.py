"""Fetching a published OGB archive without questions on the terminal."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._facts import FACTS
from graphlossy.datasets._ogb import OGB, find_ogb
from graphlossy.datasets._planetoid import default_root

__all__ = ["import_ogb", "prepare_ogb"]

_TIMEOUT = 20.0  # seconds without an answer


def prepare_ogb(name: str, root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Path:
    """Finds the folder of an OGB node data set, downloads it if it is absent, and says where it is.

    The download uses the address and the downloader of the installed ``ogb`` package, and never asks on the terminal.

    Args:
        name: ``"ogbn-arxiv"``, ``"ogbn-products"``, ``"ogbn-proteins"`` or ``"ogbn-papers100M"``, in any case.
        root: folder of the data sets; by default ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.
        download: False never uses the network.

    Returns:
        The folder ``root/ogbn_NAME`` with ``raw`` and ``split`` in it.

    Raises:
        DatasetError: the name is another; or the folder is absent and was not to be, or could not be, downloaded.

    Example:
        >>> from graphlossy.datasets import prepare
        >>> prepare("ogbn-arxiv", root="nowhere", download=False)
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: ogbn-arxiv: there is no folder nowhere/ogbn_arxiv with raw/ in it; ...
    """
    known = {value.lower(): value for value in OGB}
    if name.lower() not in known:
        raise DatasetError(f"{name!r} is no OGB data set that is read here; they are {', '.join(OGB)}")
    name = known[name.lower()]
    base = Path(root) if root is not None else default_root()
    found = find_ogb(name, base)
    if found is not None:
        return found
    folder = base / name.replace("-", "_")
    absent = f"{name}: there is no folder {folder} with raw/ in it"
    size = FACTS[name].disk_bytes / 1e9
    by_hand = (
        f"unpack OGB's archive ({size:,.1f} GB) there, so that {folder / 'raw'} exists, or set GRAPHLOSSY_DATA "
        f"(in Python, root=) to the folder that holds {folder.name}"
    )
    if not download:
        raise DatasetError(f"{absent}; {by_hand}")
    if folder.exists() and any(folder.iterdir()):
        raise DatasetError(f"{absent}, but other files are there; remove them, or {by_hand}")
    facts = _published(name)
    if facts is None:
        install = 'pip install "graphlossy[ogb]"'
        raise DatasetError(f"{absent}, and ogb is not installed to download it: {install}; or {by_hand}")
    try:
        _download(*facts, folder)
    except Exception as error:  # no network, no space, no archive: whatever the downloader stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DatasetError(f"{absent}, and the download failed ({reason}); {by_hand}") from None
    return folder


def import_ogb(module: str) -> Any:
    """A module of the ``ogb`` package, kept from looking for a newer version of itself on the network."""
    environment, absent = os.environ.get("OUTDATED_IGNORE"), "outdated" not in sys.modules
    if absent:
        sys.modules["outdated"] = None  # type: ignore[assignment]  # ogb does without it where it cannot be imported
    try:
        return importlib.import_module(module)
    finally:
        if absent:
            del sys.modules["outdated"]
        if environment is None:
            os.environ.pop("OUTDATED_IGNORE", None)


def _published(name: str) -> tuple[str, str] | None:
    """Address of a data set's archive and the folder in it, from ogb's own table; None where ogb is missing."""
    spec = importlib.util.find_spec("ogb")
    if spec is None or not spec.submodule_search_locations:
        return None
    table = Path(spec.submodule_search_locations[0]) / "nodeproppred" / "master.csv"
    with open(table, newline="") as stream:
        header, *rows = list(csv.reader(stream))
    column = header.index(name)
    facts = {row[0]: row[column] for row in rows}
    return facts["url"], facts["download_name"]


def _download(url: str, inside: str, folder: Path) -> None:
    tools = import_ogb("ogb.utils.url")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            archive = tools.download_url(url, str(made), log=False)
        tools.extract_zip(archive, str(made), log=False)
        if folder.exists():
            folder.rmdir()
        (made / inside).rename(folder)
    finally:
        socket.setdefaulttimeout(before)
        shutil.rmtree(made, ignore_errors=True)
