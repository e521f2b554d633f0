"""Gradients between two processes: bytes, error, seconds and accuracy of plain, rounded and low-rank communication."""

# No postponed annotations here: DistributedDataParallel compares a hook's annotations with the classes themselves.

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import _report
from graphlossy.train import TrainConfig, build_model, load_task
from graphlossy.train import distributed as ddp
from graphlossy.train.gradients import compress_gradients

__all__ = ["METHODS", "main", "train"]

EXAMPLES = """\
  python -m benchmarks.gradients --fresh                         every method, 3 seeds, about a quarter of an hour
  python -m benchmarks.gradients --methods float32,ours-4bit,powersgd-2 --seeds 5
  python -m benchmarks.gradients --tiny --out /tmp/gradients.json

Two processes of one thread each, full batch, each with half of the training nodes; gloo on the loopback interface. A
(method, seed) that is in --out already is not run again. Bytes are what one process sends in a step: a ring all-reduce
of W processes sends 2 (W - 1) / W of the gradient's size, our all-gather W - 1 times the payload. The error is that of
the averaged gradient, relative to the exact mean of the same two gradients, the median over the measured steps; with
error feedback it counts what was kept back or caught up as an error too."""

PLAIN = ("float32", "bfloat16", "float16")
RANKS = (1, 2, 4)
BITS = (1, 2, 4, 8)
METHODS = (*PLAIN, *(f"powersgd-{rank}" for rank in RANKS), *(f"ours-{bits}bit" for bits in BITS),
           *(f"ours-{bits}bit-feedback" for bits in BITS))  # fmt: skip
WORLD_SIZE = 2
EVERY = 5  # epochs between two measurements of the error


