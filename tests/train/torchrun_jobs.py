"""What the tests of several processes run under torchrun, and how they start it: ``torchrun_jobs.py JOB FOLDER``."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import graphlossy
from graphlossy.train import Scheme, Split, Task, TrainConfig, TrainError
from graphlossy.train import distributed as ddp
from graphlossy.train._ddp_train import Replica, train_replicas
from graphlossy.train.gradients import compress_gradients

SETTINGS = {"hidden": 32, "layers": 2, "epochs": 8, "seeds": 1, "device": "cpu"}
CONFIG = TrainConfig(dataset="toy", schemes=("compressed",), bits=(2,), **SETTINGS)
FEEDBACK = {"bits": 2, "error_feedback": True, "exact_below": 64}  # every rank has a state of its own
SCHEMES = {"baseline": Scheme("baseline"), "2-bit": Scheme("2-bit", bits=2)}
CUTS = {"even": 75, "uneven": 110, "empty": 150}  # of 150 training nodes, how many rank 0 takes
DIED = {0: (1, 4), 1: (0, 6)}  # after so many restarts, this rank dies after this epoch


def launch(job: str, folder: Path, restarts: int = 0, command: bool = False, limit: float = 100.0) -> Any:
    """Runs a job in two processes on this machine; the launcher's CompletedProcess, with all its output.

    Args:
        job: name of a function in ``JOBS``.
        folder: where the processes write.
        restarts: how often the workers may be started anew.
        command: run the command torchrun; otherwise its agent, with workers that need not import torch again.
        limit: seconds.
    """
    torchrun = [sys.executable, __file__, "--fork", str(restarts), job, str(folder)]
    if command:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}"]
        torchrun += ["--nproc-per-node=2", __file__, job, str(folder)]
    # Workers look for each other on the loopback interface, whatever the machine's name leads to.
    network = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with subprocess.Popen(
        torchrun, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**kept, **network}
    ) as process:
        try:
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


def make_task() -> Task:
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
    """The gradient after one backward pass in which rank 0 takes ``cut`` of the training nodes."""
    replica = Replica(SCHEMES[scheme], 0, task, CONFIG, rank)
    rows = task.split(0).train
    replica.rows = rows if rank.world_size == 1 else (rows[:cut], rows[cut:])[rank.rank]
    replica.terms = len(replica.rows)
    with replica._own_rng():
        loss = replica.backward()
    return {"loss": loss, "gradient": gradients(replica.model), "buffers": list(replica.model.buffers())}


def unweighted_gradient(task: Any, rank: ddp.Rank, cut: int) -> list[torch.Tensor]:
    """The planted wrong variant: every rank takes the plain mean over its own nodes."""
    replica = Replica(SCHEMES["baseline"], 0, task, CONFIG, rank)
    rows = task.split(0).train
    with replica._own_rng():
        replica.model.train()
        out = replica._forward(replica.network)
        mine = (rows[:cut], rows[cut:])[rank.rank]
        task.loss(out[mine], task.y[mine]).backward()
    return gradients(replica.model)


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


def loaded_gradient(task: Any, rank: ddp.Rank) -> list[torch.Tensor]:
    """The gradient of one epoch of mini-batches of 20, 20 and 10 training nodes, drawn by the library's loader."""
    from torch_geometric.data import Data

    from graphlossy.sampler import make_loader
    from graphlossy.train import build_model

    torch.manual_seed(0)
    model = build_model("sage", task.x.shape[1], 16, task.outputs, layers=2, dropout=0.0, norm=False)
    network = ddp.wrap(model)
    data = Data(x=task.x, y=task.y, edge_index=task.adj)
    seeds, world = task.split(0).train[:50], rank.world_size
    loader = make_loader(
        data, "neighbor", seeds, batch_size=20, num_neighbors=[-1, -1], rank=rank.rank, world_size=world
    )
    for batch in loader:
        total = round(ddp.reduce_sum(float(batch.batch_size)))
        out, labels = network(batch.x, batch.edge_index)[: batch.batch_size], batch.y[: batch.batch_size]
        ddp.share_of_loss(F.cross_entropy, out, labels, total, world).backward()
    return gradients(model)


