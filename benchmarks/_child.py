"""One method on one network in a process of its own: ``python -m benchmarks._child SPEC``, result on standard output.

Order of events: data; a warm-up on a small graph, which loads every kernel; model, graph and optimizer; the first step
(its peak includes whatever the method builds once per graph); then the measured steps. Time and peak of a step are
taken together. Last, outside the measured steps, the tensors held between forward and backward are counted.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from typing import Any

import torch

from benchmarks._graphs import make_problem
from benchmarks._live import LiveBytes
from benchmarks._meter import meter_for
from benchmarks._variants import Runner, Shape

__all__ = ["measure"]


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs ``spec``: variant, model and its shape, nodes, edges, steps, seed, threads, device.

    Returns:
        seconds and peak_bytes of every step, those of the first one, held_bytes (the tensors alive between forward and
        backward), peak_tensor_bytes, kept_bytes (what stays between steps: graph caches, optimizer state), ledger
        (bytes as graphlossy's own ledger counts them, where there is one).
    """
    device = torch.device(spec["device"])
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    shape = Shape(spec["model"], *(spec[k] for k in ("features", "hidden", "classes", "layers", "dropout")))
    size = (shape.features, shape.classes, spec["seed"])
    warm = make_problem(2000, 8000, *size).to(device)
    runner = Runner(spec["variant"], shape, warm, spec["seed"])
    runner.step(_adam(runner))
    del runner, warm

    problem = make_problem(spec["nodes"], spec["edges"], *size).to(device)
    runner = Runner(spec["variant"], shape, problem, spec["seed"])
    optimizer = _adam(runner)
    meter = meter_for(device)
    before = meter.settle()
    steps = []
    for _ in range(1 + spec["steps"]):
        meter.start()
        begin = meter.clock()
        loss = runner.step(optimizer)
        seconds = meter.clock() - begin
        steps.append({"seconds": seconds, "peak_bytes": meter.peak(), "loss": loss})
        if len(steps) == 1:
            kept = meter.settle() - before
    return {
        "variant": spec["variant"],
        "model": spec["model"],
        "first": steps[0],
        "seconds": [s["seconds"] for s in steps[1:]],
        "peak_bytes": [s["peak_bytes"] for s in steps[1:]],
        "losses": [s["loss"] for s in steps],
        "updates_per_epoch": runner.updates,
        "kept_bytes": max(0, kept),
        **_tensors(runner),
        "ledger": _ledger(runner),
    }


def _adam(runner: Runner) -> torch.optim.Optimizer:
    return torch.optim.Adam(runner.model.parameters(), lr=0.01)


def _tensors(runner: Runner) -> dict[str, int]:
    """Tensor bytes held for the backward pass, and their highest sum in forward and backward."""
    runner.model.zero_grad(set_to_none=True)
    live = LiveBytes()
    with live:
        loss = next(iter(runner.losses()))
        gc.collect()
        held = live.bytes
        loss.backward()
    return {"held_bytes": held, "peak_tensor_bytes": live.peak}


def _ledger(runner: Runner) -> dict[str, int] | None:
    """What graphlossy's ledger says: of the method itself, or of the plain model with everything kept as it is."""
    import graphlossy

    counted = runner.ledger
    if counted is None:
        if runner.name not in ("pyg-csr", "pyg-edge_index"):
            return None
        with graphlossy.compress(bits=None) as counted:
            loss = next(iter(runner.losses()))
        del loss
    return {"plain_bytes": counted.plain_bytes, "saved_bytes": counted.saved_bytes}


def main() -> None:
    """Reads the spec from the command line, prints one line of JSON."""
    warnings.filterwarnings("ignore")
    print(json.dumps(measure(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
