"""Worker processes of this machine, and the loop that keeps them busy and within their limits."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import wait
from typing import Any

from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.observer import Observer
from graphlossy.outliers.runner.process import Worker

__all__ = ["LocalPool"]


class LocalPool:
    """Up to ``jobs`` processes that stay from task to task; one that breaks a limit is ended and replaced.

    Args:
        jobs: number of processes.
        settings: ``threads``, ``root``, ``seed`` and ``limits`` of the run.

    Raises:
        BenchmarkError: ``jobs`` is no number of processes.
    """

    def __init__(self, jobs: int, settings: dict[str, Any]) -> None:
        if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
            raise BenchmarkError(f"jobs must be a number of processes, at least 1, 'auto' or 'ray'; got {jobs!r}")
        self.jobs, self.settings = jobs, settings
        self._workers: list[Worker] = []

    def probe(self, sources: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Loads each data set once and says what it is.

        Raises:
            BenchmarkError: one of them cannot be used.
        """
        found = {}
        for task, message in self._run([("probe", label, source) for label, source in sources.items()], Observer()):
            if message[0] == "refused":
                raise BenchmarkError(message[1])
            found[task[1]] = message[1]
        return found

    def run(self, trials: Iterable[Trial], observer: Observer | None = None) -> Iterator[tuple[dict[str, Any], Any]]:
        """Record and scores of each trial, in the order in which they are done."""
        for _, message in self._run([("trial", trial) for trial in trials], observer or Observer()):
            yield message[1], message[2]

    def close(self) -> None:
        """Ends all processes, whatever they do."""
        while self._workers:
            with contextlib.suppress(OSError):
                self._workers.pop().end()

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(
        self, tasks: Iterable[tuple[Any, ...]], observer: Observer
    ) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Each task with the message that ends it."""
        waiting = deque(tasks)
        while waiting or any(worker.task is not None for worker in self._workers):
            self._hand_out(waiting)
            busy = [worker for worker in self._workers if worker.task is not None]
            patience = [p for p in (worker.patience() for worker in busy) if p is not None]
            ready = set(wait([worker.connection for worker in busy], min(patience, default=None)))
            for worker in busy:
                task = worker.task or ()
                message = worker.hear() if worker.connection in ready else None
                if message is not None and message[0] in ("started", "epoch"):
                    if task[0] == "trial":
                        observer.news(task[1], message)
                elif message is not None:
                    if worker.process.poll() is not None:
                        self._drop(worker)
                    yield task, message
                    continue
                record = worker.over_limit()
                if record is not None:
                    self._drop(worker)
                    yield task, ("record", record, None)

    def _hand_out(self, waiting: deque[tuple[Any, ...]]) -> None:
        for worker in self._workers:
            if waiting and worker.task is None:
                worker.ask(*waiting.popleft())
        while waiting and len(self._workers) < self.jobs:
            worker = Worker(self.settings)
            self._workers.append(worker)
            worker.ask(*waiting.popleft())

    def _drop(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.end()
