"""The folder of a run: one JSON line a trial, appended and never rewritten, and what all trials have in common."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

from graphlossy.core._files import write_json, written
from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.grid import Key

__all__ = ["STATUSES", "RunFolder", "key_of", "latest", "read_records", "read_settings"]

FORMAT = 1
STATUSES = ("done", "failed", "TLE", "OOM")
_FIXED = ("seed", "protocol", "threads", "options")  # what every trial of a folder shares
Record = dict[str, Any]


def key_of(record: Mapping[str, Any]) -> Key:
    """What tells the trial of a record from every other."""
    return record["dataset"], record["method"], record["engine"], record["trial"]


def latest(records: list[Record]) -> list[Record]:
    """One record for each trial: where a trial was run again, the later one, in the place of the first."""
    return list({key_of(record): record for record in records}.values())


class RunFolder:
    """``trials.jsonl``, ``run.json`` and ``scores/`` of one run, locked against other processes while it is open.

    Args:
        path: the folder, made if it is not there; None: nothing is written.
        settings: what the run is: seed, protocol, threads, options, titles of its methods.

    Attributes:
        records: those that were there, and those added since.
        facts: what is known of each data set.

    Raises:
        BenchmarkError: the folder cannot be written, is in use, is damaged, or holds a run of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.records: list[Record] = []
        self.facts: dict[str, Any] = {}
        self._file: Any = None
        if path is None:
            return
        with self._writing():
            path.mkdir(parents=True, exist_ok=True)
            self._file = open(path / "trials.jsonl", "ab")
        try:
            self._lock()
            self._join()
            with self._writing():
                self.records = _repaired(path / "trials.jsonl", self._file)
            self._save_settings()
        except BaseException:
            self.close()
            raise

    def add(self, record: Record, scores: Any = None) -> None:
        """Appends a record and sees it to the disk; ``scores``, an array, is written before it.

        Raises:
            BenchmarkError: it cannot be written.
        """
        if self.path is not None:
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
            with self._writing():
                if scores is not None:
                    self._save_scores(record, scores)
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
        self.records.append(record)

    def learn(self, dataset: str, facts: dict[str, Any]) -> None:
        """Keeps what was found out about a data set.

        Raises:
            BenchmarkError: the folder's results are of another graph of that name.
        """
        known = self.facts.get(dataset)
        if known is not None and known["fingerprint"] != facts["fingerprint"]:
            raise BenchmarkError(
                f"{self.path}: its results on {dataset} are of another graph of {known['nodes']:,} nodes and "
                f"{known['edges']:,} edges, and this one has {facts['nodes']:,} and {facts['edges']:,}; "
                "rename the data set or give another --out"
            )
        self.facts[dataset] = facts
        if self.path is not None:
            self._save_settings()

    def close(self) -> None:
        """Closes the file, which ends the lock."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk was reported when the line was written
                self._file.close()
            self._file = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except OSError as error:
            raise BenchmarkError(f"cannot write folder {self.path}: {error.strerror or error}") from None

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            raise BenchmarkError(
                f"{self.path} is in use by another process; wait until it is done, or give another --out"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _join(self) -> None:
        """Takes over what the folder knows, if it holds a run of the same settings."""
        if self.path is None or not (self.path / "run.json").exists():
            return
        there = read_settings(self.path)
        for name in _FIXED:
            if there.get(name) != self.settings[name]:
                raise BenchmarkError(
                    f"{self.path} holds a run with {name} {there.get(name)!r}, not {self.settings[name]!r}: its "
                    "trials would not be comparable; give another --out"
                )
        self.facts = there["datasets"]
        self.settings = {**self.settings, "titles": {**there["titles"], **self.settings["titles"]}}

    def _save_settings(self) -> None:
        if self.path is None:
            return
        with self._writing():
            write_json(self.path / "run.json", {"format": FORMAT, **self.settings, "datasets": self.facts})

    def _save_scores(self, record: Record, scores: Any) -> None:
        import numpy as np

        if self.path is None:
            return
        folder = self.path / "scores"
        folder.mkdir(exist_ok=True)
        name = "-".join(str(part) for part in key_of(record))
        with written(folder / f"{name.replace('/', '_')}.npy") as path:
            np.save(path, scores)


def read_settings(folder: Path) -> dict[str, Any]:
    """``run.json`` of a folder.

    Raises:
        BenchmarkError: there is none, or it is damaged.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise BenchmarkError(f"{folder} is not the folder of a run (it has no run.json)")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"cannot read {file}: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BenchmarkError(f"{file} is not of format {FORMAT}; it was written by another version, or damaged")
    if not all(isinstance(found.get(name), dict) for name in ("datasets", "titles")):
        raise BenchmarkError(f"{file} is damaged: it lacks its data sets or its titles")
    return found


def read_records(folder: Path) -> list[Record]:
    """The records of a folder, one for each trial; a torn last line, of a run that goes on or was killed, is left out.

    Raises:
        BenchmarkError: there is no file of records, or a line of it is damaged.
    """
    file = folder / "trials.jsonl"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{folder} is not the folder of a run: {file.name}: {error.strerror or error}") from None
    return latest(_parse(file, content)[0])


def _parse(file: Path, content: bytes) -> tuple[list[Record], int]:
    """The records, and the number of bytes of whole lines."""
    records, end = [], 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # torn
        try:
            record = json.loads(line)
            whole = key_of(record)[0] is not None and record["status"] in STATUSES
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise BenchmarkError(
                f"{file} is damaged: line {number} is no record of a trial; take that line out, and its trial will be "
                "run again"
            )
        records.append(record)
        end += len(line)
    return records, end


def _repaired(path: Path, file: Any) -> list[Record]:
    """The records of a file that is open for appending, a torn last line cut off."""
    content = path.read_bytes()
    records, end = _parse(path, content)
    if end < len(content):
        file.truncate(end)
        os.fsync(file.fileno())
    return records
