"""`fit`: trains a click model with early stopping, and goes on after an interruption as if there had been none."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.core._peak import PeakMeter
from graphlossy.recsys.train._files import load_checkpoint, save_checkpoint
from graphlossy.recsys.train._optimizers import make_optimizers, state_bytes
from graphlossy.recsys.train._tables import tables_of
from graphlossy.recsys.train.config import FitConfig, TrainingError
from graphlossy.recsys.train.metrics import auc, logloss

__all__ = ["FitResult", "evaluate", "fit", "loss_fn"]

CHECK_EVERY = 64  # batches between two looks at the loss, which on a GPU wait for it


@dataclass
class FitResult:
    """What training did.

    Attributes:
        epochs: passes over the training split.
        best_epoch: the one whose weights the model has now; 0 are those it came with.
        valid: AUC and logloss of the validation split at that epoch.
        history: for every epoch its number, mean training loss, validation AUC and logloss, and seconds of training.
        state_bytes: of the tables in training, with gradients and the optimizers' state.
        peak_bytes: highest memory of training beyond the base of the meter, evaluation left out; None without a meter.
    """

    epochs: int = 0
    best_epoch: int = 0
    valid: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    state_bytes: int = 0
    peak_bytes: int | None = None

    @property
    def epoch_seconds(self) -> float | None:
        """Median seconds of an epoch of training, evaluation left out; None where there was no epoch."""
        return statistics.median([line["seconds"] for line in self.history]) if self.history else None


def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Binary cross-entropy of a batch: a scalar."""
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch), batch["label"])


@torch.no_grad()
def evaluate(model: nn.Module, split: Any, batch_size: int = 8192) -> dict[str, float]:
    """AUC and logloss of a model on a split; the model is left in the mode it came in.

    Args:
        model: logits [B] from a batch.
        split: of the data, with ``batches(batch_size)``.
        batch_size: rows at a time.

    Raises:
        TrainingError: the split is empty or has labels of one kind only, or a logit is NaN.
    """
    training = model.training
    model.eval()
    device = _device(model)
    logits, labels = [], []
    for batch in split.batches(batch_size):
        logits.append(model(_to(batch, device)).float().cpu())
        labels.append(batch["label"].cpu())
    model.train(training)
    if not logits:
        raise TrainingError("cannot evaluate on an empty split; give more rows, or another split")
    out, truth = torch.cat(logits), torch.cat(labels)
    try:
        return {"auc": auc(out, truth), "logloss": logloss(out, truth)}
    except ValueError as error:
        raise TrainingError(f"cannot evaluate: {error}") from None


def fit(
    model: nn.Module,
    data: Any,
    config: FitConfig | None = None,
    seed: int = 0,
    epochs: int | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    keep_first: bool = False,
    meter: PeakMeter | None = None,
    checkpoint_seconds: float = 5.0,
) -> FitResult:
    """Trains ``model`` in place, and leaves it with the weights of the epoch of the best validation AUC.

    Args:
        model: logits [B] from a batch of ``data``, on the device to train on.
        data: with ``train`` and ``valid`` splits, as `graphlossy.recsys.data.CTRData`.
        config: the settings.
        seed: of the order of the rows, of dropout and of stochastic rounding.
        epochs: instead of those of ``config``; 0 only evaluates.
        checkpoint: a file that is written between epochs and taken up again if it is there; the result is that of an
            uninterrupted run. It is not removed at the end.
        on_epoch: called with every line of the history, those of a checkpoint included.
        keep_first: count the weights that the model comes with as epoch 0, for the best epoch and for ``patience``.
        meter: made before the model; it is started for every epoch, and its highest peak is in the result.
        checkpoint_seconds: least time between two checkpoints; 0 writes one after every epoch.

    Raises:
        TrainingError: the training split is empty, the loss became NaN or infinite, or the checkpoint is of another
            training.

    Example:
        >>> from types import SimpleNamespace
        >>> from graphlossy.recsys.models import make_model
        >>> ids = torch.arange(64) % 4
        >>> batch = {"item": ids, "label": (ids > 1).float()}
        >>> split = SimpleNamespace(batches=lambda *args, **kwargs: [batch])
        >>> model = make_model("bias", [SimpleNamespace(name="item", kind="token", num_tokens=4)])
        >>> fit(model, SimpleNamespace(train=split, valid=split), FitConfig(epochs=3, lr=0.1)).valid["auc"]
        1.0
    """
    config = FitConfig() if config is None else config
    epochs = config.epochs if epochs is None else epochs
    run = _Training(model, data, config, seed, epochs, keep_first, meter)
    with _own_stream(seed, _device(model)):
        if checkpoint is not None and checkpoint.exists():
            run.load_state_dict(load_checkpoint(checkpoint), checkpoint)
            for line in run.result.history if on_epoch is not None else []:
                on_epoch(line)
        elif keep_first:
            run.score(0)
        saved = time.monotonic()
        with run.penalty():
            while not run.done:
                line = run.epoch()
                if on_epoch is not None:
                    on_epoch(line)
                if checkpoint is not None and (run.done or time.monotonic() - saved >= checkpoint_seconds):
                    save_checkpoint(checkpoint, run.state_dict())
                    saved = time.monotonic()
    return run.finish()


