"""One measurement of speed and memory in a process of its own, so that its peak is no other's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from typing import Any

from graphlossy.core._memory import is_out_of_memory
from graphlossy.llm.finetune import FinetuneError
from graphlossy.llm.finetune._errors import one_line
from graphlossy.outliers.runner.limits import kills_by_the_system, offer_first

__all__ = ["main", "measure_apart"]

_PROGRAM = "from graphlossy.cli._llm_bench_child import main; main()"
NO_MEMORY = {"status": "out of memory"}


def measure_apart(task: dict[str, Any]) -> dict[str, Any]:
    """Starts a process, waits for it, and tells what it measured.

    Args:
        task: ``model`` (its folder), ``cache``, ``length``, ``batch_size``, ``new_tokens``, ``seed``, ``device``,
            ``dtype`` and ``threads``.

    Returns:
        ``status``, ``"done"`` or ``"out of memory"``, and the fields of :class:`graphlossy.llm.kv._speed.Speed` if it
        is done.

    Raises:
        FinetuneError: the model does not allow the cache, or the process ended for another reason.
    """
    killed_before = kills_by_the_system()
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(task)],
            stdin=subprocess.PIPE,  # it ends when this process does
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for this process
        )
        try:
            said = process.stdout.read() if process.stdout is not None else b""
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if code == 0:
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        if "refused" in found:
            raise FinetuneError(f"cache {task['cache']}: {found['refused']}")
        return found
    last = lines[-1][:300] if lines else ""
    if is_out_of_memory(last) or (code == -signal.SIGKILL and kills_by_the_system() > killed_before):
        return NO_MEMORY
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise FinetuneError(f"cache {task['cache']}: the process that measured it ended with {how}{last and ': ' + last}")


def main() -> None:
    """The program of that process: the task is its argument, the result the last line that it writes."""
    threading.Thread(target=_end_with_the_owner, daemon=True).start()
    offer_first()
    print(json.dumps(_measure(json.loads(sys.argv[1]))))


def _end_with_the_owner() -> None:
    os.read(0, 1)
    os._exit(1)


def _measure(task: dict[str, Any]) -> dict[str, Any]:
    import torch

    from graphlossy.llm.finetune import load_model
    from graphlossy.llm.kv._speed import measure_speed
    from graphlossy.llm.kv.schemes import parse_cache

    torch.set_num_threads(task["threads"])
    try:
        model: Any = load_model(task["model"]).to(task["device"], getattr(torch, task["dtype"])).eval()
        sizes = (task["length"], task["batch_size"], task["new_tokens"], task["seed"])
        return {"status": "done", **asdict(measure_speed(model, parse_cache(task["cache"]), *sizes))}
    except (MemoryError, RuntimeError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            return NO_MEMORY
        if isinstance(error, RuntimeError):
            raise
        return {"refused": one_line(error)}
