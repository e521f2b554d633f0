"""The bytes that a run reports are those that ``graphlossy.plan`` predicts: model and loss, after the first step."""

from dataclasses import replace

import pytest
import torch

from graphlossy import plan
from graphlossy.train import TrainConfig
from graphlossy.train._run import Run

CONFIG = TrainConfig(dataset="toy", layers=3, hidden=64, epochs=1, seeds=1, device="cpu", threads=1)


@pytest.mark.parametrize("adj", ["edge_index", "csr"])
@pytest.mark.parametrize("model", ["gcn", "sage", "gat", "gcn2", "gin"])
def test_saved_bytes_are_those_of_the_plan(model, adj, task):
    from graphlossy.train._adjacency import build_adjacency

    config = replace(CONFIG, model=model, adj=adj)
    task = replace(task, adj=build_adjacency(task.adj, len(task.x), adj))
    for scheme in config.comparison():
        run = Run(scheme, 0, task, config)
        found = plan(
            run.model,
            num_nodes=len(task.x),
            num_edges=task.edges,
            num_features=task.x.shape[1],
            num_classes=task.outputs,
            num_train_nodes=len(run.split.train),
            schemes=["compress 2 bits"],
            adj=adj,
        )
        run.step()
        predicted = found["compress 2 bits" if scheme.compressed else "float32"].saved_bytes
        assert run.saved_bytes == pytest.approx(predicted, rel=0.05)


def test_the_loss_counts_the_same_under_every_scheme(task):
    sums = []
    for scheme in CONFIG.comparison():
        run = Run(scheme, 0, task, CONFIG)
        run.step()
        sums.append(sum(record["saved_bytes"] for record in run.records if record["module"] == "loss"))
    rows = len(task.splits[0].train)
    # What log_softmax returns, the labels of the rows, and the weight that their mean is divided by.
    assert sums == [rows * (task.outputs * 4 + 8) + 4] * 2


def test_a_budget_is_for_the_loss_too(task):
    loss = len(task.splits[0].train) * (task.outputs * 4 + 8) + 4
    config = replace(CONFIG, budget="90KiB", schemes=("compressed",))
    run = Run(config.comparison()[0], 0, task, config)
    for _ in range(3):
        run.step()
        assert loss < run.saved_bytes <= 90 * 1024


def test_making_a_run_leaves_the_callers_generator_alone(task):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for scheme in CONFIG.comparison():
        Run(scheme, 0, task, CONFIG)
    assert torch.equal(torch.rand(2), expected)
