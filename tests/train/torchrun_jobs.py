"""What the tests of several processes run under torchrun, and how they start it: ``torchrun_jobs.py JOB FOLDER``."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import graphlossy
from graphlossy.train import Experiment, Scheme, Split, Task, TrainConfig, TrainError, make_task
from graphlossy.train import distributed as ddp
from graphlossy.train._batches import FullBatch
from graphlossy.train._ddp_loss import SharedLoss
from graphlossy.train._run import Run
from graphlossy.train.gradients import compress_gradients

SETTINGS = {"hidden": 64, "layers": 2, "epochs": 6, "seeds": 1, "device": "cpu", "threads": 1}
CONFIG = TrainConfig(dataset="toy", **SETTINGS)
FEEDBACK = replace(CONFIG, gradient_bits=2, gradient_feedback=True)  # every rank has a state of its own
SAMPLED = replace(CONFIG, model="sage", sampler="neighbor", batch_size=60, num_neighbors=(4, 4), dropout=0.2)
# Biases before BatchNorm have gradients of rounding errors alone, which Adam makes as large as any other.
PLAIN = replace(CONFIG, norm=False)
# All neighbours, no chance, and one step for the whole epoch: seeds that are shared out change nothing.
WHOLE = replace(SAMPLED, batch_size=150, num_neighbors=(-1, -1), dropout=0.0, norm=False)
SCHEMES = {"baseline": Scheme("baseline"), "2-bit": Scheme("2-bit", bits=2)}
CUTS = {"even": 75, "uneven": 110, "empty": 150}  # of 150 training nodes, how many rank 0 takes
# After so many restarts, this rank dies in this experiment after this epoch.
DIED = {0: ("full", 1, 2), 1: ("full", 0, 5), 2: ("batches", 1, 5)}


def launch(
    job: str,
    folder: Path,
    restarts: int = 0,
    command: bool = False,
    limit: float = 100.0,
    arguments: Sequence[Any] = (),
    meanwhile: Callable[[subprocess.Popen[str]], None] | None = None,
) -> Any:
    """Runs a job in two processes on this machine; the launcher's CompletedProcess, with all its output.

    Args:
        job: name of a function in ``JOBS``.
        folder: where the processes write.
        restarts: how often the workers may be started anew.
        command: run the command torchrun; otherwise its agent, with workers that need not import torch again.
        limit: seconds.
        arguments: of the command line, for the job ``cli``, without blanks; ``then`` between two commands.
        meanwhile: called with the process while it runs.
    """
    torchrun = [sys.executable, __file__, "--fork", str(restarts), job, str(folder), *map(str, arguments)]
    if command:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}"]
        torchrun += ["--nproc-per-node=2", __file__, job, str(folder), *map(str, arguments)]
    # Workers look for each other on the loopback interface, whatever the machine's name leads to.
    network = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with subprocess.Popen(
        torchrun, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**kept, **network}
    ) as process:
        try:
            if meanwhile is not None:
                meanwhile(process)
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()  # the workers follow: see die_with_the_launcher
            output, _ = process.communicate()
            output += f"\n{job} did not end within {limit} s"
    return subprocess.CompletedProcess(torchrun, process.returncode, output)


def results(folder: Path) -> list[dict[str, Any]]:
    """What every rank of a finished job has saved."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def die_with_the_launcher() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def make_task_of_all() -> Task:
    """150 training nodes whose features and edges both tell the class, but neither of them surely."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (300,), generator=generator)
    x = torch.randn(300, 24, generator=generator) + 1.5 * F.one_hot(y, 24)
    edges = torch.randint(300, (2, 1800), generator=generator)
    edges = edges[:, (y[edges[0]] == y[edges[1]]) | (torch.rand(1800, generator=generator) < 0.2)]
    edges = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    split = Split(*torch.randperm(300, generator=generator).split([150, 75, 75]))
    return Task("toy", x, edges, y, (split,), "accuracy", 3, edges.shape[1])


def one_process() -> ddp.Rank:
    return ddp.Rank(0, 1, 0, torch.device("cpu"))


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]


def shared_gradient(task: Any, rank: ddp.Rank, scheme: str, cut: int) -> dict[str, Any]:
    """What one epoch of a run leaves when rank 0 takes ``cut`` of the training nodes."""
    return one_epoch(Run(SCHEMES[scheme], 0, task, CONFIG, cut_batch(task, rank, cut), rank))


def cut_batch(task: Any, rank: ddp.Rank, cut: int) -> FullBatch:
    batches, rows = FullBatch(task, task.split(0)), task.split(0).train
    batches._batch.rows = rows if rank.world_size == 1 else (rows[:cut], rows[cut:])[rank.rank]
    return batches


def one_epoch(run: Run) -> dict[str, Any]:
    line = run.step()
    return {"loss": line["loss"], "gradient": gradients(run.model), "buffers": list(run.model.buffers())}


class PlainMean(SharedLoss):
    """The planted wrong variant: every rank takes the plain mean over its own nodes."""

    def __call__(self, out: torch.Tensor, batch: Any) -> torch.Tensor:
        return self._task.loss(out[batch.rows], batch.y[batch.rows])


def unweighted_gradient(task: Any, rank: ddp.Rank, cut: int) -> list[torch.Tensor]:
    run = Run(SCHEMES["baseline"], 0, task, CONFIG, cut_batch(task, rank, cut), rank)
    run._together = PlainMean(task, rank)
    return one_epoch(run)["gradient"]


def drawn_task(config: TrainConfig) -> Task:
    """The same graph, to draw mini-batches from."""
    from torch_geometric.data import Data

    task = make_task_of_all()
    data = Data(x=task.x, y=task.y, edge_index=task.adj, num_classes=3, metric="accuracy")
    data.name = "toy"
    for name, rows in zip(("train_mask", "val_mask", "test_mask"), task.splits[0], strict=True):
        data[name] = torch.zeros(300, dtype=torch.bool).index_fill_(0, rows, True)
    return make_task(data, config, torch.device("cpu"))


def drawn_gradient(rank: ddp.Rank) -> dict[str, Any]:
    """What one epoch of one mini-batch leaves: the ranks share its seeds."""
    return one_epoch(Run(SCHEMES["baseline"], 0, drawn_task(WHOLE), WHOLE, None, rank))


def sampled_gradient(task: Any, rank: ddp.Rank, seeds: torch.Tensor) -> list[torch.Tensor]:
    """The gradient of one batch of seeds, of which each rank sees its share and their whole neighbourhood only."""
    from torch_geometric.utils import k_hop_subgraph

    from graphlossy.train import build_model

    torch.manual_seed(0)
    model = build_model("sage", task.x.shape[1], 16, task.outputs, layers=2, dropout=0.0, norm=False)
    mine = ddp.partition(seeds, rank.rank, rank.world_size)
    nodes, edges, where, _ = k_hop_subgraph(mine, 2, task.adj, relabel_nodes=True, num_nodes=len(task.x))
    network = ddp.wrap(model)  # must outlive the backward pass
    out, y = network(task.x[nodes], edges), task.y[nodes]
    ddp.share_of_loss(F.cross_entropy, out[where], y[where], len(seeds), rank.world_size).backward()
    return gradients(model)


def ledger_names(task: Any, after: bool) -> list[str]:
    """Modules that a ledger names when compression is switched on before or after the model is wrapped."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    network = ddp.wrap(model) if after else model
    ledger = graphlossy.compress(network, bits=2)
    network = network if after else ddp.wrap(model)
    F.cross_entropy(network(task.x), task.y).backward()
    return sorted({record.module for record in ledger.records})


