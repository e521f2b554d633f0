"""One trial: load, fit, measure, judge, and the record of it."""

from __future__ import annotations

import gc
import hashlib
import math
import platform
import time
import warnings
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

from graphlossy.core._memory import is_out_of_memory
from graphlossy.core._peak import PeakMeter
from graphlossy.outliers.runner.errors import one_line
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.limits import Limits, address_limit
from graphlossy.outliers.runner.methods import accepted_options, find_method, import_class

__all__ = ["Loaded", "load_source", "new_record", "run_trial", "shown", "warm_up"]

Record = dict[str, Any]
_EMPTY: Record = {
    "auc": None,
    "ap": None,
    "recall": None,
    "by_type": {},
    "seconds": None,
    "epoch_seconds": None,
    "peak_bytes": None,
    "saved_bytes": None,
    "plain_bytes": None,
    "scores_sha256": None,
    "distinct_scores": None,
}


def new_record(trial: Trial, status: str, reason: str | None = None, **figures: Any) -> Record:
    """The record of a trial; figures that are not given are None.

    Example:
        >>> record = new_record(Trial("books", "books", "lof", "native", 0, 7), "TLE", "took too long", seconds=60.0)
        >>> record["status"], record["auc"], record["seconds"]
        ('TLE', None, 60.0)
    """
    place = {
        "dataset": trial.dataset,
        "method": trial.method,
        "engine": trial.engine,
        "trial": trial.trial,
        "seed": trial.seed,
        "params": {name: _plain(value) for name, value in trial.params.items()},
    }
    return {**place, "status": status, "reason": reason, **_EMPTY, **figures, "versions": versions(trial.engine)}


class Loaded:
    """A data set as trials see it: a graph without its labels, and the labels apart.

    Attributes:
        graph: PyG ``Data`` with x, edge_index and num_nodes alone.
        labels: [N] bool; None where there are none.
        types: members of each type of outliers, [N] bool.
        facts: what is said of it in ``run.json``.
    """

    def __init__(self, data: Any) -> None:
        from torch_geometric.data import Data

        from graphlossy.outliers.data import labels, types

        self.graph = Data(x=data.x, edge_index=data.edge_index, num_nodes=data.num_nodes)
        has_labels = getattr(data, "y", None) is not None
        self.labels = labels(data) if has_labels else None
        self.types = types(data) if has_labels else {}
        self.facts = self._facts(getattr(data, "note", None))

    def _facts(self, note: Any) -> Record:
        x, edges, labels = self.graph.x, self.graph.edge_index, self.labels
        digest = hashlib.sha256()
        for tensor in (x, edges, labels, *self.types.values()):
            if tensor is not None:
                digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return {
            "nodes": int(self.graph.num_nodes),
            "edges": 0 if edges is None else int(edges.size(1)),
            "features": 0 if x is None else int(x.size(1)),
            "outliers": None if labels is None else int(labels.sum()),
            "types": {name: int(members.sum()) for name, members in self.types.items()},
            "note": None if note is None else str(note),
            "fingerprint": digest.hexdigest()[:16],
        }


def load_source(source: str, root: str | None, seed: int) -> Loaded:
    """Reads a data set.

    Raises:
        ValueError, OSError: it cannot be had, or all its labels are equal.
    """
    from graphlossy.outliers.data import load

    loaded = Loaded(load(source, root=root, seed=seed))
    nodes, outliers = loaded.facts["nodes"], loaded.facts["outliers"]
    if outliers is not None and outliers in (0, nodes):
        kind = "outliers" if outliers else "inliers"
        raise ValueError(
            f"{source}: all {nodes} labels are equal, every node is among the {kind}; correct the labels, or leave "
            "them out to get scores alone"
        )
    return loaded


