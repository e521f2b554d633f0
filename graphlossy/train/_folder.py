"""The run folder: its files, the metrics log that can be cut back to a checkpoint, and where it was made."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import time
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # not Unix
    fcntl = None  # type: ignore[assignment]

import graphlossy
from graphlossy.core._files import write_json
from graphlossy.train._checkpoint import load_checkpoint, save_checkpoint
from graphlossy.train._config import TrainConfig
from graphlossy.train._errors import TrainError

__all__ = ["FolderExistsError", "RunFolder", "data_name", "default_folder", "versions"]


class FolderExistsError(TrainError):
    """The folder for a new run holds files already."""


def data_name(config: TrainConfig) -> str:
    """The data set's name as it stands in the name of a folder."""
    return (Path(config.dataset).stem or "graph").lower()


def default_folder(config: TrainConfig) -> Path:
    """``runs/<dataset>-<model>-<timestamp>``, with a number added where that exists."""
    base = Path("runs") / f"{data_name(config)}-{config.model}-{time.strftime('%Y%m%d-%H%M%S')}"
    found, number = base, 1
    while found.exists():
        number += 1
        found = base.with_name(f"{base.name}-{number}")
    return found


def versions() -> dict[str, str]:
    """Versions of what the result depends on, and the machine's kind."""
    import torch_geometric

    return {
        "graphlossy": graphlossy.__version__,
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


class RunFolder:
    """Reads and writes one run folder.

    Files: ``config.json`` (settings and versions), ``metrics.jsonl`` (a line per epoch and run),
    ``checkpoints/last.pt`` (to resume), ``checkpoints/<scheme>-seed<n>.pt`` (weights at the best validation score),
    ``summary.json`` and ``report.html``.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        if "\0" in str(path):
            raise TrainError(f"a folder's name cannot hold a NUL character, got {str(path)!r}")
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.checkpoint_file = self.checkpoints / "last.pt"
        self.summary_file = path / "summary.json"
        self.report_file = path / "report.html"
        self._metrics: Any = None

    # -- making and opening -----------------------------------------------------------------------------------------

    def create(self, config: TrainConfig, launch: str | None = None) -> None:
        """Makes the folder for a new experiment.

        Args:
            config: the settings.
            launch: what :meth:`made_by` tells this launch of torchrun by; None without torchrun.

        Raises:
            TrainError: it holds files already, or cannot be written.
        """
        try:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                hint = (
                    f"continue it with --resume {shlex.quote(str(self.path))} or " if self.config_file.exists() else ""
                )
                raise FolderExistsError(
                    f"output folder {self.path} exists and is not empty; {hint}choose another --out"
                )
            self.checkpoints.mkdir(parents=True)
            self._metrics = open(self.metrics_file, "x", encoding="utf-8")
            self._lock()
            made = {} if launch is None else {"launch": launch}
            write_json(self.config_file, {"settings": config.to_dict(), "versions": versions(), **made})
        except FileExistsError:
            raise FolderExistsError(f"output folder {self.path} was made just now; choose another --out") from None
        except OSError as error:
            reason = error.strerror or error
            raise TrainError(f"cannot write output folder {self.path}: {reason}; choose another --out") from None

    def made_by(self, launch: str | None) -> bool:
        """Whether this very launch of torchrun has made the folder, before it started its processes anew."""
        if launch is None or not self.config_file.is_file():
            return False
        try:
            return bool(json.loads(self.config_file.read_text(encoding="utf-8")).get("launch") == launch)
        except (OSError, ValueError, AttributeError):
            return False

    def read_config(self) -> TrainConfig:
        """The settings of the experiment in this folder.

        Raises:
            TrainError: there is none, or ``config.json`` is damaged.
        """
        if not self.config_file.is_file():
            raise TrainError(f"{self.path} is not a run folder (it has no config.json)")
        try:
            return TrainConfig.from_dict(json.loads(self.config_file.read_text(encoding="utf-8"))["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainError(f"cannot read {self.config_file}: {error}") from None

    def reopen(self) -> dict[str, Any] | None:
        """The last checkpoint, with ``metrics.jsonl`` cut back to it; None where no checkpoint was reached.

        Raises:
            TrainError: the checkpoint or the log is damaged, or the folder cannot be written.
        """
        try:
            self.checkpoints.mkdir(exist_ok=True)
            self._metrics = open(self.metrics_file, "a", encoding="utf-8")
            self._lock()
            state = load_checkpoint(self.checkpoint_file) if self.checkpoint_file.exists() else None
            if state is not None and not state.keys() >= {"metrics_bytes", "settings", "data", "results", "active"}:
                raise TrainError(f"{self.checkpoint_file} is no checkpoint to resume; it was replaced by another file")
            kept = state["metrics_bytes"] if state is not None else 0
            if self.metrics_file.stat().st_size < kept:
                raise TrainError(f"{self.metrics_file} is shorter than its checkpoint says; it was cut or replaced")
            self._metrics.truncate(kept)
            self.read_metrics()
        except OSError as error:
            raise TrainError(f"cannot write run folder {self.path}: {error.strerror or error}") from None
        return state

    def _lock(self) -> None:
        """Keeps other processes away from this folder until it is closed, where the system has such locks."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise TrainError(f"run folder {self.path} is in use by another process") from None
        except OSError:
            pass  # a file system without locks

    def discard(self) -> None:
        """Removes what :meth:`create` made; called when an experiment fails before its first epoch."""
        self.close()
        for file in (self.metrics_file, self.config_file):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    # -- writing ----------------------------------------------------------------------------------------------------

    def log(self, line: dict[str, Any]) -> None:
        """Appends one line to ``metrics.jsonl`` and hands it to the system at once."""
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Saves ``state`` with the length of ``metrics.jsonl`` that belongs to it."""
        os.fsync(self._metrics.fileno())  # the log must not be shorter than the checkpoint says
        save_checkpoint(self.checkpoint_file, {**state, "metrics_bytes": self.metrics_file.stat().st_size})

    def save_weights(self, run: str, seed: int, values: dict[str, Any]) -> None:
        """Saves the best weights of one run for later use."""
        save_checkpoint(self.checkpoints / f"{run}-seed{seed}.pt", values)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        try:
            with open(self.metrics_file, encoding="utf-8") as file:
                lines = [json.loads(line) for line in file]
        except ValueError as error:
            raise TrainError(f"{self.metrics_file} is damaged: {error}") from None
        if not all(isinstance(line, dict) and line.keys() >= {"run", "seed"} for line in lines):
            raise TrainError(f"{self.metrics_file} is damaged: it holds a line that no run wrote")
        return lines

    def close(self) -> None:
        """Closes the log."""
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # a full disk was reported when the line was written
                self._metrics.close()
            self._metrics = None
