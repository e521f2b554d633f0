"""The folder of a run: one JSON line a trial, appended and never rewritten, and what all trials have in common."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

from graphlossy.core._files import write_json, written
from graphlossy.outliers.protocol import PROTOCOLS
from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.grid import Key
from graphlossy.outliers.runner.trial import shown

__all__ = ["STATUSES", "RunFolder", "key_of", "latest", "read_records", "read_settings"]

FORMAT = 1
STATUSES = ("done", "failed", "TLE", "OOM")
_FIXED = ("seed", "protocol", "threads", "options")  # what every trial of a folder shares
Record = dict[str, Any]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_figure(value: Any) -> bool:
    """None, or a finite number."""
    if value is None:
        return True
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond float's range
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_by_type(value: Any) -> bool:
    return _is_dict(value) and all(_is_dict(kind) and all(map(_is_figure, kind.values())) for kind in value.values())


def _are_dicts(value: Any) -> bool:
    return _is_dict(value) and all(map(_is_dict, value.values()))


def _are_texts(value: Any) -> bool:
    return _is_dict(value) and all(map(_is_text, value.values()))


Checks = dict[str, Callable[[Any], bool]]
_FIGURES = ("auc", "ap", "recall", "seconds", "epoch_seconds", "peak_bytes", "saved_bytes", "plain_bytes")
_RECORD: Checks = {
    **dict.fromkeys(("dataset", "method", "engine"), _is_text),
    "trial": _is_whole,
    "status": lambda value: _is_text(value) and value in STATUSES,
    "reason": _is_text_or_none,
    **dict.fromkeys(_FIGURES, _is_figure),
    "by_type": _is_by_type,
    "params": _is_dict,
}
_SETTINGS: Checks = {
    "seed": _is_whole,
    "protocol": lambda value: _is_text(value) and value in PROTOCOLS,
    "threads": lambda value: _is_whole(value) and value > 0,
    "options": _are_dicts,
    "titles": _are_texts,
    "versions": _are_texts,
    "datasets": _are_dicts,
}
_DATASET: Checks = {
    **dict.fromkeys(("nodes", "edges", "features"), _is_whole),
    "outliers": lambda value: value is None or _is_whole(value),
    "types": lambda value: _is_dict(value) and all(map(_is_whole, value.values())),
    "note": _is_text_or_none,
    "fingerprint": _is_text,
}


def _wrong(values: Any, checks: Checks) -> str | None:
    """What keeps ``values`` from being what is expected; None: nothing does."""
    if not isinstance(values, dict):
        return f"it is {shown(values)}"
    for name, check in checks.items():
        if name not in values:
            return f"it has no {name}"
        if not check(values[name]):
            return f"its {name} is {shown(values[name])}"
    return None


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
            with self._writing():
                content = (path / "trials.jsonl").read_bytes()
            self.records, end = _parse(path / "trials.jsonl", content)
            self.settings = self._as_written()
            self._join()
            if end < len(content):  # the last line is torn
                with self._writing():
                    self._file.truncate(end)
                    os.fsync(self._file.fileno())
            self._save_settings()
        except BaseException:
            self.close()
            raise

    def add(self, record: Record, scores: Any = None) -> None:
        """Appends a record and sees it to the disk; ``scores``, an array, is written before it.

        Raises:
            BenchmarkError: it cannot be written, or is none that could be read again.
        """
        if self.path is not None:
            line = _encoded(record)
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
        if self.path is None:
            return
        if not (self.path / "run.json").exists():
            if self.records:
                raise BenchmarkError(
                    f"{self.path} holds records of trials ({len(self.records):,}) and no run.json, which tells of what "
                    "seed, protocol and options they are; put it back, or give another --out"
                )
            return
        there = read_settings(self.path)
        if not self.records:
            return  # nothing was made with those settings, which may be what was mistyped
        for name in _FIXED:
            if there.get(name) != self.settings[name]:
                raise BenchmarkError(
                    f"{self.path} holds a run with {name} {there.get(name)!r}, not {self.settings[name]!r}: its "
                    "trials would not be comparable; give another --out"
                )
        used = dict.fromkeys(record["dataset"] for record in self.records)
        lacking = [name for name in used if name not in there["datasets"]]
        if lacking:
            raise BenchmarkError(
                f"{self.path / 'run.json'} is damaged: it does not say which graph {lacking[0]} is, of which there are "
                "records; put back what it was, or give another --out"
            )
        self.facts = {name: facts for name, facts in there["datasets"].items() if name in used}
        self.settings = {**self.settings, "titles": {**there["titles"], **self.settings["titles"]}}

    def _as_written(self) -> dict[str, Any]:
        """The settings as they are read again, tuples having become lists."""
        found = {}
        for name, value in self.settings.items():
            try:
                found[name] = json.loads(json.dumps(value, allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise BenchmarkError(
                    f"{name} cannot be kept in {self.path}: {error}; give finite numbers, texts, lists and "
                    f"dictionaries, got {shown(value)}"
                ) from None
        return found

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
    except (OSError, ValueError, RecursionError) as error:
        raise BenchmarkError(f"cannot read {file}: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BenchmarkError(f"{file} is not of format {FORMAT}; it was written by another version, or damaged")
    wrong = _wrong(found, _SETTINGS)
    if wrong is None:
        told = ((name, _wrong(facts, _DATASET)) for name, facts in found["datasets"].items())
        wrong = next((f"of data set {name}: {what}" for name, what in told if what is not None), None)
    if wrong is not None:
        raise BenchmarkError(f"{file} is damaged: {wrong}; put back what it was, or give another --out")
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
    records = []
    *lines, torn = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            wrong = _wrong(record, _RECORD)
        except (ValueError, RecursionError):
            wrong = "it is no JSON"
        if wrong is not None:
            raise BenchmarkError(
                f"{file} is damaged: line {number} is no record of a trial: {wrong}; take that line out, and its trial "
                "will be run again"
            )
        records.append(record)
    return records, len(content) - len(torn)


def _encoded(record: Record) -> bytes:
    """The line of a record."""
    wrong = _wrong(record, _RECORD)
    try:
        line = json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        line, wrong = "", wrong or str(error)
    if wrong is not None:
        place = " ".join(str(record.get(name)) for name in ("dataset", "method", "trial"))
        raise BenchmarkError(f"the record of {place} cannot be kept: {wrong}")
    return line.encode() + b"\n"
