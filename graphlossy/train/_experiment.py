"""The main job: every scheme on every seed, side by side, with a run folder that survives interruption."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from graphlossy.core._files import write_json, write_text
from graphlossy.core._memory import is_out_of_memory
from graphlossy.core._signals import Signals
from graphlossy.train._batches import make_batches
from graphlossy.train._config import MOST_THREADS, TrainConfig
from graphlossy.train._ddp_collectives import gather_objects, on_all, on_main
from graphlossy.train._ddp_group import Rank, is_main, is_peer_failure, session
from graphlossy.train._ddp_launch import agree, check_alike, launch_name, restart_folder
from graphlossy.train._device import resolve_device
from graphlossy.train._errors import TrainError
from graphlossy.train._folder import FolderExistsError, RunFolder, default_folder
from graphlossy.train._run import Run
from graphlossy.train._summary import summarize
from graphlossy.train._surroundings import memory_errors, torch_settings
from graphlossy.train._task import Task, load_task

__all__ = ["Experiment", "Interrupted", "Observer"]

TIMEOUT = 1800.0  # seconds that a process waits for the others: one of them may generate a graph


class Interrupted(Exception):
    """Training stopped on a signal after a checkpoint was written.

    Attributes:
        folder: the run folder to resume.
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, folder: Path, signal_number: int) -> None:
        super().__init__(f"interrupted; continue with: graphlossy train --resume {shlex.quote(str(folder))}")
        self.folder = folder
        self.signal_number = signal_number


class Observer:
    """Told what happens during an experiment; every method may be overridden and does nothing here.

    Of the processes of a torchrun job only rank 0 has one.
    """

    def started(self, experiment: Experiment, task: Task) -> None:
        """The data are loaded and training begins or goes on."""

    def epoch(self, line: dict[str, Any]) -> None:
        """One run has finished one epoch; ``line`` is what ``metrics.jsonl`` got."""

    def stopping(self) -> None:
        """A signal came; training stops before it begins, or after the epoch that is running."""


