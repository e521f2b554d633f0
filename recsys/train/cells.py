"""`run_cell`: one method at one budget on one seed, from random weights to the figures of the table."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import MutableMapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphlossy.core._peak import PeakMeter
from graphlossy.recsys.models import options_of
from graphlossy.recsys.train._place import OnEpoch, Place, Trained, full_table_bytes
from graphlossy.recsys.train._sizes import size_summary
from graphlossy.recsys.train._tables import largest_table, lookup_ms, table_bytes, tables_of
from graphlossy.recsys.train.config import FitConfig, TrainingError, resolve_device
from graphlossy.recsys.train.fit import evaluate, loss_fn

__all__ = [
    "FIXED",
    "REFERENCES",
    "default_config",
    "full_table_bytes",
    "method_names",
    "parse_method",
    "run_cell",
    "takes_bits",
]

REFERENCES = ("full", "bias")  # rows to compare with: nothing is compressed
FIXED = ("int8", "int4", "int2", "low_precision")  # methods with one size of their own, whatever the budget


def method_names() -> list[str]:
    """Every method that a cell can have, the references first."""
    from graphlossy.recsys.methods import METHODS

    return [*REFERENCES, *(name for name in METHODS if name not in REFERENCES)]


def parse_method(label: str) -> tuple[str, int]:
    """(method, bits) of a label such as ``"pme"`` or ``"pme+int4"``.

    Raises:
        TrainingError: the method is unknown, or takes no bits.

    Example:
        >>> parse_method("pme+int4"), parse_method("full")
        (('pme', 4), ('full', 0))
    """
    name, plus, low = label.partition("+")
    known = method_names()
    if name not in known:
        raise TrainingError(
            f"method must be one of {', '.join(known)}, or one with +int8, +int4 or +int2; got {label!r}"
        )
    if not plus:
        return name, 0
    if not re.fullmatch(r"int[248]", low):
        raise TrainingError(f"behind a method's + stands int8, int4 or int2, got {label!r}")
    if not takes_bits(name):
        raise TrainingError(f"method {name} takes no bits, got {label!r}")
    return name, int(low[3:])


def takes_bits(method: str) -> bool:
    """Whether low bits can be stacked on a method: those that give rows a size, and training in low bits.

    Example:
        >>> takes_bits("pme"), takes_bits("hash"), takes_bits("int4")
        (True, False, False)
    """
    from graphlossy.recsys.methods import METHODS, SizeMethod

    return method == "low_precision" or (method in METHODS and issubclass(METHODS[method], SizeMethod))


def default_config(model_name: str, **settings: Any) -> FitConfig:
    """The settings of `graphlossy recsys` for a model: those of `FitConfig`, and dropout of 0.3 where it has dropout.

    Without dropout the full model is weaker, and smaller tables look better beside it than they are.

    Args:
        model_name: a key of `graphlossy.recsys.models.MODELS`.
        settings: to change; ``model_options`` are added to the dropout.

    Example:
        >>> dict(default_config("deepfm").model_options), dict(default_config("fm").model_options)
        ({'dropout': 0.3}, {})
    """
    given = settings.pop("model_options", {})
    options = {"dropout": 0.3} if "dropout" in options_of(model_name) else {}
    return FitConfig(**settings, model_options={**options, **given})


def run_cell(
    data: Any,
    model_name: str,
    method: str,
    budget: int | None,
    seed: int,
    config: FitConfig | None = None,
    bits: int = 0,
    *,
    cache: MutableMapping[str, Any] | None = None,
    folder: Path | None = None,
    on_epoch: OnEpoch | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Searches, trains, evaluates and measures one method.

    A method that works before training searches on random weights, and the model is trained with the new tables. One
    that works during training searches while it trains, one after training starts from a trained full model; what can
    still be trained then is trained for ``config.finetune_epochs``.

    Args:
        data: as `graphlossy.recsys.data.CTRData`.
        model_name: a key of `graphlossy.recsys.models.MODELS`.
        method: a name of `method_names`; ``"full"`` compresses nothing, ``"bias"`` has first-order weights only.
        budget: bytes of all tables together, first-order weights included; None: whatever the method comes to.
        seed: of weights, search, order of rows and rounding.
        config: the settings.
        bits: of an element of the rows; 0 is float.
        cache: keeps the trained full model for the next cell of the same seed.
        folder: with folders ``checkpoints`` and ``plans``; training goes on from there after an interruption.
        on_epoch: called with every line of the history of every training.
        options: of the method.

    Returns:
        Plain values: ``status`` ``"done"`` or, where the budget cannot be reached, ``"unreachable"`` with ``minimum``
        bytes; ``bytes`` of all tables as saved, ``full_bytes``, ``ratio``; ``auc`` and ``logloss`` on the test split
        at the best validation epoch; ``search_seconds``, ``epoch_seconds``, ``search_epochs`` (their ratio);
        ``peak_bytes`` of training and ``search_peak_bytes`` of the search, beyond what was in use before the model;
        ``state_bytes`` of the tables in training; ``lookup_ms``; ``sizes``; ``plan``, its file in ``folder``.

    Raises:
        TrainingError: an argument is wrong, or training went wrong.
    """
    config = FitConfig() if config is None else config
    parse_method(method + (f"+int{bits}" if bits else ""))
    _check_labels(data)
    _warm_up(model_name, method, bits, config.optimizer, resolve_device(config.device))
    return _run(data, model_name, method, budget, seed, config, bits, cache, folder, on_epoch, options)


