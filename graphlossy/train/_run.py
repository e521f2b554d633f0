"""One training run: a scheme, a seed, and everything needed to stop after any epoch and go on bit for bit."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from graphlossy._compress import compress, load_switch_state, restore, switch_state
from graphlossy.core._memory import is_out_of_memory
from graphlossy.core._peak import PeakMeter
from graphlossy.train._batches import Batch, Batches, make_batches
from graphlossy.train._config import Scheme, TrainConfig
from graphlossy.train._counting import Compression, batch_loss, count_loss, count_plain, ledger_records, sum_saved
from graphlossy.train._ddp_collectives import average_buffers, gather_objects
from graphlossy.train._ddp_group import Rank
from graphlossy.train._ddp_loss import SharedLoss
from graphlossy.train._ddp_model import wrap
from graphlossy.train._ddp_seed import epoch_seed
from graphlossy.train._device import resolve_device
from graphlossy.train._errors import TrainError
from graphlossy.train._evaluation import forward, layerwise
from graphlossy.train._models import build_model
from graphlossy.train._random_stream import RandomStream
from graphlossy.train._task import Task
from graphlossy.train.gradients import QuantizedState, compress_gradients

__all__ = ["OUT_OF_MEMORY", "Run"]

OUT_OF_MEMORY = "out of memory"
# Memory is measured in the second and third step (the first one also makes Adam's state) and in the last; these steps
# begin by handing freed memory back to the system, so the median time per epoch leaves them out. It also leaves out an
# epoch of mini-batches whose saved bytes are counted.
MEASURED = (2, 3)


class Run:
    """Trains one model under one scheme, an epoch at a time, together with the other processes of a torchrun job.

    Without mini-batches every process runs the whole graph in one and the same random stream, so that dropout and the
    rounding noise are those of a single process. With them every process has nodes and random numbers of its own.

    Args:
        scheme: what is kept for the backward pass.
        seed: seeds the weights, dropout and the rounding noise; equal seeds start every scheme from equal weights.
        task: the graph and its labels.
        config: the settings.
        batches: what each epoch trains on; None makes what ``config`` asks for.
        rank: this process among those that train together; None is one process, on the device of ``config``.

    Attributes:
        epoch: epochs done.
        status: ``"running"``, ``"done"`` or ``"out of memory"``.
        best: epoch, metrics and weights at the best validation score.
    """

    def __init__(
        self,
        scheme: Scheme,
        seed: int,
        task: Task,
        config: TrainConfig,
        batches: Batches | None = None,
        rank: Rank | None = None,
    ) -> None:
        self.scheme, self.seed, self.task, self.config = scheme, seed, task, config
        self.rank = Rank(0, 1, 0, resolve_device(config.device)) if rank is None else rank
        self.device = self.rank.device
        self.split = task.split(seed - config.seed)
        if batches is None:
            place = self.rank.rank, self.rank.world_size
            batches = make_batches(task, self.split, config, seed, self.device, *place)
        self.batches = batches
        self.epoch = 0
        self.status = "running"
        self.best: dict[str, Any] = {"epoch": 0, "valid": -math.inf, "test": math.nan, "weights": {}}
        self.seconds: list[float] = []
        self.peaks: list[int] = []
        self.peak_kind = ""
        self.records: list[dict[str, Any]] = []
        self._loss_records: list[dict[str, Any]] = []  # of a full batch, whose loss is the same in every epoch
        self._counted: tuple[tuple[int, int], int] | None = None
        self._timed = True
        self._stream = RandomStream(self.device)
        with self._stream.begun(seed):
            self.model = build_model(
                config.model,
                task.x.shape[1],
                config.hidden,
                task.outputs,
                config.layers,
                config.dropout,
                config.norm,
                config.heads,
                normalize=not config.normalized_outside,
            ).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.compression = Compression(scheme, self.model) if scheme.compressed else None
        self.network = wrap(self.model)  # after compression; the model itself where there is one process
        self._together = SharedLoss(task, self.rank) if self.rank.world_size > 1 else None
        self.gradients: QuantizedState | None = None
        if self._together is not None and config.gradient_bits is not None:
            feedback = config.gradient_feedback
            self.gradients = compress_gradients(self.network, config.gradient_bits, error_feedback=feedback, seed=seed)

    # -- one epoch --------------------------------------------------------------------------------------------------

    def step(self) -> dict[str, Any]:
        """One epoch and an evaluation, where one is due; returns the line for ``metrics.jsonl``.

        Running out of memory ends the run with the status ``"out of memory"`` and does not raise: that the baseline
        does not fit is a result. Where several processes train it is an error, for the others wait for this one.

        Raises:
            TrainError: the loss is not finite, or the scheme's byte budget cannot be met.
        """
        own = self._together is not None and self.batches.sampled
        with self._stream.continued(epoch_seed(self.seed, self.rank.rank, self.epoch + 1) if own else None):
            failed = False
            try:
                line = self._train_and_evaluate()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            if failed and self._together is not None:
                raise TrainError(
                    f"{self.rank} ran out of memory in {self.scheme.label}, seed {self.seed}; leave that scheme out "
                    "with --schemes, or give a smaller --hidden or --batch-size"
                )
            if failed:  # outside the handler: the traceback held the activations
                return self._give_up()
        return line

    def _train_and_evaluate(self) -> dict[str, Any]:
        epoch = self.epoch + 1
        measured = epoch in MEASURED or epoch == self.config.epochs
        loss, seconds, peak = self._train(measured)
        if not math.isfinite(loss):
            raise TrainError(
                f"the loss of {self.scheme.label}, seed {self.seed}, became {loss} in epoch {epoch}; lower --lr "
                f"(now {self.config.lr:g})"
            )
        if self._together is not None and self.batches.sampled:
            average_buffers(self.model)  # in every epoch, so that a checkpoint of one process is that of all
        start = time.perf_counter()
        due = epoch % self.config.eval_every == 0 or epoch == self.config.epochs
        scores = self._evaluate() if due else dict.fromkeys(self.split._fields)
        evaluation = time.perf_counter() - start if due else None
        self.epoch = epoch
        if self._timed:
            self.seconds.append(seconds)
        if peak is not None:
            self.peaks.append(peak)
        if scores["valid"] is not None and scores["valid"] > self.best["valid"]:
            weights = {}
            if self.rank.is_main:
                weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"epoch": epoch, "valid": scores["valid"], "test": scores["test"], "weights": weights}
        if epoch == self.config.epochs:
            if not self.seconds:
                self.seconds.append(seconds)
            self.status = "done"
        sent = {} if self.gradients is None else {"bytes_sent": self.gradients.bytes_sent}
        return {
            "run": self.scheme.label,
            "seed": self.seed,
            "epoch": epoch,
            "loss": loss,
            **scores,
            "saved_bytes": self.saved_bytes,
            "peak_bytes": peak,
            **sent,
            "seconds": seconds,
            "evaluation_seconds": evaluation,
        }

    def _train(self, measured: bool) -> tuple[float, float, int | None]:
        """Trains one epoch; returns its mean loss, seconds, and peak memory where that is measured."""
        plain = self.compression is None
        count = not self.records or (measured and not plain)
        self._timed = not measured and not (count and self.batches.sampled)
        if not self.batches.sampled and (count or measured):
            batch = next(iter(self.batches.epoch(self.epoch + 1)))
            self._loss_records = self._loss_records or count_loss(self.task, batch)
            if count and plain:
                self.records = count_plain(self.model, batch, self.config.amp) + self._loss_records
                count = False
        # The batches of a sampler are never seen again: what plain autograd saves is counted as they go by.
        counter = compress(self.model, bits=None, seed=0) if count and plain else None
        ledger = counter
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        meter = PeakMeter(self.device) if measured else None
        self._synchronize()
        start = time.perf_counter()
        losses, most, tracked = [], -1, 0
        try:
            for batch in self.batches.epoch(self.epoch + 1):
                share = batch.share
                if self._together is not None:
                    share = self._together.begin(batch, again=not self.batches.sampled)
                    if not share:
                        continue
                losses.append(self._step(batch) * share)
                if not (count or measured):
                    continue
                ledger = counter if self.compression is None else self.compression.ledger
                if ledger is None:
                    continue
                loss_records = self._loss_records or count_loss(self.task, batch)
                tracked = max(tracked, ledger.peak_saved_bytes + sum_saved(loss_records))
                if count and ledger.saved_bytes + sum_saved(loss_records) > most:
                    self.records = ledger_records(ledger) + loss_records
                    most = self.saved_bytes
        finally:
            if counter is not None:
                restore(self.model)
        if not losses:
            raise TrainError("no batch of the epoch holds a training node; give a larger batch_size")
        value = float(sum(losses[1:], losses[0]))
        if self._together is not None:
            value = self._together.end(value)
        self._synchronize()
        seconds = time.perf_counter() - start
        peak = None
        if meter is not None:
            # The peak of the process so far says nothing of this epoch.
            known = meter.kind != "process"
            self.peak_kind, peak = (meter.kind, meter.read()) if known else ("saved", tracked or self.saved_bytes)
        return value, seconds, peak

    def _step(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss_bytes = 0
        if self.compression is not None and self.scheme.budget is not None:
            loss_bytes = self._loss_bytes(batch)
            self.compression.fit(loss_bytes)
        try:
            out = forward(self.network, batch.x, batch.adj, self.config.amp)
        except ValueError:
            if self.compression is None or self.scheme.budget is None:
                raise
            raise self.compression.over_budget(loss_bytes) from None
        loss = batch_loss(self.task, out, batch) if self._together is None else self._together(out, batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _loss_bytes(self, batch: Batch) -> int:
        rows = (len(batch.rows), batch.x.shape[0])
        if self._counted is None or self._counted[0] != rows:
            self._counted = rows, sum_saved(count_loss(self.task, batch))
        return self._counted[1]

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float | None]:
        self.model.eval()
        task, amp = self.task, self.config.amp
        if self.config.eval_batch is not None:
            out = layerwise(self.model, task.x, task.adj, self.config.eval_batch, self.device, amp)
        else:
            out = forward(self.model, task.x, task.adj, amp)
        return {name: task.score(out, rows) for name, rows in self.split.items()}

    def rehearse(self) -> None:
        """Runs one forward pass on a copy of the model, so that a budget that cannot be met shows before training.

        Raises:
            TrainError: the scheme's byte budget cannot be met.
        """
        if self.compression is None:
            return
        with self._stream.apart():
            try:
                batch = next(self.batches.epoch(1), None)
                if batch is not None:
                    self.compression.rehearse(self.task, batch, self.config.amp)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise

    def _give_up(self) -> dict[str, Any]:
        self.status = OUT_OF_MEMORY
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {"run": self.scheme.label, "seed": self.seed, "epoch": self.epoch + 1, "status": OUT_OF_MEMORY}

    def part(self) -> None:
        """Lets go of the wrapper and so of the other processes; the run cannot train on."""
        self.network = self.model

    # -- results and state ------------------------------------------------------------------------------------------

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for the backward pass, metadata included."""
        return sum_saved(self.records)

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
            **(
                {}
                if self.gradients is None
                else {"bytes_sent": self.gradients.bytes_sent, "bytes_plain": self.gradients.bytes_plain}
            ),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, loadable with ``weights_only=True``.

        All processes must call it together: what each of them has of its own is gathered.
        """
        own: dict[str, Any] = {"compression": switch_state(self.model)}
        if self.gradients is not None:
            own["gradients"] = self.gradients.state_dict()
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
            "rng": self._stream.state,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **(own if self._together is None else {"ranks": gather_objects(own)}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the run where :meth:`state_dict` was taken, by as many processes or by others."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        ranks = state["ranks"] if "ranks" in state else [state]
        same = len(ranks) == self.rank.world_size
        own = ranks[self.rank.rank if same else 0]
        load_switch_state(self.model, own["compression"])
        if self.gradients is not None and "gradients" in own:
            merged = own["gradients"] if same else QuantizedState.merge([each["gradients"] for each in ranks])
            self.gradients.load_state_dict(merged)
        self._stream.state = state["rng"]
        for name in ("epoch", "status", "best", "seconds", "peaks", "peak_kind", "records"):
            setattr(self, name, state[name])

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
