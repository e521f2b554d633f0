"""Full-batch training by all processes together, resumed by itself when torchrun starts them anew."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphlossy._compress import Ledger, compress, load_switch_state, switch_state
from graphlossy.train._checkpoint import write_text
from graphlossy.train._config import Scheme, TrainConfig
from graphlossy.train._ddp_collectives import gather_objects, on_main, reduce_mean
from graphlossy.train._ddp_group import Rank
from graphlossy.train._ddp_model import partition, share_of_loss, wrap
from graphlossy.train._errors import TrainError
from graphlossy.train._folder import RunFolder
from graphlossy.train._models import build_model
from graphlossy.train._task import Task
from graphlossy.train.gradients import QuantizedState, compress_gradients

__all__ = ["Replica", "launch_name", "loss_terms", "train_replicas"]


class Replica:
    """One process's part of a model that all processes train together, an epoch at a time.

    Every rank runs the whole graph in one and the same random stream, so that dropout and the rounding noise are those
    of a single process; the loss is over the rank's share of the training nodes.

    Args:
        scheme: what is kept for the backward pass.
        seed: of the weights, dropout and the rounding noise.
        task: the graph and its labels, on this rank's device.
        config: the settings.
        rank: this process.
        gradient: settings of :class:`~graphlossy.train.gradients.QuantizedState`; None sends float32.
    """

    def __init__(
        self,
        scheme: Scheme,
        seed: int,
        task: Task,
        config: TrainConfig,
        rank: Rank,
        gradient: dict[str, Any] | None = None,
    ) -> None:
        self.scheme, self.seed, self.task, self.config, self.rank = scheme, seed, task, config, rank
        self.device, self.epoch = task.x.device, 0
        self.split = task.split(seed - config.seed)
        self.rows = partition(self.split.train, rank.rank, rank.world_size)
        self.terms, self.total = (loss_terms(task.y[rows]) for rows in (self.rows, self.split.train))
        sizes = (task.x.shape[1], config.hidden, task.outputs, config.layers)
        with torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(seed)
            model = build_model(config.model, *sizes, config.dropout, config.norm, config.heads)
            self.model = model.to(self.device)
            self._rng = self._read_rng()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.ledger: Ledger | None = None
        if scheme.compressed:
            widths = {"budget": scheme.budget} if scheme.budget is not None else {"bits": scheme.bits}
            self.ledger = compress(self.model, **widths)
        self.network = wrap(self.model)
        self.state: QuantizedState | None = None
        if gradient is not None and rank.world_size > 1:
            self.state = compress_gradients(self.network, **{"seed": seed, **gradient})

    def step(self) -> dict[str, Any]:
        """One step of all ranks together and an evaluation; returns the line for ``metrics.jsonl``.

        Raises:
            TrainError: the loss is not finite; in every rank.
        """
        start = time.perf_counter()
        with self._own_rng():
            loss = self.backward()
            if not math.isfinite(loss):
                raise TrainError(f"the loss of {self.scheme.label} became {loss}; lower --lr (now {self.config.lr:g})")
            self.optimizer.step()
            scores = self._evaluate()
        self.epoch += 1
        line = {"run": self.scheme.label, "seed": self.seed, "epoch": self.epoch, "loss": loss, **scores}
        line["saved_bytes"] = self.ledger.saved_bytes if self.ledger is not None else None
        line["bytes_sent"] = self.state.bytes_sent if self.state is not None else None
        return {**line, "seconds": time.perf_counter() - start}

    def backward(self) -> float:
        """Leaves the gradient of the loss over all training nodes in every rank's parameters; returns that loss."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        out = self._forward(self.network)
        loss = share_of_loss(
            self.task.loss, out[self.rows], self.task.y[self.rows], self.total, self.rank.world_size, self.terms
        )
        loss.backward()
        return reduce_mean(loss.item())

    def _forward(self, model: torch.nn.Module) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.amp):
            out: Tensor = model(self.task.x, self.task.adj)
        return out.float()

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        out = self._forward(self.model)
        return {name: self.task.score(out, rows) for name, rows in self.split.items()}

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What is the same in every rank, and what each one has of its own; all ranks must call it together."""
        own = {"compression": switch_state(self.model)}
        if self.state is not None:
            own["gradient"] = self.state.state_dict()
        shared = {"seed": self.seed, "epoch": self.epoch, "rng": self._rng}
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**shared, **parts, "ranks": gather_objects(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the run where :meth:`state_dict` was taken, on as many ranks as there were or on others."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self._rng = state["epoch"], state["rng"]
        ranks = state["ranks"]
        same = len(ranks) == self.rank.world_size
        own = ranks[self.rank.rank if same else 0]
        load_switch_state(self.model, own["compression"])
        if self.state is not None and "gradient" in own:
            merged = own["gradient"] if same else QuantizedState.merge([each["gradient"] for each in ranks])
            self.state.load_state_dict(merged)

    @contextmanager
    def _own_rng(self) -> Iterator[None]:
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


def loss_terms(labels: Tensor) -> int:
    """How many numbers ``task.loss`` takes the mean of: nodes, or labels that are known.

    Args:
        labels: classes ``[n]``, or 0/1 labels ``[n, tasks]``, NaN where unknown.
    """
    return len(labels) if labels.dim() == 1 else int((~labels.isnan()).sum())


def launch_name() -> str:
    """What tells this launch of torchrun from others and stays the same when it starts its processes anew."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', 'none')}-{os.getppid()}"


