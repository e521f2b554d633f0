"""The settings of training, and the one error that stands for a mistake a person can correct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

__all__ = ["OPTIMIZERS", "FitConfig", "TrainingError", "resolve_device"]

OPTIMIZERS = ("adam", "sparse_adamw", "rowwise_adagrad")


class TrainingError(ValueError):
    """A setting, data set or run folder with which training cannot start or go on; the text is one line."""


@dataclass(frozen=True)
class FitConfig:
    """Settings of `fit` and `run_cell`.

    Attributes:
        embedding_dim: width d of the embeddings.
        model_options: arguments of the model, such as ``{"hidden": [64, 32], "dropout": 0.1}``.
        optimizer: of the tables: ``"adam"`` (dense; tables with sparse gradients or low-bit rows get
            ``"sparse_adamw"``), ``"sparse_adamw"`` or ``"rowwise_adagrad"`` of `graphlossy.recsys.optim`. The rest of
            the model has Adam.
        lr: learning rate.
        bias_lr: learning rate of the row of biases alone, which have far to go and no layers to disturb.
        l2: penalty on the embeddings that a batch looks up: l2 / 2 times the mean over the batch of their squared
            norms, compressed tables at their common width; first-order weights included.
        batch_size: rows of a training batch.
        eval_batch_size: rows of a batch in evaluation and for `lookup_ms`.
        epochs: the most passes over the training split.
        patience: epochs without a better validation AUC after which training stops; 0 never stops early.
        finetune_epochs: the most epochs that a model compressed after training is trained on.
        search_batches: training batches that a search before or after training reads; None is all of them, and half of
            them for methods that score by gradients, whose search then takes less time than an epoch.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        TrainingError: a setting is out of range; the text names it.

    Example:
        >>> FitConfig(epochs=0)
        Traceback (most recent call last):
        ...
        graphlossy.recsys.train.config.TrainingError: epochs must be an int of at least 1, got 0
    """

    embedding_dim: int = 16
    model_options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adam"
    lr: float = 3e-3
    bias_lr: float = 1e-2
    l2: float = 0.0
    batch_size: int = 1024
    eval_batch_size: int = 8192
    epochs: int = 20
    patience: int = 3
    finetune_epochs: int = 10
    search_batches: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (
            ("embedding_dim", 1), ("batch_size", 1), ("eval_batch_size", 1), ("epochs", 1), ("patience", 0),
            ("finetune_epochs", 0), ("search_batches", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "search_batches" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise TrainingError(f"{name} must be an int of at least {least}, got {value!r}")
        for name in ("lr", "bias_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.l2 < float("inf"):
            raise TrainingError(f"l2 must be a non-negative number, got {self.l2}")
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; tuples as lists."""
        values = asdict(self)
        options = dict(self.model_options)
        values["model_options"] = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitConfig:
        """The reverse of `to_dict`.

        Raises:
            TrainingError: a setting is unknown.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise TrainingError(f"unknown settings {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return cls(**values)


def resolve_device(name: str) -> torch.device:
    """The device of a name; ``"auto"`` is CUDA where there is one.

    Raises:
        TrainingError: the name is unknown or this machine has no such device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise TrainingError(f"device {name} is not available: torch finds {count} CUDA devices; use cpu")
    return device
