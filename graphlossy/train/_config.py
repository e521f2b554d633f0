"""The settings of a training experiment, checked when they are made."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from typing import Any

from graphlossy.core.budget import parse_bytes
from graphlossy.train._errors import TrainError
from graphlossy.train._models import MODELS

__all__ = ["ADJACENCIES", "BITS", "SCHEMES", "Scheme", "TrainConfig"]

BITS = (1, 2, 3, 4, 8)
SCHEMES = ("baseline", "compressed")
ADJACENCIES = ("edge_index", "csr")
MOST_THREADS = 1024
LARGEST = 1e30  # far beyond use, and within float32


@dataclass(frozen=True)
class Scheme:
    """What one column of the comparison keeps for the backward pass: all of it, some bits each, or a byte budget.

    Attributes:
        label: its name in tables, files and metrics.
        bits: bits per stored element; None for the baseline and for a budget.
        budget: bytes allowed for all saved tensors, such as ``"1.5GiB"``; None without one.
    """

    label: str
    bits: int | None = None
    budget: str | None = None

    @property
    def compressed(self) -> bool:
        """Whether this scheme compresses anything."""
        return self.bits is not None or self.budget is not None


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training experiment: every scheme is trained from the same weights once per seed.

    Args:
        dataset: embedded name, Planetoid name, ``.npz`` file or folder, as :func:`graphlossy.datasets.load` takes it.
        model: ``"gcn"``, ``"sage"``, ``"gat"``, ``"gcn2"`` or ``"gin"``.
        layers: number of graph convolutions.
        hidden: width of the hidden layers.
        heads: attention heads of ``"gat"``; must divide ``hidden``.
        dropout: probability that dropout zeroes an element.
        norm: BatchNorm between the layers.
        bits: bits per stored element; one compressed scheme for each.
        budget: bytes for the saved tensors, such as ``"1.5GiB"``; takes the place of ``bits``.
        schemes: ``"baseline"``, ``"compressed"`` or both.
        epochs: full-batch steps of each run.
        seeds: number of runs of each scheme, with seeds ``seed, seed + 1, ...``.
        seed: the first seed.
        split: number of the split into training, validation and test nodes; None gives every seed its own.
        lr: learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        amp: bfloat16 autocast in the forward pass, of every scheme.
        adj: how the model is given the graph, ``"edge_index"`` or ``"csr"`` (a sparse CSR ``adj_t``).
        threads: CPU threads; None leaves torch's choice.

    Raises:
        TrainError: a setting is out of range; the message names it and what is allowed.

    Example:
        >>> config = TrainConfig(model="sage", bits=(2, 4))
        >>> [scheme.label for scheme in config.comparison()]
        ['baseline', '2-bit', '4-bit']
        >>> TrainConfig(bits=(5,))
        Traceback (most recent call last):
        ...
        graphlossy.train._errors.TrainError: bits must be 1, 2, 3, 4 or 8, got 5
    """

    dataset: str = "wordnet-verbs"
    model: str = "gcn"
    layers: int = 3
    hidden: int = 128
    heads: int = 4
    dropout: float = 0.5
    norm: bool = True
    bits: tuple[int, ...] = (2,)
    budget: str | None = None
    schemes: tuple[str, ...] = SCHEMES
    epochs: int = 60
    seeds: int = 3
    seed: int = 0
    split: int | None = 0
    lr: float = 0.01
    weight_decay: float = 0.0
    device: str = "auto"
    amp: bool = False
    adj: str = "edge_index"
    threads: int | None = None

    def __post_init__(self) -> None:
        _text("dataset", self.dataset)
        if self.budget is not None:
            _text("budget", self.budget)
        for name in ("norm", "amp"):
            if not isinstance(getattr(self, name), bool):
                raise TrainError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("bits", "schemes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _choice("model", self.model, tuple(MODELS))
        _choice("adj", self.adj, ADJACENCIES)
        for scheme in self.schemes:
            _choice("schemes", scheme, SCHEMES)
        if not self.schemes or len(set(self.schemes)) < len(self.schemes):
            raise TrainError(f"schemes must name baseline, compressed or both once, got {','.join(self.schemes)!r}")
        for bits in self.bits:
            if bits not in BITS:
                raise TrainError(f"bits must be 1, 2, 3, 4 or 8, got {bits}")
        if not self.bits or len(set(self.bits)) < len(self.bits):
            raise TrainError(f"bits must be different numbers out of 1, 2, 3, 4 and 8, got {list(self.bits)}")
        for name, most in (("layers", 10_000), ("hidden", 2**24), ("heads", 2**24), ("epochs", None), ("seeds", None)):
            _at_least(name, getattr(self, name), 1, most)
        if self.threads is not None:
            _at_least("threads", self.threads, 1, MOST_THREADS)
        if self.split is not None:
            _at_least("split", self.split, 0)
        _at_least("seed", self.seed, 0)
        if self.seed + self.seeds > 2**63:
            raise TrainError(f"seed must be below 2**63, got {self.seed}")
        if not 0 <= self.dropout < 1:
            raise TrainError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 < self.lr <= LARGEST:
            raise TrainError(f"lr must be a positive number of at most {LARGEST:g}, got {self.lr}")
        if not 0 <= self.weight_decay <= LARGEST:
            raise TrainError(
                f"weight_decay must be 0 or a positive number of at most {LARGEST:g}, got {self.weight_decay}"
            )
        if self.model == "gat" and self.hidden % self.heads:
            raise TrainError(
                f"hidden must be a multiple of heads for gat, got hidden {self.hidden}, heads {self.heads}"
            )
        if self.budget is not None:
            _check_budget(self.budget)
            if "compressed" not in self.schemes:
                raise TrainError("budget is for compressed runs, but schemes leaves them out")

    def comparison(self) -> tuple[Scheme, ...]:
        """The schemes to train, the baseline first."""
        found = [Scheme("baseline")] if "baseline" in self.schemes else []
        if "compressed" in self.schemes:
            if self.budget is not None:
                found.append(Scheme(f"budget-{self.budget.replace(' ', '')}", budget=self.budget))
            else:
                found.extend(Scheme(f"{bits}-bit", bits=bits) for bits in self.bits)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values for JSON."""
        return {**asdict(self), "bits": list(self.bits), "schemes": list(self.schemes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Settings back from :meth:`to_dict`.

        Raises:
            TrainError: ``values`` holds an unknown or wrongly typed setting.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise TrainError(f"unknown settings {', '.join(sorted(unknown))}; was the run made by another version?")
        try:
            return cls(**values)
        except TypeError as error:
            raise TrainError(f"settings of the wrong type: {error}") from None


def _check_budget(budget: str) -> None:
    try:
        positive = parse_bytes(budget) > 0
    except (ValueError, TypeError):
        positive = False
    if not positive:
        raise TrainError(f"budget must be a positive size such as 800MiB or 1.5GiB, got {budget!r}")


def _at_least(name: str, value: int, least: int, most: int | None = None) -> None:
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise TrainError(f"{name} must be a whole number {allowed}, got {value!r}")


def _text(name: str, value: str) -> None:
    if not isinstance(value, str) or "\0" in value:
        raise TrainError(f"{name} must be a text, got {value!r}")


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TrainError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")