class _Training:
    """The state between two epochs."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        config: FitConfig,
        seed: int,
        epochs: int,
        keep_first: bool,
        meter: PeakMeter | None,
    ) -> None:
        self.model, self.data, self.config, self.seed, self.epochs = model, data, config, seed, epochs
        self.keep_first, self.meter = keep_first, meter
        self.device = _device(model)
        self.optimizers = make_optimizers(model, config, seed) if epochs else []
        self.result = FitResult()
        self.best: dict[str, Any] = {"auc": -math.inf, "weights": None}
        self.looked_up: list[Tensor] = []

    @property
    def done(self) -> bool:
        waited = self.result.epochs - self.result.best_epoch
        return self.result.epochs >= self.epochs or bool(self.config.patience and waited >= self.config.patience)

    def epoch(self) -> dict[str, float]:
        """One pass over the training split, and an evaluation."""
        number = self.result.epochs + 1
        self.model.train()
        total, rows = torch.zeros((), dtype=torch.float64, device=self.device), 0
        if self.meter is not None:
            self.meter.start()
        begin = time.perf_counter()
        batches = self.data.train.batches(self.config.batch_size, shuffle=True, seed=self._order(number))
        for index, batch in enumerate(batches):
            size = len(batch["label"])
            total += self._step(_to(batch, self.device)).double() * size
            rows += size
            if index % CHECK_EVERY == 0:
                self._check(total, number)
        if not rows:
            raise TrainingError("the training split is empty; give more rows, or another split")
        self._check(total, number)  # also waits for a GPU
        seconds = time.perf_counter() - begin
        self.result.epochs = number
        peak = None if self.meter is None else self.meter.read()
        if peak is not None:
            self.result.peak_bytes = max(self.result.peak_bytes or 0, peak)
        self.result.state_bytes = max(self.result.state_bytes, state_bytes(self.model, self.optimizers))
        found = self.score(number)
        line = {"epoch": number, "loss": float(total) / rows, **found, "seconds": seconds}
        self.result.history.append(line)
        return line

    def score(self, number: int) -> dict[str, float]:
        """Evaluates, and keeps the weights if they are the best so far."""
        found = evaluate(self.model, self.data.valid, self.config.eval_batch_size)
        if found["auc"] > self.best["auc"]:
            weights = {name: _copy(value) for name, value in self.model.state_dict().items()}
            self.best = {"auc": found["auc"], "weights": weights}
            self.result.best_epoch, self.result.valid = number, found
        return found

    def _order(self, epoch: int) -> int:
        return self.seed * 100_003 + epoch

    def _step(self, batch: dict[str, Tensor]) -> Tensor:
        self.looked_up.clear()
        loss = loss_fn(self.model, batch)
        full = loss
        if self.config.l2:
            squares = sum(out.float().square().sum() for out in self.looked_up)
            full = loss + self.config.l2 / 2 * squares / len(batch["label"])
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        full.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def _check(self, total: Tensor, epoch: int) -> None:
        if not math.isfinite(float(total)):
            raise TrainingError(
                f"the training loss became {float(total)} in epoch {epoch}; lower the learning rate "
                f"(now {self.config.lr:g}) or look for NaN in the float fields"
            )

    @contextmanager
    def penalty(self) -> Iterator[None]:
        """Inside this context what tables give is noted, if it is penalised."""
        hooks = []
        if self.config.l2:
            for table in tables_of(self.model).values():
                hooks.append(table.register_forward_hook(lambda module, inputs, out: self.looked_up.append(out)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.looked_up.clear()

    def finish(self) -> FitResult:
        if self.best["weights"] is not None:
            self.model.load_state_dict(self.best["weights"])
        return self.result

    def settings(self) -> dict[str, Any]:
        shapes = {name: list(getattr(value, "shape", ())) for name, value in self.model.state_dict().items()}
        run = {"seed": self.seed, "epochs": self.epochs, "keep_first": self.keep_first, "shapes": shapes}
        return {**self.config.to_dict(), **run, "rows": len(self.data.train)}

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "settings": self.settings(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "best": self.best,
            "result": vars(self.result),
            "rng": torch.get_rng_state(),
            "cuda_rng": cuda,
        }

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        if state.get("settings") != self.settings():
            raise TrainingError(f"checkpoint {path} is of another training; remove it to train anew")
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.best, self.result = state["best"], FitResult(**state["result"])
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(
                f"checkpoint {path} does not fit the model: {reason}; remove it to train anew"
            ) from None
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


@contextmanager
def _own_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Inside this context torch's generators begin from ``seed``; afterwards they are where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _copy(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return batch if device.type == "cpu" else {name: value.to(device) for name, value in batch.items()}
