import pytest
import torch

from graphlossy.train import MODELS, TrainConfig, build_model
from graphlossy.train._adjacency import build_adjacency


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", [1, 3])
def test_every_model_gives_a_gradient_to_every_weight(name, layers, task):
    torch.manual_seed(0)
    model = build_model(name, task.x.shape[1], 16, task.outputs, layers, dropout=0.5)
    out = model(task.x, task.adj)
    assert out.shape == (len(task.x), task.outputs)
    task.loss(out[task.splits[0].train], task.y[task.splits[0].train]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_csr_and_edge_index_agree_on_a_directed_graph(name, task):
    torch.manual_seed(0)
    edges = task.adj[:, ::2]
    model = build_model(name, task.x.shape[1], 16, task.outputs, 2, dropout=0.0).eval()
    expected = model(task.x, edges)
    torch.manual_seed(0)
    model = build_model(name, task.x.shape[1], 16, task.outputs, 2, dropout=0.0).eval()  # forgets cached edges
    sparse = build_adjacency(edges, len(task.x), "csr")
    torch.testing.assert_close(model(task.x, sparse), expected, atol=1e-4, rtol=1e-4)


def test_norm_can_be_left_out():
    for name in MODELS:
        model = build_model(name, 8, 16, 2, 3, 0.5, norm=False)
        assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in model.modules())


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="gcn, sage, gat, gcn2, gin"):
        build_model("mlp", 8, 16, 2, 3, 0.5)


def test_default_settings_name_a_model():
    assert TrainConfig().model in MODELS
