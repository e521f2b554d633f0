"""What a trial may use: memory and seconds, and how running out of them is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphlossy.core._memory import resident
from graphlossy.core.budget import format_bytes

__all__ = ["Limits", "address_limit", "kills_by_the_system", "offer_first", "resident_of"]

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class Limits:
    """What one trial may use; None: no limit.

    Attributes:
        seconds: of the fit; loading the data does not count.
        memory: bytes above what the worker process held before the fit, data included in that.
    """

    seconds: float | None = None
    memory: int | None = None

    def applied(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record, its figures dropped where it came in after the limit.

        Example:
            >>> Limits(seconds=2).applied({"status": "done", "auc": 0.9, "seconds": 2.5, "peak_bytes": 1})["status"]
            'TLE'
        """
        if record["status"] != "done":
            return record
        seconds, peak = record["seconds"], record["peak_bytes"]
        if self.seconds is not None and seconds > self.seconds:
            return _dropped(record, "TLE", f"took {seconds:.3g} s, the limit is {self.seconds:g} s")
        if self.memory is not None and peak is not None and peak > self.memory:
            said = f"took {format_bytes(peak)}, the limit is {format_bytes(self.memory)}"
            return _dropped(record, "OOM", said)
        return record


def _dropped(record: dict[str, Any], status: str, reason: str) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "auc": None,
        "ap": None,
        "recall": None,
        "by_type": {},
        "scores_sha256": None,
        "distinct_scores": None,
    }
    return {**record, **empty, "status": status, "reason": reason}


@contextmanager
def address_limit(memory: int | None) -> Iterator[None]:
    """Inside this context an allocation far above ``memory`` bytes is refused at once instead of being filled.

    It bounds what is asked for (RLIMIT_DATA), a quarter and 256 MiB above the limit, for memory that is asked for but
    never touched does not count; what is really used is watched from outside the process.
    """
    if memory is None or not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = resident("VmData") + memory + memory // 4 + 2**28
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def resident_of(process: int) -> int:
    """Bytes resident in another process of this machine; 0 where that cannot be read."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def kills_by_the_system() -> int:
    """How many processes the kernel has ended for memory since it started; 0 where it does not tell."""
    count = 0
    for file, word in (("/proc/vmstat", "oom_kill"), ("/sys/fs/cgroup/memory.events", "oom_kill")):
        with suppress(OSError, ValueError):
            for line in Path(file).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == word:
                    count = max(count, int(value))
    return count


def offer_first() -> None:
    """Where memory runs out, the kernel is to end this process rather than the one that writes the results."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