def error_of(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fail_in(rank: ddp.Rank, number: int) -> int:
    if rank.rank == number:
        raise TrainError("no such file")
    return 5


def checks(task: Any, rank: ddp.Rank, folder: Path) -> dict[str, Any]:
    """Everything that two healthy processes do."""
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(float(rank.rank))
    ddp.average_buffers(norm)
    return {
        "rank": rank,
        "shared": {(s, c): shared_gradient(task, rank, s, cut) for s in SCHEMES for c, cut in CUTS.items()},
        "unweighted": unweighted_gradient(task, rank, CUTS["uneven"]),
        "sampled": sampled_gradient(task, rank, torch.arange(7)),
        "no seeds": sampled_gradient(task, rank, torch.tensor([3])),
        "names": [ledger_names(task, after) for after in (False, True)],
        "sum": [ddp.reduce_sum(0.5 + rank.rank), ddp.reduce_sum(torch.tensor([1, rank.rank]))],
        "mean": [ddp.reduce_mean(float(rank.rank)), ddp.reduce_mean(torch.tensor([1.0, rank.rank]))],
        "objects": [ddp.broadcast_object({"from": rank.rank}), ddp.gather_objects(rank.rank)],
        "on_main": [ddp.on_main(lambda: f"from {rank.rank}"), error_of(lambda: ddp.on_main(lambda: fail_in(rank, 0)))],
        "on_all": [ddp.on_all(lambda: fail_in(rank, 9)), error_of(lambda: ddp.on_all(lambda: fail_in(rank, 1)))],
        "is_main": ddp.is_main(),
        "running_mean": norm.running_mean,
        "epoch_seed": ddp.epoch_seed(0, rank.rank, 3),
        "drawn": drawn_gradient(rank),
        "plain": train("plain", PLAIN, folder)[0],
        "alike": error_of(lambda: Experiment(replace(CONFIG, epochs=1 + rank.rank), folder / "alike").run(task=task)),
        "diverged": error_of(lambda: Experiment(replace(CONFIG, lr=1e20), folder / "diverged").run(task=task)),
        **trains(task, rank, folder),
    }


class Mortal(Experiment):
    """Writes a checkpoint after every third epoch, not by the clock, and dies where ``DIED`` says so."""

    dies = False
    state: Any = None

    def _after_epoch(self) -> None:
        epoch = min(run.epoch for run in self.active)
        self._checkpoint_seconds = 0.0 if epoch % 3 == 0 else 1e9
        if self.dies and DIED.get(self.rank.restarts) == (self.folder.path.name, self.rank.rank, epoch):
            os.kill(os.getpid(), signal.SIGKILL)
        if epoch == 3 and not self.dies:
            self.state = self.active[-1].state_dict()
        super()._after_epoch()


def train(name: str, config: TrainConfig, folder: Path, dies: bool = False) -> tuple[dict[str, Any], Any]:
    experiment = Mortal(config, folder / name)
    experiment.dies = dies
    summary = experiment.run(task=drawn_task(config) if config.sampler else make_task_of_all())
    return summary, experiment.state


def trains(task: Any, rank: ddp.Rank, folder: Path, dies: bool = False) -> dict[str, Any]:
    """Two experiments, one after the other: on the full batch, and with shared mini-batches."""
    configs = {"full": FEEDBACK, "batches": SAMPLED}
    found = {name: train(name, config, folder, dies) for name, config in configs.items()}
    states = {name: state for name, (_, state) in found.items()}
    return {"rank": rank, "states": states, **{name: summary for name, (summary, _) in found.items()}}


def dies(task: Any, rank: ddp.Rank, folder: Path) -> dict[str, Any]:
    """The same, but a worker is killed three times."""
    return trains(task, rank, folder, dies=True)


def fails(task: Any, rank: ddp.Rank, folder: Path) -> dict[str, Any]:
    """Rank 1 fails while rank 0 waits for a sum, which it would do for half a minute."""
    if not rank.is_main:
        atexit.register(time.sleep, 6)  # or torchrun would end rank 0 before it has said why it stops
        raise TrainError("this disk is full")
    ddp.reduce_sum(1.0)
    return {}


def is_late(task: Any, rank: ddp.Rank, folder: Path) -> dict[str, Any]:
    """Rank 1 comes too late to a barrier."""
    if rank.is_main:
        (folder / "rank0").write_text(error_of(lambda: ddp.barrier(timeout=0.5)))
        raise SystemExit(1)
    time.sleep(20)
    return {}


def averages(task: Any, rank: ddp.Rank, folder: Path) -> dict[str, Any]:
    """What the gradient hook makes of gradients that are known."""
    found: dict[str, Any] = {"rank": rank}
    for name, given in {"4 bits": {"bits": 4}, "feedback": {"bits": 1, "error_feedback": True}}.items():
        state, steps = three_steps(rank, given)
        found[name] = {"steps": steps, "state": state.state_dict(), "ratio": state.ratio}
    found["again"] = three_steps(rank, {"bits": 4})[1]
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        model, network, _ = toy_network({"bits": 4, "error_feedback": name == "inf"})
        backward(network, rank.rank, 0, value if rank.rank == 1 else 1.0)
        spoiled = gradients(model)
        backward(network, rank.rank, 1)
        found[name] = [spoiled, gradients(model)]
    found["powersgd"] = power_sgd(rank)
    return found


def three_steps(rank: ddp.Rank, given: dict[str, Any] | None) -> tuple[Any, list[Any]]:
    model, network, state = toy_network(given)
    steps = []
    for step in range(3):
        backward(network, rank.rank, step)
        steps.append(gradients(model))
    return state, steps


def toy_network(settings: dict[str, Any] | None) -> tuple[nn.Module, nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64), nn.Linear(64, 5, bias=False))
    network = ddp.wrap(model)
    state = None if settings is None else compress_gradients(network, **settings)
    return model, network, state