class Experiment:
    """Trains every scheme on every seed and writes the run folder.

    The schemes of one seed take turns, an epoch each, so that a machine that slows down slows all of them.

    Under torchrun all processes make the same experiment and train it together; rank 0 alone writes. Processes that
    torchrun starts anew go on from the last checkpoint.

    Args:
        config: the settings.
        folder: the run folder; None makes ``runs/<dataset>-<model>-<timestamp>``, or one named after torchrun's
            run id where processes may be started anew.
        checkpoint_seconds: least time between two checkpoints; 0 writes one after every epoch.

    Raises:
        TrainError: the device is not there, or torch cannot do what is asked for on it.

    Example:
        >>> import tempfile
        >>> config = TrainConfig(epochs=2, seeds=1, hidden=16, schemes=("baseline",), device="cpu")
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     summary = Experiment(config, Path(parent) / "run").run()
        >>> summary["runs"][0]["epochs"]
        2
    """

    def __init__(self, config: TrainConfig, folder: Path | None = None, checkpoint_seconds: float = 5.0) -> None:
        self.device = resolve_device(config.device)
        if not checkpoint_seconds >= 0:
            raise TrainError(f"checkpoint_seconds must be 0 or a positive number, got {checkpoint_seconds}")
        if config.amp and config.needs_csr and self.device.type == "cpu":
            what = "--adj csr" if config.adj == "csr" else "--sampler and --sparsify, whose edges carry weights"
            raise TrainError(f"torch has no bfloat16 sparse CSR product on the CPU; leave out --amp or {what}")
        # What a resumed run must repeat is written down as it was here, not as it may be found to be there.
        threads = config.threads or min(torch.get_num_threads(), MOST_THREADS)
        self.config = replace(config, device=str(self.device), threads=threads, dataset=_absolute(config.dataset))
        found = restart_folder(config) if folder is None else folder
        self.folder = RunFolder(default_folder(config) if found is None else found)
        self.rank = Rank(0, 1, 0, self.device)  # until the processes meet
        self.resumed = False
        self.results: list[dict[str, Any]] = []
        self.active: list[Run] = []
        self._checkpoint_seconds = checkpoint_seconds
        self._last_checkpoint = time.monotonic()
        self._signals = Signals()
        self._fingerprint = 0
        self._default_folder, self._created = found is None, False

    @classmethod
    def resume(cls, folder: Path, checkpoint_seconds: float = 5.0) -> Experiment:
        """The experiment in ``folder``, to be continued by :meth:`run` from its last checkpoint.

        Raises:
            TrainError: ``folder`` is not a run folder, or its device is not there.
        """
        experiment = cls(RunFolder(folder).read_config(), folder, checkpoint_seconds)
        experiment.resumed = True
        return experiment

    def run(self, observer: Observer | None = None, task: Task | None = None) -> dict[str, Any]:
        """Trains to the end and returns the summary, which is also in ``summary.json`` and ``report.html``.

        Args:
            observer: told of every epoch.
            task: the data, on the device of ``config``; None loads ``config.dataset``.

        Raises:
            TrainError: bad data, a folder that cannot be written, a budget that cannot be met, a diverged loss.
            Interrupted: SIGINT or SIGTERM came; the checkpoint is written. A second SIGINT raises KeyboardInterrupt.
        """
        observer = observer if observer is not None and is_main() else Observer()
        stopped: Interrupted | None = None
        summary: dict[str, Any] = {}
        # Signals first: libraries that are imported on the way swallow a KeyboardInterrupt.
        with (
            self._signals.caught(observer.stopping),
            session(self.config.device, TIMEOUT) as self.rank,
            torch_settings(self.config, self.device),
        ):
            self.device = self.rank.device
            try:
                summary = self._run(observer, task)
            except Interrupted as stop:  # on which all processes agreed: they part as if they were done
                stopped = stop
        if stopped is not None:
            raise stopped
        return summary

    # -- steps of run -----------------------------------------------------------------------------------------------

    def _run(self, observer: Observer, task: Task | None) -> dict[str, Any]:
        self._check_alike()
        with memory_errors("the data"):
            task = self._load() if task is None else task
            self._fingerprint = task.fingerprint()
        self._check_data()
        self._stop_if_asked()
        try:
            with memory_errors("the model"):
                self._restore(self._open(task), task)
            observer.started(self, task)
            self._train(task, observer)
            return on_main(lambda: self._finish(task))
        except OSError as error:
            raise TrainError(f"cannot write run folder {self.folder.path}: {error.strerror or error}") from None
        except TrainError:
            if self._created and not self.results and not any(run.epoch for run in self.active):
                self.folder.discard()
            raise
        finally:
            self.folder.close()
            if self.rank.world_size > 1:
                for run in self.active:
                    run.part()
                gc.collect()  # the wrappers lie in cycles, and keep the connections and their threads to the very end

    def _check_alike(self) -> None:
        if self.rank.world_size > 1:
            self.config = replace(self.config, threads=check_alike(self.config.to_dict()))
            torch.set_num_threads(self.config.threads or 1)

    def _load(self) -> Task:
        if self.rank.world_size == 1:
            return load_task(self.config, self.device)
        # One process of a machine first: it may have to generate or convert the data.
        first = self.rank.local_rank == 0
        found = on_all(lambda: load_task(self.config, self.device) if first else None)
        return on_all(lambda: load_task(self.config, self.device) if found is None else found)

    def _check_data(self) -> None:
        everywhere = gather_objects(self._fingerprint)
        for rank, fingerprint in enumerate(everywhere):
            if fingerprint != everywhere[0]:
                raise TrainError(f"rank {rank} has other data than rank 0 under the name {self.config.dataset}")

    def _open(self, task: Task) -> dict[str, Any] | None:
        """The checkpoint to go on from; None at the beginning, with the runs made and the folder too."""
        if on_main(self._to_be_continued):
            self.resumed = True
            return on_main(self._reopen)
        self.active = self._runs(self.config.seed, task)
        on_all(self._rehearse)
        self._stop_if_asked()
        path = Path(on_main(self._create))
        if not self.rank.is_main:
            self.folder = RunFolder(path)  # for messages; rank 0 writes
        return None

    def _to_be_continued(self) -> bool:
        return self.resumed or (self.rank.restarts > 0 and self.folder.made_by(launch_name()))

    def _rehearse(self) -> None:
        for run in self.active:
            if run.scheme.budget is not None:
                run.rehearse()

    def _create(self) -> str:
        while not self._created:
            try:
                self.folder.create(self.config, launch_name())
                self._created = True
            except FolderExistsError:
                if not self._default_folder:
                    raise
                self.folder = RunFolder(default_folder(self.config))
        return str(self.folder.path)

    def _stop_if_asked(self) -> None:
        if self._ask(checkpoint=False)[0] is not None:
            raise KeyboardInterrupt

    def _reopen(self) -> dict[str, Any] | None:
        state = self.folder.reopen()
        if state is None:
            return None
        if state["settings"] != self.config.to_dict():
            changed = [name for name, value in self.config.to_dict().items() if state["settings"].get(name) != value]
            raise TrainError(
                f"{self.folder.config_file} was changed since the run was begun ({', '.join(changed)}); start a new run"
            )
        if state["data"] != self._fingerprint:
            raise TrainError(
                f"data set {self.config.dataset} changed since {self.folder.path} was begun; start a new run"
            )
        return state

    def _restore(self, state: dict[str, Any] | None, task: Task) -> None:
        if state is None:
            return
        self.results = state["results"]
        if state["active"]:
            try:
                self.active = self._runs(state["active"][0]["seed"], task)
                for run, saved in zip(self.active, state["active"], strict=True):
                    run.load_state_dict(saved)
            except (RuntimeError, LookupError, TypeError, ValueError) as error:
                if is_out_of_memory(error) or is_peer_failure(error):
                    raise
                reason = str(error).strip().split("\n")[0]
                raise TrainError(
                    f"{self.folder.checkpoint_file} does not fit config.json or the data: {reason}"
                ) from None

    def _runs(self, seed: int, task: Task) -> list[Run]:
        place = self.rank.rank, self.rank.world_size
        batches = make_batches(task, task.split(seed - self.config.seed), self.config, seed, self.device, *place)
        return [Run(scheme, seed, task, self.config, batches, self.rank) for scheme in self.config.comparison()]

    def _train(self, task: Task, observer: Observer) -> None:
        done = {result["seed"] for result in self.results}
        for seed in range(self.config.seed, self.config.seed + self.config.seeds):
            if seed in done:
                continue
            if not self.active:
                with memory_errors("the model"):
                    self.active = self._runs(seed, task)
            while True:
                waiting = [run for run in self.active if run.status == "running"]
                if not waiting:
                    break
                run = min(waiting, key=lambda run: run.epoch)  # the first of those that are furthest behind
                line = run.step()
                if self.rank.is_main:
                    self.folder.log(line)
                observer.epoch(line)
                self._after_epoch()
            for run in self.active if self.rank.is_main else []:
                self.folder.save_weights(run.scheme.label, seed, self._weights(run))
            self.results.extend(run.result() for run in self.active)
            self.active = []
            self._checkpoint()

    def _after_epoch(self) -> None:
        due = self.rank.is_main and time.monotonic() - self._last_checkpoint >= self._checkpoint_seconds
        number, due = self._ask(due)
        if number is not None:
            self._checkpoint()
            raise Interrupted(self.folder.path, number)
        if due:
            self._checkpoint()

    def _ask(self, checkpoint: bool) -> tuple[int | None, bool]:
        """The signal that came to any process, and whether it is time for a checkpoint."""
        own = self._signals.number
        if self.rank.world_size == 1:
            return own, checkpoint
        interrupt, terminate, checkpoint = agree(own == signal.SIGINT, own == signal.SIGTERM, checkpoint)
        number = signal.SIGINT if interrupt else signal.SIGTERM if terminate else None
        return number, checkpoint

    def _checkpoint(self) -> None:
        active = [run.state_dict() for run in self.active]
        settings = {"settings": self.config.to_dict(), "data": self._fingerprint}
        if self.rank.is_main:
            self.folder.checkpoint({**settings, "results": self.results, "active": active})
        self._last_checkpoint = time.monotonic()

    def _weights(self, run: Run) -> dict[str, Any]:
        best = {key: value for key, value in run.best.items() if key != "weights"}
        return {"settings": self.config.to_dict(), "best": best, "model": run.best["weights"]}

    def _finish(self, task: Task) -> dict[str, Any]:
        from graphlossy.train._report import render_report

        lines = self.folder.read_metrics()
        place = str(self.folder.path), str(self.device), self.rank.world_size
        summary = summarize(self.config, task, self.results, *place)
        write_json(self.folder.summary_file, summary)
        write_text(self.folder.report_file, render_report(summary, self.results, lines))
        return summary


def _absolute(dataset: str) -> str:
    from graphlossy.datasets import names

    is_path = os.sep in dataset or dataset.lower() not in map(str.lower, names())
    return str(Path(dataset).expanduser().resolve()) if is_path and Path(dataset).expanduser().exists() else dataset
