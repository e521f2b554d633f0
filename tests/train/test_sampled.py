"""Training on mini-batches and on thinned graphs."""

import json
from dataclasses import replace

import pytest
import torch

from graphlossy.train import Experiment, Observer, TrainConfig, TrainError, make_task, sampling_defaults
from graphlossy.train._batches import FullBatch, SampledBatches, make_batches
from graphlossy.train._run import Run

CPU = torch.device("cpu")
TIMES = ("seconds", "evaluation_seconds", "peak_bytes")
CONFIG = TrainConfig(dataset="toy", layers=2, hidden=16, epochs=4, seeds=1, device="cpu", threads=1)
KINDS = {
    "neighbor": {"batch_size": 40, "num_neighbors": (4, 3)},
    "degree-neighbor": {"batch_size": 40, "num_neighbors": (4, 3)},
    "saint-node": {"batch_size": 100},
    "saint-edge": {"batch_size": 60},
    "saint-walk": {"batch_size": 40, "walk_length": 2},
    "cluster": {"batch_size": 2, "num_parts": 7},
    "sparsify": {"sparsify": "degree:0.5"},
}


def sampled(kind, **changes):
    return replace(CONFIG, sampler=kind, **{**KINDS[kind], **changes})


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


class Crash(Observer):
    def __init__(self, after):
        self.left = after

    def epoch(self, line):
        self.left -= 1
        if not self.left:
            raise SystemExit("power cut")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_trains(kind, toy, tmp_path):
    config = sampled(kind, epochs=12, hidden=128)  # tensors under 4,096 elements stay as they are
    summary = Experiment(config, tmp_path / "run").run(task=make_task(toy, config, CPU))
    baseline, low = summary["schemes"]
    assert baseline["test_mean"] > 0.55 and low["test_mean"] > 0.55
    assert 0 < low["saved_bytes"] < baseline["saved_bytes"] / 3
    assert kind in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("model", ["gcn", "sage", "gat", "gcn2", "gin"])
def test_all_neighbours_of_all_nodes_are_the_full_batch(model, toy):
    config = replace(CONFIG, model=model, dropout=0.0, norm=False, schemes=("baseline",), epochs=2)
    full = Run(config.comparison()[0], 0, make_task(toy, config, CPU), config)
    config = replace(config, sampler="neighbor", num_neighbors=(-1, -1), batch_size=1000)
    parts = Run(config.comparison()[0], 0, make_task(toy, config, CPU), config)
    for _ in range(2):
        ours, theirs = parts.step(), full.step()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    for a, b in zip(parts.model.parameters(), full.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["neighbor", "saint-walk", "cluster", "sparsify"])
@pytest.mark.parametrize("after", [1, 4])
def test_a_crashed_sampled_experiment_resumes_bit_for_bit(kind, after, toy, tmp_path):
    config = sampled(kind)
    task = make_task(toy, config, CPU)
    Experiment(config, tmp_path / "a").run(task=task)
    with pytest.raises(SystemExit):
        Experiment(config, tmp_path / "b", checkpoint_seconds=0).run(Crash(after), task=task)
    Experiment.resume(tmp_path / "b").run(task=make_task(toy, config, CPU))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_worker_processes_change_nothing(toy, tmp_path):
    found = []
    for workers in (0, 2):
        config = sampled("neighbor", epochs=2, num_workers=workers, schemes=("compressed",))
        Experiment(config, tmp_path / str(workers)).run(task=make_task(toy, config, CPU))
        found.append(lines(tmp_path / str(workers)))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["neighbor", "saint-edge", "cluster"])