@functools.cache
def _warm_up(model_name: str, method: str, bits: int, optimizer: str, device: torch.device) -> None:
    """Runs a tiny cell: what a process does once, imports above all, would be in the first figures and in no others."""
    from graphlossy.recsys.data import zipf

    data = zipf(rows=400, vocab=(40, 20), floats=1)
    config = FitConfig(optimizer=optimizer, device=str(device), epochs=1, finetune_epochs=1, batch_size=100)
    budget = full_table_bytes(data, model_name, config) // 2
    _run(data, model_name, method, budget, 0, config, bits, None, None, None, None)


def _check_labels(data: Any) -> None:
    """Before anything is trained: a split without both labels has no AUC."""
    for part, words in (("valid", "validation"), ("test", "test")):
        found: set[float] = set()
        for batch in getattr(data, part).batches(8192):
            found.update(batch["label"].unique().tolist())
            if len(found) > 1:
                break
        else:
            has = f"only the label {found.pop():g}" if found else "no rows"
            raise TrainingError(
                f"the {len(getattr(data, part)):,} {words} rows of {data.name} have {has}, and AUC needs both labels; "
                "give more rows, another split, or another comparison for the label"
            )


def _run(
    data: Any,
    model_name: str,
    method: str,
    budget: int | None,
    seed: int,
    config: FitConfig,
    bits: int,
    cache: MutableMapping[str, Any] | None,
    folder: Path | None,
    on_epoch: OnEpoch | None,
    options: dict[str, Any] | None,
) -> dict[str, Any]:
    place = Place(data, model_name, seed, config, resolve_device(config.device), folder, cache, on_epoch)
    label = method + (f"+int{bits}" if bits else "")
    full_bytes = full_table_bytes(data, model_name, config)
    row: dict[str, Any] = {
        "label": label, "method": method, "bits": bits, "model": model_name, "data": data.name, "seed": seed,
        "budget": budget, "status": "done", "minimum": None, "full_bytes": full_bytes,
    }  # fmt: skip
    if method in REFERENCES:
        trained = place.full() if method == "full" else place.bias()
        return _with_ratio({**row, **_figures(place, trained, None, {})})
    from graphlossy.recsys.tables._budget import BudgetError

    try:
        trained, found = _compressed(
            place, method, full_bytes if budget is None else budget, bits, options or {}, label
        )
    except BudgetError as error:
        return {**row, "status": "unreachable", "minimum": error.minimum, "reason": str(error)}
    return _with_ratio({**row, **_figures(place, trained, found["plan"], found)})


def _with_ratio(row: dict[str, Any]) -> dict[str, Any]:
    # without token fields there are no tables on either side
    return {**row, "ratio": row["full_bytes"] / max(row["bytes"], 1) if row["full_bytes"] else 1.0}