def train(method: str, seed: int, epochs: int, hidden: int, rank: ddp.Rank) -> dict[str, Any]:
    """One run of one method: called in every process, with the same result."""
    config = TrainConfig(dataset="wordnet-verbs", model="gcn", hidden=hidden, device="cpu")
    task = load_task(config, rank.device)
    split = task.split(0)
    rows = ddp.partition(split.train, rank.rank, rank.world_size)
    torch.manual_seed(seed)
    model = build_model("gcn", task.x.shape[1], hidden, task.outputs, config.layers, config.dropout)
    network = ddp.wrap(model)
    bytes_of = _register(network, method, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    best, test, seconds, errors = -1.0, -1.0, [], []
    for epoch in range(1, epochs + 1):
        network.train()
        optimizer.zero_grad(set_to_none=True)
        state = torch.get_rng_state()
        measured = epoch % EVERY == 0 or epoch == epochs
        exact = _exact_gradient(model, task, rows, len(split.train), rank) if measured else None
        torch.set_rng_state(state)
        ddp.barrier()
        start = time.perf_counter()
        _loss(network, task, rows, len(split.train), rank).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        if exact is not None:
            found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
            errors.append(float((found - exact).norm() / exact.norm()))
        valid, score = _scores(model, task, split)
        if valid > best:
            best, test = valid, score
    sizes = bytes_of()
    return {
        "bytes": sizes,
        "seconds": sorted(seconds)[len(seconds) // 2],
        "errors": errors,
        "valid": best,
        "test": test,
    }


def _loss(network: Any, task: Any, rows: torch.Tensor, total: int, rank: ddp.Rank) -> torch.Tensor:
    out = network(task.x, task.adj)[rows]
    return ddp.share_of_loss(task.loss, out, task.y[rows], total, rank.world_size)


def _exact_gradient(model: Any, task: Any, rows: torch.Tensor, total: int, rank: ddp.Rank) -> torch.Tensor:
    probe = copy.deepcopy(model)
    _loss(probe, task, rows, total, rank).backward()
    return ddp.reduce_mean(torch.cat([parameter.grad.flatten() for parameter in probe.parameters()]).double()).float()


@torch.no_grad()
def _scores(model: Any, task: Any, split: Any) -> tuple[float, float]:
    model.eval()
    out = model(task.x, task.adj)
    return task.score(out, split.valid), task.score(out, split.test)


def _register(network: nn.Module, method: str, seed: int) -> Any:
    """Registers the method's hook; returns a function that gives the bytes that one process sends in a step."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    numel = sum(parameter.numel() for parameter in network.parameters())
    share = 2 * (WORLD_SIZE - 1) / WORLD_SIZE
    kind, _, number = method.partition("-")
    if kind == "float32":
        return lambda: 4 * numel * share
    if kind in PLAIN:
        given = default_hooks.bf16_compress_hook if kind == "bfloat16" else default_hooks.fp16_compress_hook

        def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            return given(state, bucket)  # DistributedDataParallel refuses the other one by its name on a CPU

        network.register_comm_hook(None, hook)
        return lambda: 2 * numel * share
    if kind == "powersgd":
        power = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=int(number), start_powerSGD_iter=2, random_seed=seed
        )
        network.register_comm_hook(power, powerSGD_hook.powerSGD_hook)
        return lambda: 4 * numel * share / power.compression_stats()[0]
    bits, feedback = int(number.partition("bit")[0]), number.endswith("feedback")
    ours = compress_gradients(network, bits, error_feedback=feedback, seed=seed)
    return lambda: ours.bytes_sent / ours.steps


def _work(methods: list[str], seeds: list[int], epochs: int, hidden: int, out: Path) -> None:
    """One of the two processes: every method on every seed, with a line of JSON for each."""
    torch.set_num_threads(1)
    with ddp.session("cpu", timeout=300.0) as rank:
        for method in methods:
            for seed in seeds:
                result = {"method": method, "seed": seed, **train(method, seed, epochs, hidden, rank)}
                if rank.is_main:
                    with out.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                ddp.barrier(300.0)
    # torch's own hooks leave Python functions to gloo's threads, which may abort an ordinary exit.
    os._exit(0)


def _measure(methods: list[str], seeds: list[int], epochs: int, hidden: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lines"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD_SIZE}"]
        command += ["-m", "benchmarks.gradients", "--work", "--methods", ",".join(methods), "--out", str(out)]
        command += ["--only-seeds", ",".join(map(str, seeds)), "--epochs", str(epochs), "--hidden", str(hidden)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        if done.returncode != 0:
            raise SystemExit(f"benchmarks.gradients: {', '.join(methods)} failed:\n{done.stderr[-3000:]}")
        return [json.loads(line) for line in out.read_text().splitlines()]


def summarize(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per method: bytes a step, times fewer than float32, error, milliseconds, test accuracy over the seeds."""
    found = {}
    plain = next((next(iter(seeds.values()))["bytes"] for name, seeds in runs.items() if name == "float32"), None)
    for method, seeds in runs.items():
        values = list(seeds.values())
        errors = sorted(error for run in values for error in run["errors"])
        found[method] = {
            "bytes": values[0]["bytes"],
            "fewer": None if plain is None else plain / values[0]["bytes"],
            "error": errors[len(errors) // 2],
            "milliseconds": _report.spread([1000 * run["seconds"] for run in values]),
            "test": _report.spread([100 * run["test"] for run in values]),
        }
    return found


def _print(method: str, row: dict[str, Any]) -> None:
    fewer = "     -" if row["fewer"] is None else f"{row['fewer']:5.1f}x"
    score, spent = row["test"], row["milliseconds"]["median"]
    print(f"  {method:20} {row['bytes']:10.0f} B {fewer}  error {row['error']:8.2e}  {spent:7.1f} ms  "
          f"test {score['mean']:5.2f} +- {score['std']:.2f}")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "gradients.json")
    made.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default: all)")
    made.add_argument("--seeds", type=int, default=None, help="number of seeds (default: 3; 1 if --tiny)")
    made.add_argument("--epochs", type=int, default=None, help="(default: 60; 6 if --tiny)")
    made.add_argument("--hidden", type=int, default=None, help="width (default: 128; 32 if --tiny)")
    made.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--only-seeds", default="", help=argparse.SUPPRESS)
    args = made.parse_args(argv)
    methods = args.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        made.error(f"--methods: unknown {', '.join(unknown)}; allowed: {', '.join(METHODS)}")
    count = (1 if args.tiny else 3) if args.seeds is None else args.seeds
    epochs = args.epochs or (6 if args.tiny else 60)
    hidden = args.hidden or (32 if args.tiny else 128)
    if count < 1 or epochs < 3 or hidden < 1:
        made.error("--seeds and --hidden must be at least 1, --epochs at least 3 (PowerSGD begins with the third step)")
    if args.work:
        _work(methods, [int(seed) for seed in args.only_seeds.split(",")], epochs, hidden, args.out)
        return
    settings = {"dataset": "wordnet-verbs", "model": "gcn", "layers": 3, "hidden": hidden, "epochs": epochs,
                "processes": WORLD_SIZE, "threads": 1, "group_size": 256, "exact_below": 1024}  # fmt: skip
    data: dict[str, Any] = _report.header("gradients", settings)
    runs = data["runs"] = _report.earlier(args.out, data, args.fresh).get("runs", {})
    for method in methods:
        wanted = [seed for seed in range(count) if str(seed) not in runs.get(method, {})]
        for result in _measure([method], wanted, epochs, hidden) if wanted else []:
            kept = {name: value for name, value in result.items() if name not in ("method", "seed")}
            runs.setdefault(method, {})[str(result["seed"])] = kept
        data["summary"] = summarize(runs)
        _print(method, data["summary"][method])
        _report.write_json(args.out, data)


if __name__ == "__main__":
    main()