def backward(network: nn.Module, rank: int, step: int, factor: float = 1.0) -> None:
    network.zero_grad(set_to_none=True)
    given = torch.randn(16, 40, generator=torch.Generator().manual_seed(100 * rank + step))
    (network(given).square().mean() * factor).backward()


def power_sgd(rank: ddp.Rank) -> list[torch.Tensor]:
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

    model, network, _ = toy_network(None)
    state = power.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    network.register_comm_hook(state, power.powerSGD_hook)
    for step in range(3):
        backward(network, rank.rank, step)
    return gradients(model)


JOBS = {job.__name__: job for job in (checks, dies, fails, is_late, averages)}


def work(job: str, folder: str, *arguments: str) -> None:
    """One worker."""
    die_with_the_launcher()
    torch.set_num_threads(1)
    if job == "cli":
        return commands(folder, arguments)
    with ddp.session("cpu", timeout=30.0) as rank:
        torch.save(JOBS[job](make_task_of_all(), rank, Path(folder)), Path(folder) / f"rank{rank.rank}.pt")


def commands(folder: str, arguments: Sequence[str]) -> None:
    """``graphlossy`` commands, separated by ``then``, one after the other; the last one's exit code is the worker's."""
    import graphlossy.cli._ranks

    code: Any = 0
    os.chdir(folder)
    graphlossy.cli._ranks.GRACE = 0.2
    for command in " ".join(arguments).split(" then "):
        try:
            graphlossy.cli.main(command.split())
        except SystemExit as stop:
            code = stop.code
            print(f"rank {os.environ['RANK']} exits with {code}", flush=True)
    time.sleep(1.0 if code else 0.0)  # the agent ends the others as soon as one has failed; let each say so first
    sys.exit(code)


def fork(restarts: str, job: str, folder: str, *arguments: str) -> None:
    """What ``torchrun --standalone`` does, with workers that have imported everything already."""
    import torch_geometric.nn  # noqa: F401
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    import graphlossy.cli.train
    import graphlossy.sampler  # noqa: F401

    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    config = LaunchConfig(1, 1, 2, start_method="fork", max_restarts=int(restarts), monitor_interval=0.05, **rendezvous)
    try:
        elastic_launch(config, work)(job, folder, *arguments)
    except ChildFailedError as error:
        print("exit codes", sorted(failure.exitcode for failure in error.failures.values()))
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    if sys.argv[1] == "--fork":
        fork(*sys.argv[2:])
    else:
        work(*sys.argv[1:])