def test_a_budget_holds_for_every_batch(kind, toy, monkeypatch):
    config = sampled(kind, hidden=64, budget="60KiB", schemes=("compressed",), epochs=3)
    run = Run(config.comparison()[0], 0, make_task(toy, config, CPU), config)
    found = []
    step = Run._step

    def watched(self, batch):
        loss = step(self, batch)
        found.append((batch.x.shape[0], self.compression.ledger.saved_bytes + self._loss_bytes(batch)))
        return loss

    monkeypatch.setattr(Run, "_step", watched)
    for _ in range(3):
        run.step()
    assert len({nodes for nodes, _ in found}) > 1, "batches of one size show nothing"
    assert max(size for _, size in found) <= 60 * 1024
    assert run.saved_bytes <= 60 * 1024


def test_a_sampled_budget_resumes_bit_for_bit(toy, tmp_path):
    config = sampled("saint-edge", hidden=64, budget="60KiB", schemes=("compressed",))
    task = make_task(toy, config, CPU)
    Experiment(config, tmp_path / "a").run(task=task)
    with pytest.raises(SystemExit):
        Experiment(config, tmp_path / "b", checkpoint_seconds=0).run(Crash(2), task=task)
    Experiment.resume(tmp_path / "b").run(task=task)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_counting_the_baselines_bytes_changes_no_number(toy, monkeypatch):
    config = sampled("neighbor", schemes=("baseline",))
    losses = []
    for counted in (True, False):
        run = Run(config.comparison()[0], 0, make_task(toy, config, CPU), config)
        if not counted:
            run.records = [{"saved_bytes": 1}]
        losses.append([run.step()["loss"] for _ in range(2)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["saint-node", "saint-edge", "saint-walk"])
def test_the_weights_of_saints_loss_add_up_to_one_in_expectation(kind, toy):
    config = sampled(kind)
    task = make_task(toy, config, CPU)
    batches = SampledBatches(task, task.split(0), config, 0, CPU)
    sums = torch.tensor([float(batch.weight.sum()) for epoch in range(60) for batch in batches.epoch(epoch)])
    error = (sums.mean() - 1) / (sums.std() / len(sums) ** 0.5)
    assert abs(error) < 4 and abs(sums.mean() - 1) < 0.1


def test_batches_are_those_of_the_epoch_and_the_seed(toy):
    config = sampled("neighbor")
    task = make_task(toy, config, CPU)

    def drawn(seed, epoch):
        return [batch.y for batch in SampledBatches(task, task.split(0), config, seed, CPU).epoch(epoch)]

    def same(a, b):
        return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert same(drawn(0, 1), drawn(0, 1))
    assert not same(drawn(0, 1), drawn(0, 2)) and not same(drawn(0, 1), drawn(1, 1))


def test_only_training_nodes_carry_the_loss(toy):
    for kind in KINDS:
        config = sampled(kind)
        task = make_task(toy, config, CPU)
        train = set(map(tuple, toy.x[toy.train_mask].tolist()))
        for batch in make_batches(task, task.split(0), config, 0, CPU).epoch(1):
            assert set(map(tuple, batch.x[batch.rows].tolist())) <= train


def test_an_epoch_of_neighbour_sampling_takes_every_training_node_once(toy):
    config = sampled("neighbor")
    task = make_task(toy, config, CPU)
    rows = torch.cat([batch.x[batch.rows] for batch in SampledBatches(task, task.split(0), config, 0, CPU).epoch(3)])
    assert sorted(rows.tolist()) == sorted(toy.x[toy.train_mask].tolist())


@pytest.mark.parametrize("model", ["gcn", "sage", "gat", "gin"])
@pytest.mark.parametrize("changes", [{}, {"sparsify_eval": True}, {"reweight": False}, {"eval_batch": 64}])
def test_a_thinned_graph_is_trained_on(model, changes, toy, tmp_path):
    config = replace(CONFIG, model=model, epochs=15, sparsify="degree:0.5", **changes)
    task = make_task(toy, config, CPU)
    assert 0.4 < task.train_edges / task.edges < 0.6
    summary = Experiment(config, tmp_path / "run").run(task=task)
    assert all(scheme["test_mean"] > 0.45 for scheme in summary["schemes"])
    assert summary["data"]["train_edges"] == task.train_edges
    assert f"{task.train_edges:,} edges" in (tmp_path / "run" / "report.html").read_text()


def test_evaluation_sees_the_full_graph_unless_asked_not_to(toy):
    config = replace(CONFIG, model="sage", sparsify="degree:0.5", adj="csr")
    task = make_task(toy, config, CPU)
    assert task.adj.values().numel() == toy.num_edges > task.train_adj.values().numel()
    thinned = make_task(toy, replace(config, sparsify_eval=True), CPU)
    assert thinned.train_adj is None and thinned.adj.values().numel() == task.train_edges


def test_thinned_and_sampled_and_compressed_together(toy, tmp_path):
    config = sampled("neighbor", model="sage", sparsify="degree:0.5", epochs=12)
    summary = Experiment(config, tmp_path / "run").run(task=make_task(toy, config, CPU))
    assert all(scheme["test_mean"] > 0.5 for scheme in summary["schemes"])


def test_a_resumed_run_notices_another_thinned_graph(toy, tmp_path):
    config = replace(CONFIG, sparsify="degree:0.5")
    with pytest.raises(SystemExit):
        Experiment(config, tmp_path / "run", checkpoint_seconds=0).run(Crash(2), task=make_task(toy, config, CPU))
    other = make_task(toy, replace(config, seed=5), CPU)
    with pytest.raises(TrainError, match="changed since"):
        Experiment.resume(tmp_path / "run").run(task=other)


def test_evaluation_every_few_epochs_and_at_the_end(toy, tmp_path):
    config = replace(CONFIG, eval_every=3, epochs=5, schemes=("baseline",))
    summary = Experiment(config, tmp_path / "run").run(task=make_task(toy, config, CPU))
    rows = lines(tmp_path / "run")
    assert [row["epoch"] for row in rows if row["valid"] is not None] == [3, 5]
    assert summary["runs"][0]["best_epoch"] in (3, 5) and summary["schemes"][0]["test_mean"] is not None


def test_evaluating_in_chunks_gives_the_same_run(toy, tmp_path):
    found = []
    for chunk in (40, 1000):
        config = replace(CONFIG, model="sage", adj="csr", eval_batch=chunk)
        Experiment(config, tmp_path / str(chunk)).run(task=make_task(toy, config, CPU))
        found.append([row["test"] for row in lines(tmp_path / str(chunk))])
    assert found[0] == found[1]


def test_defaults_fit_the_graph():
    found = sampling_defaults(TrainConfig(sampler="cluster"), nodes=2_449_029, train_nodes=196_615)
    assert found == {"num_parts": 15_024, "batch_size": 32}
    assert sampling_defaults(TrainConfig(sampler="cluster"), 100, 50) == {"num_parts": 1, "batch_size": 1}
    found = sampling_defaults(TrainConfig(sampler="neighbor", layers=5), 5000, 3000)
    assert found == {"batch_size": 1024, "num_neighbors": [15, 10, 5, 5, 5]}


def test_a_full_batch_is_one_step(toy):
    task = make_task(toy, CONFIG, CPU)
    (batch,) = FullBatch(task, task.split(0)).epoch(7)
    assert batch.x is task.x and batch.adj is task.adj and batch.share == 1


def test_a_sampler_that_refuses_is_one_line(toy):
    config = sampled("saint-edge")
    toy.edge_index = toy.edge_index[:, :0]
    task = make_task(toy, config, CPU)
    with pytest.raises(TrainError, match="sampler saint-edge: .* needs a graph with edges") as caught:
        SampledBatches(task, task.split(0), config, 0, CPU)
    assert "\n" not in str(caught.value)


def test_a_task_made_without_the_sampler_is_refused(task):
    config = sampled("neighbor")
    with pytest.raises(TrainError, match="without sampler neighbor"):
        Run(config.comparison()[0], 0, task, config)
