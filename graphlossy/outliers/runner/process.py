"""A worker process as its owner sees it: start, ask, listen, watch its clock and its memory, end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

from graphlossy.core._memory import is_out_of_memory
from graphlossy.core.budget import format_bytes
from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.limits import Limits, kills_by_the_system, resident_of
from graphlossy.outliers.runner.trial import new_record

__all__ = ["Worker"]

# A program of its own rather than multiprocessing's: the script that asks for a benchmark is not run a second time.
_PROGRAM = "import sys; from graphlossy.outliers.runner.worker import main; main(int(sys.argv[1]))"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# torch then asks Linux for large pages. Without them a tensor of more than 32 MiB costs more to get than to compute: an
# epoch of an autoencoder on 300,000 nodes takes twice as long.
_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}


class Worker:
    """Starts a process that does one task at a time.

    Args:
        settings: ``threads``, ``root``, ``seed`` and ``limits`` of the run.

    Attributes:
        connection: readable when the process has said something or is gone.
        task: what it does now; None when it is idle.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.limits: Limits = settings["limits"]
        self.task: tuple[Any, ...] | None = None
        self._ready = False
        self._begin: float | None = None  # when the clock of the fit starts
        self._warming = False  # imports and kernels are loaded, whose memory is none of the trial's
        self._base = self._peak = 0
        self._log = tempfile.TemporaryFile()
        self._killed_before = kills_by_the_system()
        ours, theirs = socket.socketpair()
        paths = [path or os.getcwd() for path in sys.path]
        threads = {name: str(settings["threads"]) for name in _THREADS}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env={**_PAGES, **os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
                start_new_session=True,  # Ctrl-C is for the owner, who ends it
            )
        except OSError as error:
            ours.close()
            self._log.close()
            raise BenchmarkError(f"cannot start a worker process: {error.strerror or error}") from None
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send(settings)

    def ask(self, *task: Any) -> None:
        """Gives it a task: ``"probe", label, source`` or ``"trial", Trial``."""
        self.task = task
        self._begin, self._warming, self._base, self._peak = None, False, 0, 0
        try:
            self.connection.send(task)
        except OSError:  # it is gone; `hear` will tell
            pass

    def hear(self) -> tuple[Any, ...] | None:
        """The next message that ends a task or is news of it; None for one that concerns nobody.

        Raises:
            BenchmarkError: the process ended before it could be asked anything.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return self._gone()
        if message[0] == "ready":
            self._ready = True
            return None
        if message[0] == "started":
            self._begin, self._warming = time.monotonic() + message[2], message[2] > 0
            self._base, self._peak = message[1], 0
            return message
        if message[0] in ("facts", "refused", "record"):
            self.task = None
        return message

    def patience(self) -> float | None:
        """Seconds until it should be watched again; None: until it says something."""
        if self.task is None or self._begin is None:
            return None
        waits = []
        if self.limits.seconds is not None:
            waits.append(max(0.0, self._begin + self.limits.seconds - time.monotonic()))
        if self.limits.memory is not None and not self._warming:
            waits.append(0.05)
        return min(waits, default=None)

    def over_limit(self) -> dict[str, Any] | None:
        """The record of its trial if that is over a limit; the process should then be ended."""
        if self.task is None or self._begin is None:
            return None
        trial = self.task[1]  # the clock runs in trials only
        elapsed = time.monotonic() - self._begin
        if self.limits.memory is not None and not self._warming:
            self._peak = max(self._peak, resident_of(self.process.pid) - self._base)
            if self._peak > self.limits.memory:
                said = f"took {format_bytes(self._peak)}, the limit is {format_bytes(self.limits.memory)}"
                return self._record(trial, "OOM", said, elapsed)
        if self.limits.seconds is not None and elapsed > self.limits.seconds:
            return self._record(trial, "TLE", f"not done after {self.limits.seconds:g} s", elapsed)
        return None

    def end(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self._log.close()

    def _gone(self) -> tuple[Any, ...]:
        code = self.process.wait()
        said = self._tail()
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not self._ready or self.task is None:
            raise BenchmarkError(f"a worker process ended with {why}{f': {said}' if said else ''}")
        reason = f"its process ended with {why}{f': {said}' if said else ''}"
        if self.task[0] == "probe":
            return "refused", f"{self.task[1]}: {reason}"
        by_system = code == -signal.SIGKILL and kills_by_the_system() > self._killed_before
        if by_system or is_out_of_memory(said):
            return "record", self._record(self.task[1], "OOM", f"{reason} (the system had no memory left)"), None
        return "record", self._record(self.task[1], "failed", reason), None

    def _record(self, trial: Trial, status: str, reason: str, elapsed: float | None = None) -> dict[str, Any]:
        return new_record(trial, status, reason, seconds=elapsed, peak_bytes=self._peak or None)

    def _tail(self) -> str:
        """The last line that it wrote to its standard error."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - 2000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""
