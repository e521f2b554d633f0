"""A worker process: it waits for tasks on a connection, does one at a time, and ends when the other side is gone.

Messages to it: ``("probe", label, source)`` and ``("trial", Trial)``. Messages from it: ``("ready",)``,
``("facts", facts)``, ``("refused", text)``, ``("started", resident bytes, seconds that do not count)``,
``("epoch", number, loss)`` and ``("record", record, scores)``.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from graphlossy.core._memory import is_out_of_memory
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.limits import Limits, offer_first, resident_of

__all__ = ["main"]

WARM_SECONDS = 60.0  # imports and the fit to a tiny graph may take this much before the clock runs
EPOCH_SECONDS = 0.5  # news of epochs come no more often


def main(descriptor: int) -> None:
    """Serves the connection of that number until it closes."""
    offer_first()
    connection = Connection(descriptor)
    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    settings = connection.recv()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    import torch

    torch.set_num_threads(settings["threads"])
    with suppress(RuntimeError):  # it was set before
        torch.set_num_interop_threads(1)
    import torch_geometric.data  # noqa: F401 - now, not on the clock of the first trial

    connection.send(("ready",))
    state = _State(connection, settings)
    while True:
        kind, *rest = inbox.get()
        if kind == "probe":
            state.probe(*rest)
        else:
            state.trial(*rest)


def _listen(connection: Connection, inbox: queue.SimpleQueue) -> None:
    """Takes messages from the connection; the process ends with it, in the middle of a trial too."""
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


class _State:
    """What lasts from one task to the next: the last data set, and which methods have been warmed up."""

    def __init__(self, connection: Connection, settings: dict[str, Any]) -> None:
        self._connection, self._settings = connection, settings
        self._limits: Limits = settings["limits"]
        self._source: str | None = None
        self._loaded: Any = None
        self._warm: set[tuple[str, str]] = set()
        self._said = 0.0

    def probe(self, label: str, source: str) -> None:
        try:
            self._send("facts", self._data(source).facts)
        except Exception as error:
            self._send("refused", _refusal(label, error))

    def trial(self, trial: Trial) -> None:
        from graphlossy.outliers.runner.errors import one_line
        from graphlossy.outliers.runner.trial import new_record, run_trial, warm_up

        try:
            loaded = self._data(trial.source)
        except Exception as error:
            status = "OOM" if is_out_of_memory(error) else "failed"
            self._send("record", new_record(trial, status, f"its data: {one_line(error)}"), None)
            return
        if (trial.method, trial.engine) not in self._warm:
            self._started(WARM_SECONDS)  # a method that hangs, hangs here already
            warm_up(trial)
            self._warm.add((trial.method, trial.engine))
        self._send("record", *run_trial(trial, loaded, self._limits, self._started, self._epoch))

    def _data(self, source: str) -> Any:
        from graphlossy.outliers.runner.trial import load_source

        if self._source != source:
            self._source = self._loaded = None  # two at once would be one too many
            self._loaded = load_source(source, self._settings["root"], self._settings["seed"])
            self._source = source
        return self._loaded

    def _started(self, grace: float = 0.0) -> None:
        self._send("started", resident_of(os.getpid()), grace)

    def _epoch(self, number: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._said >= EPOCH_SECONDS:
            self._said = now
            self._send("epoch", number, float(loss))

    def _send(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _refusal(label: str, error: Exception) -> str:
    """What is wrong with a data set, in a line."""
    if isinstance(error, (ValueError, OSError, TypeError, ImportError, KeyError)):
        text = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
        return text if label in text else f"{label}: {text}"
    from graphlossy.outliers.runner.errors import one_line

    return f"{label}: {one_line(error)}"
