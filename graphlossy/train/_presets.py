"""OGB's reference configurations of its three node classification graphs, and the figures of its leaderboard.

Open Graph Benchmark (Hu et al., NeurIPS 2020); the settings are those of its ``examples/nodeproppred/*/gnn.py``, and of
the sampled and cluster scripts beside them, the figures those of its leaderboard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from graphlossy.train._errors import TrainError

__all__ = ["OGB_SETS", "PRESETS", "REFERENCES", "Reference", "compare_reference", "preset_settings", "reference_of"]

PRESETS = {"ogb": "the reference configuration of the Open Graph Benchmark"}

_SHARED: dict[str, Any] = {
    "layers": 3, "hidden": 256, "lr": 0.01, "weight_decay": 0.0, "seeds": 10, "adj": "csr", "heads": 4,
}  # fmt: skip
OGB_SETS: dict[str, dict[str, Any]] = {
    "ogbn-arxiv": {**_SHARED, "norm": True, "dropout": 0.5, "epochs": 500},
    "ogbn-products": {**_SHARED, "norm": False, "dropout": 0.5, "epochs": 300},
    "ogbn-proteins": {**_SHARED, "norm": False, "dropout": 0.0, "epochs": 1000, "eval_every": 5},
}
# Sampled training takes many steps in an epoch, so its scripts run fewer epochs. Those of GraphSAINT and Cluster-GCN
# are OGB's own, that of neighbour sampling is PyTorch Geometric's, which OGB's leaderboard links.
_SAINT = {"epochs": 20, "lr": 0.01, "eval_every": 2}
_NEIGHBOR = {"epochs": 20, "lr": 0.003, "eval_every": 1, "batch_size": 1024}
_SAMPLED: dict[str, dict[str, Any]] = {
    "neighbor": _NEIGHBOR,
    "degree-neighbor": _NEIGHBOR,
    "saint-node": _SAINT,
    "saint-edge": _SAINT,
    "saint-walk": {**_SAINT, "walk_length": 3},
    "cluster": {"epochs": 50, "lr": 0.001, "eval_every": 5},
    "sparsify": {},
}


class Reference(NamedTuple):
    """A result of OGB's leaderboard: mean and standard deviation of the test metric over ten runs."""

    test: float
    std: float
    method: str


_FULL = "full batch"
# (data set, model, sampler): the leaderboard's figure.
REFERENCES: dict[tuple[str, str, str | None], Reference] = {
    ("ogbn-arxiv", "gcn", None): Reference(0.7174, 0.0029, _FULL),
    ("ogbn-arxiv", "sage", None): Reference(0.7149, 0.0027, _FULL),
    ("ogbn-products", "gcn", None): Reference(0.7564, 0.0021, _FULL),
    ("ogbn-products", "sage", None): Reference(0.7850, 0.0014, _FULL),
    ("ogbn-products", "sage", "neighbor"): Reference(0.7870, 0.0036, "neighbour sampling"),
    ("ogbn-products", "sage", "cluster"): Reference(0.7897, 0.0033, "Cluster-GCN"),
    ("ogbn-proteins", "gcn", None): Reference(0.7251, 0.0035, _FULL),
    ("ogbn-proteins", "sage", None): Reference(0.7768, 0.0020, _FULL),
}


def preset_settings(preset: str, dataset: str, sampler: str | None = None) -> dict[str, Any]:
    """The settings that ``preset`` stands for.

    Args:
        preset: ``"ogb"``.
        dataset: ``"ogbn-arxiv"``, ``"ogbn-products"``, ``"ogbn-proteins"``, their generated stand-ins ``"synth-..."``,
            or a folder named like one of them.
        sampler: kind of mini-batch; None for full-batch training.

    Raises:
        TrainError: there is no such preset, or none for that data set.

    Example:
        >>> settings = preset_settings("ogb", "ogbn-products")
        >>> settings["hidden"], settings["norm"], settings["dropout"], settings["epochs"]
        (256, False, 0.5, 300)
        >>> preset_settings("ogb", "synth-products", "cluster")["epochs"]
        50
    """
    if preset not in PRESETS:
        raise TrainError(f"preset must be {', '.join(PRESETS)}, got {preset!r}")
    name = Path(dataset).name.lower().replace("_", "-").replace("synth-", "ogbn-")
    if name not in OGB_SETS:
        raise TrainError(f"preset ogb is for {', '.join(OGB_SETS)} and their stand-ins synth-..., got {dataset!r}")
    return {**OGB_SETS[name], **({} if sampler is None else _SAMPLED.get(sampler, {}))}


def reference_of(dataset: str | None, model: str, sampler: str | None) -> Reference | None:
    """The leaderboard's figure for this model on this data set: of the same kind of batch, else full batch.

    Example:
        >>> reference_of("ogbn-arxiv", "gcn", None).test
        0.7174
        >>> reference_of("ogbn-arxiv", "gat", None) is None
        True
    """
    if dataset is None:
        return None
    return REFERENCES.get((dataset, model, sampler)) or REFERENCES.get((dataset, model, None))


# What a figure of the leaderboard depends on besides the data and the seeds.
_DECISIVE = ("layers", "hidden", "dropout", "norm", "lr", "weight_decay", "epochs")


def compare_reference(dataset: str | None, synthetic: bool, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The leaderboard's figure that stands beside a result, and whether the two may be compared.

    Args:
        dataset: the OGB data set that the data are or stand in for.
        synthetic: whether they stand in for it.
        settings: those of the experiment, as plain values.

    Returns:
        ``dataset``, ``model``, ``method``, ``test``, ``std``, ``comparable`` and ``remark``, which says why not; None
        where the leaderboard has no such model.

    Example:
        >>> found = compare_reference("ogbn-arxiv", True, {"model": "gcn", "sampler": None})
        >>> found["test"], found["comparable"], found["remark"]
        (0.7174, False, 'synthetic stand-in: not comparable')
    """
    found = reference_of(dataset, settings["model"], settings["sampler"])
    if found is None or dataset is None:
        return None
    remark = ""
    if synthetic:
        remark = "synthetic stand-in: not comparable"
    else:
        wanted = preset_settings("ogb", dataset, settings["sampler"])
        other = [name for name in _DECISIVE if settings[name] != wanted[name]]
        other += [name for name in ("sparsify", "sampler") if settings[name] is not None]
        if found.method != _FULL and "sampler" in other:
            other.remove("sampler")
        if other:
            remark = f"other settings than the reference's: {', '.join(other)}"
    return {"dataset": dataset, "model": settings["model"], **found._asdict(), "comparable": not remark,
            "remark": remark}  # fmt: skip