def run_trial(
    trial: Trial, loaded: Loaded, limits: Limits, started: Callable[[], None], epoch: Callable[[int, float], None]
) -> tuple[Record, Any]:
    """Fits once and judges the scores; whatever goes wrong is in the record.

    Args:
        trial: what to run.
        loaded: its data.
        limits: what it may use.
        started: called when the clock starts.
        epoch: called with number and loss of each epoch by methods that have them.

    Returns:
        The record, and the scores, [N] float64 array (None where there are none).
    """
    import torch

    from graphlossy.outliers.metrics import evaluate

    figures: Record = {}
    try:
        detector = make(trial, trial.params)
        if hasattr(detector, "on_epoch"):
            detector.on_epoch = epoch
        _seed_everything(trial.seed)
        device = str(trial.params.get("device", "cpu"))
        gc.collect()  # what earlier trials left
        meter = PeakMeter(torch.device(device))
        started()
        begin = time.perf_counter()
        try:
            # CUDA reserves far more than it uses, and has its own way to say that there is no more.
            with address_limit(limits.memory if device == "cpu" else None), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                detector.fit(loaded.graph)
        finally:
            figures = {"seconds": time.perf_counter() - begin, "peak_bytes": meter.read()}
        scores = torch.as_tensor(detector.decision_score_).detach().cpu().double()
        if scores.shape != (loaded.graph.num_nodes,):
            raise ValueError(f"{loaded.graph.num_nodes} nodes, but scores of shape {list(scores.shape)}")
        figures |= _of_training(detector)
        figures |= evaluate(scores, loaded.labels, loaded.types)
        array = scores.numpy()
        figures["distinct_scores"] = len(scores.unique())
        figures["scores_sha256"] = hashlib.sha256(array.astype("<f8").tobytes()).hexdigest()
    except Exception as error:  # a broken method must not end the grid
        status = "OOM" if is_out_of_memory(error) else "failed"
        return new_record(trial, status, one_line(error), **figures), None
    return limits.applied(new_record(trial, "done", **figures)), array


def warm_up(trial: Trial) -> None:
    """Fits the method once to a ring of 32 nodes: imports, thread pools and kernels are none of a trial's cost."""
    import torch
    from torch_geometric.data import Data

    nodes = torch.arange(32)
    following = (nodes + 1) % 32
    edges = torch.stack([torch.cat([nodes, following]), torch.cat([following, nodes])])
    ring = Data(x=torch.rand(32, 8, generator=torch.Generator().manual_seed(0)), edge_index=edges)
    params = dict(trial.params)
    if "epoch" in accepted_options(find_method(trial.target or trial.method).cls):
        params["epoch"] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            make(trial, params).fit(ring)
        except Exception:  # the trial itself will say what is wrong
            pass


def shown(value: Any) -> str:
    """A value as it may stand in a line of an error.

    Example:
        >>> shown([1, 2]), shown("a" * 100)[-8:]
        ('[1, 2]', 'aaaaa...')
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of too many digits, or a class whose own repr fails
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."


def make(trial: Trial, params: Record) -> Any:
    if trial.target:
        return import_class(trial.target)(**params, seed=trial.seed)
    if trial.engine == "native":
        return find_method(trial.method).cls(**params, seed=trial.seed)
    from graphlossy.outliers import engines

    return engines.make(trial.engine, trial.method, params, trial.seed)


def _seed_everything(seed: int) -> None:
    """The global generators too, for methods that do not keep to their own."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _of_training(detector: Any) -> Record:
    """What a detector that was trained tells of its training."""
    found = {name: _figure(f"{name}_", getattr(detector, f"{name}_", None)) for name in ("saved_bytes", "plain_bytes")}
    epochs = getattr(detector, "epoch_seconds_", None)
    told = [_figure("epoch_seconds_", value) for value in ([] if epochs is None else epochs)]
    seconds = sorted(value for value in told if value is not None)
    return {**found, "epoch_seconds": seconds[len(seconds) // 2] if seconds else None}


def _figure(name: str, value: Any) -> int | float | None:
    """A number that a record can hold, of what may be one of numpy or torch."""
    if value is None:
        return None
    try:
        found = value.item() if hasattr(value, "item") else value
        if isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found):
            return found
    except (TypeError, ValueError, RuntimeError, OverflowError):  # of several elements, or not of this kind at all
        pass
    raise ValueError(f"{name} must be a finite number or None, got {shown(value)}")


def _plain(value: Any) -> Any:
    """A parameter as a record holds it: what JSON does not have becomes its text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@cache
def versions(engine: str = "native") -> dict[str, str]:
    """Versions of what the figures depend on."""
    import graphlossy

    names = ["torch", "torch_geometric", "numpy", "scipy", "scikit-learn", *([] if engine == "native" else [engine])]
    found = {"graphlossy": graphlossy.__version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