def _half_an_epoch(method: str, batches: int, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a method, with half of the batches for one that runs them backward."""
    from graphlossy.recsys.methods import METHODS

    known = any(field.name == "max_batches" for field in fields(METHODS[method]))
    return {"max_batches": -(-batches // 2), **options} if known else options


def _compressed(
    place: Place, method: str, budget: int, bits: int, options: dict[str, Any], label: str
) -> tuple[Trained, dict[str, Any]]:
    """The model with smaller tables, trained, and what its search took."""
    from graphlossy.recsys.compress import apply_plan, compress_embeddings, finish
    from graphlossy.recsys.methods import make_method
    from graphlossy.recsys.plan import EmbeddingPlan

    options = _half_an_epoch(method, len(place.batches()), options) if place.config.search_batches is None else options
    search = make_method(method, **options)
    full = place.full() if search.stage == "after" else None
    meter = PeakMeter(place.device)
    model = place.make() if full is None else full.model
    text = json.dumps([place.digest(), label, budget, options], sort_keys=True)
    name = f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    file = place.file("plans", f"{name}-seed{place.seed}.safetensors")
    try:
        plan = None if file is None or not file.exists() else EmbeddingPlan.load(file)
    except ValueError as error:
        raise TrainingError(f"{str(error).rpartition(';')[0] or error}; remove it to search anew") from None
    if plan is None or (search.stage == "during" and not plan.retrain):
        meter.start()
        batches = place.batches(whole=search.stage == "during")
        report = compress_embeddings(
            model, batches, loss_fn, search, budget, bits=bits, seed=place.seed, min_tokens=0, progress=False
        )
        settings = {**report.plan.settings, "process_peak_bytes": meter.read()}
        plan = replace(report.plan, settings=settings)
        if file is not None:
            plan.save(file)
        ready = search.stage == "before" or not plan.retrain  # the model has the new tables, and what else it needs
    else:
        ready = False
    found = {"plan": plan, "search_peak_bytes": plan.settings.get("process_peak_bytes"), "file": file}
    if not ready:
        if plan.retrain:
            del model  # before the next one is made
            model = place.make()
        apply_plan(model, plan, keep_values=plan.keep_values)
    if plan.retrain:
        result = place.train(model, name, meter)
    else:
        finish(model)
        trainable = any(p.requires_grad for table in tables_of(model).values() for p in table.parameters())
        epochs = place.config.finetune_epochs if trainable and method not in FIXED else 0
        result = place.train(model, name, meter, epochs=epochs, keep_first=True)
    finish(model)
    if full is not None:
        found["full"] = full.result
    return Trained(model, result), found


def _figures(place: Place, trained: Trained, plan: Any, found: dict[str, Any]) -> dict[str, Any]:
    model, result, full = trained.model, trained.result, found.get("full")
    modules = tables_of(model)
    nbytes = table_bytes(modules.values())
    test = evaluate(model, place.data.test, place.config.eval_batch_size)
    epoch_seconds = result.epoch_seconds
    if epoch_seconds is None and full is not None:
        epoch_seconds = full.epoch_seconds
    search_seconds = None if plan is None else float(plan.seconds)
    peaks = [peak for peak in (result.peak_bytes, full.peak_bytes if full else None) if peak is not None]
    file = found.get("file")
    return {
        "bytes": nbytes,
        "auc": test["auc"],
        "logloss": test["logloss"],
        "valid_auc": result.valid.get("auc"),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "stage": None if plan is None else plan.stage,
        "epochs_of_full": None if full is None else full.epochs,
        "search_seconds": search_seconds,
        "epoch_seconds": epoch_seconds,
        "search_epochs": search_seconds / epoch_seconds if search_seconds is not None and epoch_seconds else None,
        "search_peak_bytes": found.get("search_peak_bytes"),
        "peak_bytes": max(peaks, default=None),
        "state_bytes": max(result.state_bytes, full.state_bytes if full else 0) or None,
        **_lookup(place, model),
        "sizes": None if plan is None else size_summary(plan, place.data),
        "plan": None if file is None else f"plans/{file.name}",
    }


def _lookup(place: Place, model: nn.Module) -> dict[str, Any]:
    """Time of a lookup in the largest table."""
    found = largest_table(model)
    if found is None:
        return {"lookup_ms": None, "lookup_table": None}
    path, table = found
    key = path.rpartition(".")[2]
    field = next((f for f in place.data.fields if model.keys.get(f.name) == key), None)
    counts = getattr(field, "counts", None)
    return {"lookup_ms": lookup_ms(table, counts, place.seed), "lookup_table": path}