def ledger_names(task: Any, after: bool) -> list[str]:
    """Modules that a ledger names when compression is switched on before or after the model is wrapped."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    if after:
        network = ddp.wrap(model)
        ledger = graphlossy.compress(network, bits=2)
    else:
        ledger = graphlossy.compress(model, bits=2)
        network = ddp.wrap(model)
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
        "loaded": loaded_gradient(task, rank),
        "names": [ledger_names(task, after) for after in (False, True)],
        "sum": [ddp.reduce_sum(0.5 + rank.rank), ddp.reduce_sum(torch.tensor([1, rank.rank]))],
        "mean": [ddp.reduce_mean(float(rank.rank)), ddp.reduce_mean(torch.tensor([1.0, rank.rank]))],
        "objects": [ddp.broadcast_object({"from": rank.rank}), ddp.gather_objects(rank.rank)],
        "on_main": [ddp.on_main(lambda: f"from {rank.rank}"), error_of(lambda: ddp.on_main(lambda: fail_in(rank, 0)))],
        "on_all": [ddp.on_all(lambda: fail_in(rank, 9)), error_of(lambda: ddp.on_all(lambda: fail_in(rank, 1)))],
        "is_main": ddp.is_main(),
        "running_mean": norm.running_mean,
        "epoch_seed": ddp.epoch_seed(0, rank.rank, 3),
        "lines": train_replicas(CONFIG, task, rank, folder / "run", 3, FEEDBACK),
        "plain": train_replicas(CONFIG, task, rank, folder / "plain"),
    }


def dies(task: Any, rank: ddp.Rank, folder: Path) -> dict[str, Any]:
    """The training of ``checks``, in which a worker is killed twice: once each of the two."""

    def observe(line: dict[str, Any]) -> None:
        if DIED.get(rank.restarts) == (rank.rank, line["epoch"]):
            os.kill(os.getpid(), signal.SIGKILL)

    return {"rank": rank, "lines": train_replicas(CONFIG, task, rank, folder / "run", 3, FEEDBACK, observe)}


def fails(task: Any, rank: ddp.Rank, folder: Path) -> dict[str, Any]:
    """Rank 1 fails while rank 0 waits for a sum, which it would do for half a minute."""
    if not rank.is_main:
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
        model, network, state = toy_network(given)
        steps = []
        for step in range(3):
            backward(network, rank.rank, step)
            steps.append(gradients(model))
        found[name] = {"steps": steps, "state": state.state_dict(), "ratio": state.ratio}
    model, network, _ = toy_network({"bits": 4})
    found["again"] = []
    for step in range(3):
        backward(network, rank.rank, step)
        found["again"].append(gradients(model))
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        model, network, _ = toy_network({"bits": 4, "error_feedback": name == "inf"})
        backward(network, rank.rank, 0, value if rank.rank == 1 else 1.0)
        spoiled = gradients(model)
        backward(network, rank.rank, 1)
        found[name] = [spoiled, gradients(model)]
    found["powersgd"] = power_sgd(rank)
    return found


def toy_network(settings: dict[str, Any] | None) -> tuple[nn.Module, nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64), nn.Linear(64, 5, bias=False))
    network = ddp.wrap(model)
    state = None if settings is None else compress_gradients(network, **settings)
    return model, network, state


def toy_input(rank: int, step: int) -> torch.Tensor:
    return torch.randn(16, 40, generator=torch.Generator().manual_seed(100 * rank + step))


def backward(network: nn.Module, rank: int, step: int, factor: float = 1.0) -> None:
    network.zero_grad(set_to_none=True)
    (network(toy_input(rank, step)).square().mean() * factor).backward()


def power_sgd(rank: ddp.Rank) -> list[torch.Tensor]:
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

    model, network, _ = toy_network(None)
    state = power.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    network.register_comm_hook(state, power.powerSGD_hook)
    for step in range(3):
        backward(network, rank.rank, step)
    return gradients(model)


JOBS = {job.__name__: job for job in (checks, dies, fails, is_late, averages)}


def work(job: str, folder: str) -> None:
    """One worker."""
    die_with_the_launcher()
    torch.set_num_threads(1)
    with ddp.session("cpu", timeout=30.0) as rank:
        torch.save(JOBS[job](make_task(), rank, Path(folder)), Path(folder) / f"rank{rank.rank}.pt")


def fork(restarts: str, job: str, folder: str) -> None:
    """What ``torchrun --standalone`` does, with workers that have imported everything already."""
    import torch_geometric.nn  # noqa: F401
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    config = LaunchConfig(1, 1, 2, start_method="fork", max_restarts=int(restarts), monitor_interval=0.05, **rendezvous)
    elastic_launch(config, work)(job, folder)


if __name__ == "__main__":
    if sys.argv[1] == "--fork":
        fork(*sys.argv[2:])
    else:
        work(*sys.argv[1:])
