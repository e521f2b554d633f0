"""The autograd functions inside one compiled graph: no breaks, and only packed tensors cross to the backward graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphlossy.autograd import CSRGraph, dropout, linear, norm_act_dropout, relu, spmm
from graphlossy.autograd.norm import batch_norm


class Model(torch.nn.Module):
    """GCN layer, fused block, linear, batch norm, ReLU, dropout, linear, from the functions alone."""

    def __init__(self, graph: CSRGraph, width: int) -> None:
        super().__init__()
        self.graph = graph
        self.weights = torch.nn.ParameterList(torch.randn(width, width) / width**0.5 for _ in range(3))
        self.scale = torch.nn.Parameter(torch.ones(width))
        self.shift = torch.nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        graph.values(transposed=True)

    def forward(self, x: Tensor, p: float = 0.5, bits: int = 2) -> Tensor:
        x = spmm(self.graph, linear(x, self.weights[0], bits=bits))
        x = norm_act_dropout(x, self.scale, self.shift, self.mean, self.var, p=p, bits=bits)
        x = spmm(self.graph, linear(x, self.weights[1], bits=bits))
        x = batch_norm(x, None, None, self.scale, self.shift, True, bits=bits)
        return linear(dropout(relu(x), p), self.weights[2], bits=bits)


# torch.compile makes such an object itself while it traces an autograd function.
DYNAMO = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture
def model(edges: Callable[..., Tensor]) -> Model:
    return Model(CSRGraph(edges(400, 2000), torch.rand(2000), 400), 64)


def check(model: Model, backend: str) -> None:
    x = torch.randn(400, 64)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    held: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.setdefault(t.data_ptr(), t), lambda t: t):
        out = compiled(x)
    arrays = (*model.graph.transpose(), *model.graph._cast.values())
    own = {t.data_ptr() for t in (x, *model.parameters(), *arrays)}
    kept = [t for pointer, t in held.items() if pointer not in own and t.numel() >= x.numel() / 16]
    assert kept and all(t.dtype is torch.uint8 for t in kept), [(t.dtype, t.shape) for t in kept]
    # four low-bit tensors (two norms, two linear inputs) and three masks, where float32 keeps nine matrices
    assert sum(t.numel() for t in kept) <= x.numel() * (4 * 2.125 + 3) / 8
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.mean.abs().sum() > 0
    # without dropout and at 8 bits the compiled gradients are the eager ones
    grads = []
    for run in (model, compiled):
        model.zero_grad()
        run(x, 0.0, 8).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() <= 0.03 * b.norm() + 1e-6
    torch.compiler.reset()


@DYNAMO
def test_full_graph(model: Model) -> None:
    check(model, "aot_eager")


@DYNAMO
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.slow
def test_full_graph_inductor(model: Model) -> None:
    check(model, "inductor")


def _samples() -> dict[str, tuple]:
    x = torch.randn(32, 64)
    seed = torch.tensor(7)
    packed = list(torch.ops.graphlossy.pack(x, 2, 256, False, seed))
    rows = list(torch.ops.graphlossy.pack(x, 2, 256, True, seed))
    graph = CSRGraph(torch.randint(32, (2, 90)), None, 32)
    mask = torch.ops.graphlossy.pack_mask(x > 0)
    inv, wide = torch.ones(64), torch.ones(32, 1)
    return {
        "pack": (x, 2, 256, False, seed),
        "spmm": (graph.crow, graph.col, graph.values(), x, False),
        "sampled_dot": (graph.row, graph.col, x, rows, 2, 256, 64, torch.float32, 4),
        "linear_weight_grad": (x, packed, 0, [], 2, 256, [32, 64], torch.float32),
        "leaky_relu_backward": (x, mask, 0.1),
        "dropout_backward": (x, mask, 0.5),
        "dropout_seeded": (x, 0.5, seed),
        "pack_normalized": (x, inv, inv, None, 2, 256, seed),
        "batch_norm_backward": (x, packed, inv, inv, mask, 0.5, 2, 256),
        "layer_norm_backward": (x, packed, wide, None, None, inv, None, 0.0, 2, 256),
    }


@pytest.mark.parametrize("name", sorted(_samples()))
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.graphlossy, name).default, _samples()[name])


@pytest.mark.parametrize("name", ["dropout", "relu_dropout"])
def test_opcheck_random(name: str) -> None:
    """Random operators: schema, fake tensors; not compared run against run."""
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.graphlossy, name).default, (torch.randn(9, 5), 0.5), test_utils=checks)
