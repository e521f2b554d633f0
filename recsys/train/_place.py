"""What the trainings of one cell have in common: the data, the seed, the folder, and the full model they share."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.core._peak import PeakMeter
from graphlossy.recsys.models import make_model, options_of
from graphlossy.recsys.train._tables import table_bytes, tables_of
from graphlossy.recsys.train.config import FitConfig
from graphlossy.recsys.train.fit import FitResult, fit

__all__ = ["OnEpoch", "Place", "Trained", "full_table_bytes"]

OnEpoch = Callable[[dict[str, float]], None]


def full_table_bytes(data: Any, model_name: str, config: FitConfig) -> int:
    """Bytes of the tables of a model without compression, first-order weights included; nothing is allocated."""
    with torch.device("meta"):
        model = _make(data, model_name, config)
    return table_bytes(tables_of(model).values())


@dataclass
class Trained:
    model: nn.Module
    result: FitResult


@dataclass
class Place:
    """What all trainings of a cell have in common."""

    data: Any
    model_name: str
    seed: int
    config: FitConfig
    device: torch.device
    folder: Path | None
    cache: MutableMapping[str, Any] | None
    on_epoch: OnEpoch | None

    def make(self, name: str | None = None) -> nn.Module:
        """A model with the random weights of this seed."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            return _make(self.data, name or self.model_name, self.config).to(self.device)

    def train(self, model: nn.Module, name: str, meter: PeakMeter, **options: Any) -> FitResult:
        """`fit` with a checkpoint of that name."""
        return fit(
            model, self.data, self.config, self.seed, checkpoint=self.file("checkpoints", f"{name}-seed{self.seed}.pt"),
            on_epoch=self.on_epoch, meter=meter, **options,
        )  # fmt: skip

    def full(self) -> Trained:
        """The full model, trained; from the cache if it is there."""
        key = self.digest()
        if self.cache is None or key not in self.cache:
            meter = PeakMeter(self.device)
            model = self.make()
            result = self.train(model, "full", meter)
            if self.cache is None:
                return Trained(model, result)
            self.cache.clear()  # one at a time: a full model may be large
            self.cache[key] = ({n: v.detach().cpu() for n, v in model.state_dict().items()}, result)
        weights, result = self.cache[key]
        model = self.make()
        model.load_state_dict(weights)
        return Trained(model, result)

    def bias(self) -> Trained:
        """First-order weights alone, trained."""
        meter = PeakMeter(self.device)
        model = self.make("bias")
        alone = replace(self, config=replace(self.config, lr=self.config.bias_lr))
        return Trained(model, alone.train(model, "bias", meter))

    def batches(self, whole: bool = False) -> Any:
        """Training batches for a search, the same ones every time; ``whole``: of an epoch, for a search that trains."""
        size, limit = self.config.batch_size, None if whole else self.config.search_batches
        return Batches(self.data.train, size, self.seed, limit, self.device)

    def digest(self) -> str:
        """Names what a trained full model depends on."""
        text = json.dumps([self.data.name, self.model_name, self.seed, self.config.to_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def file(self, part: str, name: str) -> Path | None:
        """A file of the folder, None without one."""
        return None if self.folder is None else self.folder / part / name


class Batches:
    """Re-iterable training batches in the order of one seed."""

    def __init__(self, split: Any, batch_size: int, seed: int, limit: int | None, device: torch.device) -> None:
        self.split, self.batch_size, self.seed, self.limit, self.device = split, batch_size, seed, limit, device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        found = itertools.islice(self.split.batches(self.batch_size, shuffle=True, seed=self.seed), self.limit)
        for batch in found:
            yield {name: value.to(self.device) for name, value in batch.items()}

    def __len__(self) -> int:
        count = -(-len(self.split) // self.batch_size)
        return count if self.limit is None else min(count, self.limit)


def _make(data: Any, name: str, config: FitConfig) -> nn.Module:
    options = dict(config.model_options)
    if name == "bias":  # the row beside another model, whose options it does not have
        options = {key: value for key, value in options.items() if key in options_of("bias")}
    return make_model(name, data.fields, config.embedding_dim, **options)