def train_replicas(
    config: TrainConfig,
    task: Task,
    rank: Rank,
    path: Path,
    checkpoint_every: int = 1,
    gradient: dict[str, Any] | None = None,
    observe: Callable[[dict[str, Any]], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Trains the first scheme of ``config`` on its first seed to the end; returns the lines of ``metrics.jsonl``.

    Rank 0 alone reads and writes the run folder. When torchrun has started the processes anew, all of them go on from
    rank 0's last checkpoint with the log cut back to it, so that the finished log is that of an undisturbed run.

    Args:
        config: the settings; the first scheme and the first seed are trained.
        task: the same data in every rank.
        rank: of :func:`~graphlossy.train.distributed.session`.
        path: the run folder, new unless this launch has made it.
        checkpoint_every: epochs between two checkpoints.
        gradient: settings of the gradient hook; None sends float32.
        observe: called in every rank with every line.

    Raises:
        TrainError: the folder holds another run, the data are not those of the checkpoint, or the loss diverged.
    """
    scheme, folder, fingerprint = config.comparison()[0], RunFolder(path), task.fingerprint()

    def write(state: dict[str, Any]) -> None:
        settings = {"settings": config.to_dict(), "data": fingerprint, "results": []}
        folder.checkpoint({**settings, "active": [state]})

    replica = Replica(scheme, config.seed, task, config, rank, gradient)
    try:
        state = on_main(lambda: _open(folder, config, rank))
        if state is not None:
            if state["settings"] != config.to_dict() or state["data"] != fingerprint:
                raise TrainError(f"settings or data changed since {path} was begun; start a new run")
            replica.load_state_dict(state["active"][0])
        while replica.epoch < config.epochs:
            line = replica.step()
            if rank.is_main:
                folder.log(line)
            observe(line)
            if replica.epoch % checkpoint_every == 0 or replica.epoch == config.epochs:
                saved = replica.state_dict()
                if rank.is_main:
                    write(saved)
        return on_main(folder.read_metrics)
    finally:
        folder.close()


def _open(folder: RunFolder, config: TrainConfig, rank: Rank) -> dict[str, Any] | None:
    """Makes the folder, or opens the one that this launch made before it was started anew."""
    launch = folder.path / "launch"
    if rank.restarts and launch.is_file() and launch.read_text() == launch_name():
        return folder.reopen()
    folder.create(config)
    write_text(launch, launch_name())
    return None
