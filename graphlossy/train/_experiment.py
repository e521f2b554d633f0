"""The main job: every scheme on every seed, side by side, with a run folder that survives interruption."""

from __future__ import annotations

import os
import shlex
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from graphlossy.train._batches import make_batches
from graphlossy.train._checkpoint import write_json, write_text
from graphlossy.train._config import MOST_THREADS, TrainConfig
from graphlossy.train._device import is_out_of_memory, resolve_device
from graphlossy.train._errors import TrainError
from graphlossy.train._folder import FolderExistsError, RunFolder, default_folder
from graphlossy.train._run import Run
from graphlossy.train._summary import summarize
from graphlossy.train._task import Task, load_task

__all__ = ["Experiment", "Interrupted", "Observer"]


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
    """Told what happens during an experiment; every method may be overridden and does nothing here."""

    def started(self, experiment: Experiment, task: Task) -> None:
        """The data are loaded and training begins or goes on."""

    def epoch(self, line: dict[str, Any]) -> None:
        """One run has finished one epoch; ``line`` is what ``metrics.jsonl`` got."""

    def stopping(self) -> None:
        """A signal came; training stops before it begins, or after the epoch that is running."""


class Experiment:
    """Trains every scheme on every seed and writes the run folder.

    The schemes of one seed take turns, an epoch each, so that a machine that slows down slows all of them.

    Args:
        config: the settings.
        folder: the run folder; None makes ``runs/<dataset>-<model>-<timestamp>``.
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
        self.folder = RunFolder(default_folder(config) if folder is None else folder)
        self.resumed = False
        self.results: list[dict[str, Any]] = []
        self.active: list[Run] = []
        self._checkpoint_seconds = checkpoint_seconds
        self._last_checkpoint = time.monotonic()
        self._signal: int | None = None
        self._fingerprint = 0
        self._default_folder, self._created = folder is None, False

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
        observer = observer or Observer()
        # Signals first: libraries that are imported on the way swallow a KeyboardInterrupt.
        with self._signals(observer), _torch_settings(self.config, self.device):
            with _memory_errors("the data"):
                task = load_task(self.config, self.device) if task is None else task
                self._fingerprint = task.fingerprint()
            self._stop_if_asked()
            try:
                with _memory_errors("the model"):
                    state = self._open(task)
                    self._restore(state, task)
                observer.started(self, task)
                self._train(task, observer)
                return self._finish(task)
            except OSError as error:
                raise TrainError(f"cannot write run folder {self.folder.path}: {error.strerror or error}") from None
            except TrainError:
                if self._created and not self.results and not any(run.epoch for run in self.active):
                    self.folder.discard()
                raise
            finally:
                self.folder.close()

    # -- steps of run -----------------------------------------------------------------------------------------------

    def _open(self, task: Task) -> dict[str, Any] | None:
        if self.resumed:
            return self.folder.reopen()
        self.active = self._runs(self.config.seed, task)
        for run in self.active:
            if run.scheme.budget is not None:
                run.rehearse()
        self._stop_if_asked()
        while not self._created:
            try:
                self.folder.create(self.config)
                self._created = True
            except FolderExistsError:
                if not self._default_folder:
                    raise
                self.folder = RunFolder(default_folder(self.config))
        return None

    def _stop_if_asked(self) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt

    def _restore(self, state: dict[str, Any] | None, task: Task) -> None:
        if state is None:
            return
        if state["settings"] != self.config.to_dict():
            changed = [name for name, value in self.config.to_dict().items() if state["settings"].get(name) != value]
            raise TrainError(
                f"{self.folder.config_file} was changed since the run was begun ({', '.join(changed)}); start a new run"
            )
        if state["data"] != self._fingerprint:
            raise TrainError(
                f"data set {self.config.dataset} changed since {self.folder.path} was begun; start a new run"
            )
        self.results = state["results"]
        if state["active"]:
            try:
                self.active = self._runs(state["active"][0]["seed"], task)
                for run, saved in zip(self.active, state["active"], strict=True):
                    run.load_state_dict(saved)
            except (RuntimeError, LookupError, TypeError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                reason = str(error).strip().split("\n")[0]
                raise TrainError(
                    f"{self.folder.checkpoint_file} does not fit config.json or the data: {reason}"
                ) from None

    def _runs(self, seed: int, task: Task) -> list[Run]:
        batches = make_batches(task, task.split(seed - self.config.seed), self.config, seed, self.device)
        return [Run(scheme, seed, task, self.config, batches) for scheme in self.config.comparison()]

    def _train(self, task: Task, observer: Observer) -> None:
        done = {result["seed"] for result in self.results}
        for seed in range(self.config.seed, self.config.seed + self.config.seeds):
            if seed in done:
                continue
            if not self.active:
                with _memory_errors("the model"):
                    self.active = self._runs(seed, task)
            while True:
                waiting = [run for run in self.active if run.status == "running"]
                if not waiting:
                    break
                run = min(waiting, key=lambda run: run.epoch)  # the first of those that are furthest behind
                line = run.step()
                self.folder.log(line)
                observer.epoch(line)
                self._after_epoch()
            for run in self.active:
                self.folder.save_weights(run.scheme.label, seed, self._weights(run))
            self.results.extend(run.result() for run in self.active)
            self.active = []
            self._checkpoint()

    def _after_epoch(self) -> None:
        if self._signal is not None:
            self._checkpoint()
            raise Interrupted(self.folder.path, self._signal)
        if time.monotonic() - self._last_checkpoint >= self._checkpoint_seconds:
            self._checkpoint()

    def _checkpoint(self) -> None:
        active = [run.state_dict() for run in self.active]
        settings = {"settings": self.config.to_dict(), "data": self._fingerprint}
        self.folder.checkpoint({**settings, "results": self.results, "active": active})
        self._last_checkpoint = time.monotonic()

    def _weights(self, run: Run) -> dict[str, Any]:
        best = {key: value for key, value in run.best.items() if key != "weights"}
        return {"settings": self.config.to_dict(), "best": best, "model": run.best["weights"]}

    def _finish(self, task: Task) -> dict[str, Any]:
        from graphlossy.train._report import render_report

        lines = self.folder.read_metrics()
        summary = summarize(self.config, task, self.results, str(self.folder.path), str(self.device))
        write_json(self.folder.summary_file, summary)
        write_text(self.folder.report_file, render_report(summary, self.results, lines))
        return summary

    @contextmanager
    def _signals(self, observer: Observer) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the epoch finish; a second SIGINT stops at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number
            observer.stopping()

        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, handle)
        except ValueError:  # not the main thread: signals stay with the program that called us
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _absolute(dataset: str) -> str:
    from graphlossy.datasets import names

    is_path = os.sep in dataset or dataset.lower() not in map(str.lower, names())
    return str(Path(dataset).expanduser().resolve()) if is_path and Path(dataset).expanduser().exists() else dataset


@contextmanager
def _memory_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainError(f"not enough memory for {what}") from None


@contextmanager
def _torch_settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic
    fill = switches.fill_uninitialized_memory
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            # Filling fresh memory with NaN is a debugging aid that costs a write of every tensor.
            switches.fill_uninitialized_memory = False
        with warnings.catch_warnings():
            # torch says both once in a process that touches a sparse matrix; neither is for the user to act on.
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        switches.fill_uninitialized_memory = fill
