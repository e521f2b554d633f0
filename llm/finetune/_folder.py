"""The run folder: settings, the log that can be cut back to a checkpoint, checkpoints, and the tuned model."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # not Unix
    fcntl = None  # type: ignore[assignment]

import graphlossy
from graphlossy.core._files import write_json, written
from graphlossy.llm.finetune._errors import FinetuneError, one_line, quiet

__all__ = ["RunFolder", "default_folder", "versions"]

FORMAT = 1


def default_folder(model: str) -> Path:
    """``runs/llm-<model>-<time>``, with a number added where that exists."""
    base = Path("runs") / f"llm-{Path(model).name or 'model'}-{time.strftime('%Y%m%d-%H%M%S')}"
    found, number = base, 1
    while found.exists():
        number += 1
        found = base.with_name(f"{base.name}-{number}")
    return found


def versions() -> dict[str, str]:
    """Versions of what the result depends on, and the machine's kind."""
    import transformers

    return {
        "graphlossy": graphlossy.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


class RunFolder:
    """Reads and writes one run folder.

    Files: ``config.json`` (settings, data, versions), ``metrics.jsonl`` (a line per step), ``checkpoints/last.pt`` (to
    resume, while it is not done), ``result.json``, and ``model/`` (the tuned model or its adapters in safetensors, with
    the tokenizer).

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        if not str(path) or "\0" in str(path):
            raise FinetuneError(f"expected the name of a folder, got {str(path)!r}")
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoint_file = self.path / "checkpoints" / "last.pt"
        self.result_file = self.path / "result.json"
        self.model_folder = self.path / "model"
        self._metrics: Any = None
        self._created = False

    def check_free(self) -> None:
        """Refuses a folder for a new run that holds something, or cannot be made.

        Raises:
            FinetuneError: says which.
        """
        try:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                another = self.config_file.exists()
                held = "holds another run: continue it with --resume, or" if another else "is not empty:"
                raise FinetuneError(f"output folder {self.path} {held} choose another --out")
            above = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
            if not above.is_dir() or not os.access(above, os.W_OK):
                raise FinetuneError(f"cannot write output folder {self.path}: no permission in {above}")
        except OSError as error:
            raise FinetuneError(f"cannot write output folder {self.path}: {error.strerror or error}") from None

    def create(self, settings: dict[str, Any], about: dict[str, Any] | None) -> None:
        """Makes the folder for a new run; raises FinetuneError as :meth:`check_free` does."""
        self.check_free()
        try:
            self.checkpoint_file.parent.mkdir(parents=True)
            self._created = True
            self._metrics = open(self.metrics_file, "x", encoding="utf-8")
            self._lock()
            write_json(self.config_file, {"settings": settings, "about": about, "versions": versions()})
        except OSError as error:
            raise FinetuneError(f"cannot write output folder {self.path}: {error.strerror or error}") from None

    def read_config(self) -> dict[str, Any]:
        """``config.json``: ``settings``, ``about`` and ``versions``.

        Raises:
            FinetuneError: this is no run folder, or the file is damaged.
        """
        if not self.config_file.is_file():
            raise FinetuneError(f"{self.path} is not a run folder (it has no config.json)")
        try:
            found = json.loads(self.config_file.read_text(encoding="utf-8"))
            if isinstance(found["settings"], dict) and "about" in found:
                return dict(found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FinetuneError(f"cannot read {self.config_file}: {one_line(error)}") from None
        raise FinetuneError(f"cannot read {self.config_file}: it was made by another program")

    def read_result(self) -> dict[str, Any] | None:
        """``result.json``; None where the run is not done."""
        if not self.result_file.is_file():
            return None
        try:
            return dict(json.loads(self.result_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise FinetuneError(f"cannot read {self.result_file}: {one_line(error)}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        try:
            lines = [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise FinetuneError(f"cannot read {self.metrics_file}: {one_line(error)}") from None
        if not all(isinstance(line, dict) and "step" in line for line in lines):
            raise FinetuneError(f"{self.metrics_file} is damaged: it holds a line that no run wrote")
        return lines

    def reopen(self) -> dict[str, Any] | None:
        """The last checkpoint, with the log cut back to it; None where none was reached.

        Raises:
            FinetuneError: the checkpoint or the log is damaged, or the folder cannot be written.
        """
        try:
            self.checkpoint_file.parent.mkdir(exist_ok=True)
            for left in (*self.checkpoint_file.parent.glob(".last.pt.*"), *self.path.glob(".model-*")):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed while it wrote them
            self._metrics = open(self.metrics_file, "a", encoding="utf-8")
            self._lock()
            state = self._load() if self.checkpoint_file.exists() else None
            kept = 0 if state is None else state["metrics_bytes"]
            if self.metrics_file.stat().st_size < kept:
                raise FinetuneError(f"{self.metrics_file} is shorter than its checkpoint says; it was cut or replaced")
            self._metrics.truncate(kept)
            self.read_metrics()
        except OSError as error:
            raise FinetuneError(f"cannot write run folder {self.path}: {error.strerror or error}") from None
        return state

    def _load(self) -> dict[str, Any]:
        try:
            state = torch.load(self.checkpoint_file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch.load raise almost anything
            raise FinetuneError(f"cannot read checkpoint {self.checkpoint_file}: {one_line(error)[:200]}") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise FinetuneError(f"checkpoint {self.checkpoint_file} was made by another version or program")
        return state

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise FinetuneError(f"run folder {self.path} is in use by another process") from None
        except OSError:
            pass  # a file system without locks

    def log(self, line: dict[str, Any]) -> None:
        """Appends one line to ``metrics.jsonl`` and hands it to the system at once."""
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Saves ``state`` with the length of the log that belongs to it; the old checkpoint stays until it is whole."""
        os.fsync(self._metrics.fileno())  # the log must not be shorter than the checkpoint says
        held = {"format": FORMAT, **state, "metrics_bytes": self.metrics_file.stat().st_size}
        try:
            with written(self.checkpoint_file) as temporary:
                torch.save(held, temporary)
        except RuntimeError as error:  # torch's word for a full disk
            raise FinetuneError(f"cannot write {self.checkpoint_file}: {one_line(error)[:200]}") from None

    def save_model(self, model: Any, tokenizer: Any) -> None:
        """The tuned model, whole or not at all, as ``save_pretrained`` writes it."""
        temporary = self.path / f".model-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        # PEFT would ask the hub about the base model's vocabulary.
        options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
        with quiet():
            model.save_pretrained(temporary, **options)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
        mask = os.umask(0)
        os.umask(mask)
        for file in temporary.rglob("*"):
            if file.is_file():
                os.chmod(file, 0o666 & ~mask)  # safetensors gives its files to the owner alone
        shutil.rmtree(self.model_folder, ignore_errors=True)
        os.replace(temporary, self.model_folder)

    def finish(self, result: dict[str, Any]) -> None:
        """Writes ``result.json``; the checkpoint, three times the size of the model, is of no more use."""
        write_json(self.result_file, result)
        self.checkpoint_file.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes what :meth:`create` made; called when a run fails before its first step."""
        self.close()
        if not self._created:  # what is there is another run's
            return
        for file in (self.metrics_file, self.config_file):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoint_file.parent, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def close(self) -> None:
        """Closes the log."""
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # a full disk was reported when the line was written
                self._metrics.close()
            self._metrics = None
