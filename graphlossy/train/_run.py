"""One training run: a scheme, a seed, and everything needed to stop after any epoch and go on bit for bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from graphlossy._compress import Ledger, compress, load_switch_state, restore, switch_state
from graphlossy.core.budget import format_bytes, parse_bytes
from graphlossy.train._config import Scheme, TrainConfig
from graphlossy.train._errors import TrainError
from graphlossy.train._memory import PeakMeter
from graphlossy.train._models import build_model
from graphlossy.train._task import Task

__all__ = ["OUT_OF_MEMORY", "Run", "is_out_of_memory"]

OUT_OF_MEMORY = "out of memory"
# Memory is measured in the second and third step (the first one also makes Adam's state) and in the last; these steps
# begin by handing freed memory back to the system, so the median time per epoch leaves them out.
MEASURED = (2, 3)


class Run:
    """Trains one model under one scheme, an epoch at a time.

    Args:
        scheme: what is kept for the backward pass.
        seed: seeds the weights, dropout and the rounding noise; equal seeds start every scheme from equal weights.
        task: the graph and its labels, on the device to train on.
        config: the settings.

    Attributes:
        epoch: epochs done.
        status: ``"running"``, ``"done"`` or ``"out of memory"``.
        best: epoch, metrics and weights at the best validation score.
    """

    def __init__(self, scheme: Scheme, seed: int, task: Task, config: TrainConfig) -> None:
        self.scheme, self.seed, self.task, self.config = scheme, seed, task, config
        self.device = task.x.device
        self.epoch = 0
        self.status = "running"
        self.best: dict[str, Any] = {"epoch": 0, "valid": -math.inf, "test": math.nan, "weights": {}}
        self.seconds: list[float] = []
        self.peaks: list[int] = []
        self.peak_kind = ""
        self.records: list[dict[str, Any]] = []
        self.split = task.split(seed - config.seed)
        with torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(seed)
            self.model = build_model(
                config.model,
                task.x.shape[1],
                config.hidden,
                task.outputs,
                config.layers,
                config.dropout,
                config.norm,
                config.heads,
            ).to(self.device)
            self._rng = self._read_rng()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self._loss_records = self._count_loss()
        self.ledger = self._compress(self.model) if scheme.compressed else None

    # -- one epoch --------------------------------------------------------------------------------------------------

    def step(self) -> dict[str, Any]:
        """One full-batch step and an evaluation; returns the line for ``metrics.jsonl``.

        Running out of memory ends the run with the status ``"out of memory"`` and does not raise: that the baseline
        does not fit is a result.

        Raises:
            TrainError: the loss is not finite, or the scheme's byte budget cannot be met.
        """
        with self._own_rng():
            failed = False
            try:
                line = self._train_and_evaluate()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            if failed:  # outside the handler: the traceback held the activations
                return self._give_up()
        return line

    def _train_and_evaluate(self) -> dict[str, Any]:
        epoch = self.epoch + 1
        measured = epoch in MEASURED or epoch == self.config.epochs
        if epoch == 1 and not self.scheme.compressed:
            self.records = self._count_baseline()
        loss, seconds, peak = self._train(measured)
        if not math.isfinite(loss):
            raise TrainError(
                f"the loss of {self.scheme.label}, seed {self.seed}, became {loss} in epoch {epoch}; lower --lr "
                f"(now {self.config.lr:g})"
            )
        start = time.perf_counter()
        scores = self._evaluate()
        evaluation = time.perf_counter() - start
        self.epoch = epoch
        if not measured:
            self.seconds.append(seconds)
        if peak is not None:
            self.peaks.append(peak)
        if scores["valid"] > self.best["valid"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"epoch": epoch, "valid": scores["valid"], "test": scores["test"], "weights": weights}
        if epoch == self.config.epochs:
            if not self.seconds:
                self.seconds.append(seconds)
            self.status = "done"
        return {
            "run": self.scheme.label,
            "seed": self.seed,
            "epoch": epoch,
            "loss": loss,
            **scores,
            "saved_bytes": self.saved_bytes,
            "peak_bytes": peak,
            "seconds": seconds,
            "evaluation_seconds": evaluation,
        }

    def _train(self, measured: bool) -> tuple[float, float, int | None]:
        task = self.task
        meter = PeakMeter(self.device) if measured else None
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        if meter is not None:
            meter.start()
        self._synchronize()
        start = time.perf_counter()
        try:
            out = self._forward(self.model)
        except ValueError:
            if self.ledger is None or self.scheme.budget is None:
                raise
            raise self._over_budget(self.ledger) from None
        loss = task.loss(out, self.split.train)
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        self._synchronize()
        seconds = time.perf_counter() - start
        peak = meter.stop() if meter is not None else None
        if meter is not None:
            self.peak_kind = meter.kind
        if self.ledger is not None and (measured or not self.records):
            self.records = [asdict(record) for record in self.ledger.records] + self._loss_records
            if meter is not None and meter.kind == "saved":
                peak = self.ledger.peak_saved_bytes + _sum_saved(self._loss_records)
        elif meter is not None and meter.kind == "saved":
            peak = self.saved_bytes
        return value, seconds, peak

    def _forward(self, model: torch.nn.Module) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.amp):
            return model(self.task.x, self.task.adj).float()

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        out = self._forward(self.model)
        return {name: self.task.score(out, rows) for name, rows in self.split.items()}

    def rehearse(self) -> None:
        """Runs one forward pass on a copy of the model, so that a budget that cannot be met shows before training.

        Raises:
            TrainError: the scheme's byte budget cannot be met.
        """
        with torch.random.fork_rng(devices=self._cuda()):
            probe = restore(copy.deepcopy(self.model)).train()
            ledger = self._compress(probe)
            try:
                self._forward(probe)
            except ValueError:
                raise self._over_budget(ledger) from None
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise

    def _count_baseline(self) -> list[dict[str, Any]]:
        """What plain autograd saves, counted on a copy of the model so that training itself runs without hooks."""
        probe = copy.deepcopy(self.model).train()
        ledger = compress(probe, bits=None)
        try:
            with torch.random.fork_rng(devices=self._cuda()):
                for _ in range(2):  # in the first pass layers build what they keep from step to step
                    out = self._forward(probe)
                    del out
            return [asdict(record) for record in ledger.records] + self._loss_records
        finally:
            restore(probe)

    def _count_loss(self) -> list[dict[str, Any]]:
        """What the loss saves, exact under every scheme."""
        out = torch.zeros(self.task.x.shape[0], self.task.outputs, device=self.device, requires_grad=True)
        with compress(bits=None, seed=0) as ledger:  # a seed leaves torch's generator alone
            loss = self.task.loss(out * 1.0, self.split.train)
        del loss
        return [{**asdict(record), "module": "loss"} for record in ledger.records]

    def _compress(self, model: torch.nn.Module) -> Ledger:
        if self.scheme.budget is None:
            return compress(model, bits=self.scheme.bits)
        # The budget is for all that is saved; the loss, which is kept as it is, takes its part first.
        room = parse_bytes(self.scheme.budget) - _sum_saved(self._loss_records)
        return compress(model, budget=max(room, 1))

    def _over_budget(self, ledger: Ledger) -> TrainError:
        need = ledger.saved_bytes + _sum_saved(self._loss_records)
        return TrainError(
            f"--budget {self.scheme.budget} cannot be met: a step saves {need} bytes ({format_bytes(need)}) with every "
            "tensor at its lowest width (1 bit; masks, exact tensors and the loss included); give at least "
            f"{need}B, or a smaller model"
        )

    def _give_up(self) -> dict[str, Any]:
        self.status = OUT_OF_MEMORY
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {"run": self.scheme.label, "seed": self.seed, "epoch": self.epoch + 1, "status": OUT_OF_MEMORY}

    # -- results and state ------------------------------------------------------------------------------------------

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for the backward pass, metadata included."""
        return _sum_saved(self.records)

    def result(self) -> dict[str, Any]:
        """What the summary and the report need, as plain values."""
        return {
            "run": self.scheme.label,
            "seed": self.seed,
            "status": self.status,
            "epochs": self.epoch,
            "best_epoch": self.best["epoch"],
            "valid": self.best["valid"] if self.best["epoch"] else None,
            "test": self.best["test"] if self.best["epoch"] else None,
            "saved_bytes": self.saved_bytes if self.records else None,
            "peak_bytes": max(self.peaks) if self.peaks else None,
            "peak_kind": self.peak_kind,
            "seconds": self.seconds,
            "records": self.records,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, loadable with ``weights_only=True``."""
        return {
            "run": self.scheme.label,
            "seed": self.seed,
            "epoch": self.epoch,
            "status": self.status,
            "best": self.best,
            "seconds": self.seconds,
            "peaks": self.peaks,
            "peak_kind": self.peak_kind,
            "records": [{**record, "shape": list(record["shape"])} for record in self.records],
            "rng": self._rng,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "compression": switch_state(self.model),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the run where :meth:`state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_switch_state(self.model, state["compression"])
        self._rng = state["rng"]
        for name in ("epoch", "status", "best", "seconds", "peaks", "peak_kind", "records"):
            setattr(self, name, state[name])

    # -- random numbers ---------------------------------------------------------------------------------------------

    @contextmanager
    def _own_rng(self) -> Iterator[None]:
        # The runs of one seed take turns; each goes on in its own random stream.
        with torch.random.fork_rng(devices=self._cuda()):
            torch.set_rng_state(self._rng["cpu"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(self._rng["cuda"], self.device)
            yield
            self._rng = self._read_rng()

    def _read_rng(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _cuda(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _sum_saved(records: list[dict[str, Any]]) -> int:
    return sum(record["saved_bytes"] for record in records)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there is not enough memory, on a GPU or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "Storage size calculation overflowed"))
