"""The re-implemented methods: forward values untouched, gradients close or unbiased, bytes as in the papers."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

import graphlossy
from benchmarks import baselines
from benchmarks._graphs import Problem, make_problem
from benchmarks._live import LiveBytes
from benchmarks._models import MODELS
from benchmarks._variants import VARIANTS, Runner, Shape
from graphlossy.core import quantize

NODES, WIDTH = 600, 32


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(NODES, 4000, 16, 5, seed=3)


def shape(model: str, dropout: float = 0.5) -> Shape:
    return Shape(model, 16, WIDTH, 5, 3, dropout)


def loss_and_gradients(runner: Runner, seed: int = 7) -> tuple[torch.Tensor, list[torch.Tensor]]:
    runner.model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = next(iter(runner.losses()))
    loss.backward()
    return loss.detach(), [p.grad for p in runner.model.parameters()]


def relative_error(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    return (sum((a - b).square().sum() for a, b in zip(found, wanted, strict=True))
            / sum(b.square().sum() for b in wanted)).sqrt().item()  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("variant", "bitwise", "tolerance"),
    [
        ("pyg-edge_index", False, 1e-5),
        ("bf16", False, 0.2),
        ("checkpoint", True, 1e-6),
        ("save_on_cpu", True, 1e-6),
        ("exact-2bit", True, 1.0),
        ("exact-2bit-rp", True, None),
        ("crs-1/8", True, None),
        ("compress-8bit", True, 0.02),
        ("compress-2bit", True, 1.0),
        ("compress-2bit-edge_index", False, 1.0),
        ("nn-2bit", False, 1.5),
    ],
)
def test_each_method_runs_the_same_network(
    problem: Problem, model: str, variant: str, bitwise: bool, tolerance: float | None
) -> None:
    # graphlossy.nn draws its seeds between the masks, so equal seeds do not drop equal elements.
    network = shape(model, 0.0 if variant == "nn-2bit" else 0.5)
    plain, wanted = loss_and_gradients(Runner("pyg-csr", network, problem))
    loss, found = loss_and_gradients(Runner(variant, network, problem))
    if bitwise:
        assert torch.equal(loss, plain)
    else:
        torch.testing.assert_close(loss, plain, rtol=2e-2 if variant == "bf16" else 1e-4, atol=0)
    assert all(g.isfinite().all() for g in found)
    if tolerance is not None:
        assert relative_error(found, wanted) < tolerance


@pytest.mark.parametrize("model", MODELS)
def test_exact_at_8_bits_has_the_plain_gradient(problem: Problem, model: str) -> None:
    _, wanted = loss_and_gradients(Runner("pyg-csr", shape(model), problem))
    runner = Runner("exact-2bit", shape(model), problem)
    runner._context = baselines.Exact(8)
    _, found = loss_and_gradients(runner)
    total = sum(b.square().sum() for b in wanted).sqrt()
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 0.03 * b.norm() + 1e-3 * total  # a bias before a norm has no gradient but noise


def test_every_variant_is_tested_or_a_plain_one() -> None:
    tested = {mark.args[1][i][0] for mark in test_each_method_runs_the_same_network.pytestmark
              for i in range(len(mark.args[1])) if mark.args[0] != "model"}  # fmt: skip
    others = {"pyg-csr", "subgraph-1/8", "compress-4bit", "compress-1bit", "nn-2bit-edge_index"}
    assert tested | others == set(VARIANTS)


# -- unbiasedness ----------------------------------------------------------------------------------------------------


class Nearest(baselines.Exact):
    """Planted: rounds to nearest, which is biased."""

    def keep(self, x: torch.Tensor, project: bool = True) -> baselines.Compressed:
        group = -(-x.size(1) // 8) * 8
        return baselines.Compressed(quantize(x.detach(), self.bits, group, rounding="nearest"), None, x.shape)


class Unscaled(baselines.ColumnRowSampling):
    """Planted: forgets to divide by the probability."""

    def keep(self, x: torch.Tensor) -> baselines.Sampled:
        kept = super().keep(x)
        return kept._replace(rows=x.detach()[kept.index.long()] / self.share)


def worst_z(make: type, *args: object, draws: int = 200) -> float:
    """Largest standardised error of the mean gradient of a weight over seeds."""
    torch.manual_seed(0)
    x = (torch.randn(64, 16).exp() - 1).requires_grad_()
    weight = torch.randn(8, 16, requires_grad=True)
    target = torch.randn(64, 8)
    (wanted,) = torch.autograd.grad((F.linear(x * 1, weight) * target).sum(), weight)
    samples = []
    for seed in range(draws):
        with make(*args, seed):
            out = F.linear(x * 1, weight)
        samples.append(torch.autograd.grad((out * target).sum(), weight)[0])
    stack = torch.stack(samples)
    error = stack.std(0) / draws**0.5
    return ((stack.mean(0) - wanted).abs() / (error + 1e-5)).max().item()


@pytest.mark.parametrize(
    "method",
    [
        (baselines.Exact, 2, 1.0),
        (baselines.Exact, 1, 1.0),
        (baselines.Exact, 2, 0.5),
        (baselines.ColumnRowSampling, 0.25),
    ],
    ids=["exact-2", "exact-1", "exact-2-rp", "crs"],
)
def test_gradients_of_weights_are_unbiased(method: tuple) -> None:
    assert worst_z(*method) < 5  # 128 entries: the largest of as many normals stays below


@pytest.mark.parametrize("method", [(Nearest, 2, 1.0), (Unscaled, 0.25)], ids=["nearest", "unscaled"])
def test_a_biased_method_is_rejected(method: tuple) -> None:
    assert worst_z(*method) > 5


# -- bytes -----------------------------------------------------------------------------------------------------------


def held(runner: Runner) -> int:
    runner.step(torch.optim.Adam(runner.model.parameters()))
    live = LiveBytes()
    with live:
        loss = next(iter(runner.losses()))
        gc.collect()
        found = live.bytes
    assert loss.isfinite()
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", ["pyg-csr", "pyg-edge_index"])
def test_live_tensors_are_the_bytes_that_the_ledger_counts(problem: Problem, model: str, variant: str) -> None:
    runner = Runner(variant, shape(model), problem)
    found = held(runner)
    with graphlossy.compress(bits=None) as ledger:
        loss = next(iter(runner.losses()))
    assert found == ledger.plain_bytes + loss.nbytes


def test_exact_keeps_the_bits_of_its_paper() -> None:
    from benchmarks.bits_per_element import bits_per_element

    data = make_problem(512, 4000, 128, 5, seed=0)
    # Two or three low-bit tensors with 32 bits of metadata a row, two masks, statistics of the norm.
    assert bits_per_element("exact-2bit", data, 128) == pytest.approx(8.75, rel=0.05)
    projection = 2 * 32 * 128 * 16 / (512 * 128)  # P itself, which is small beside many nodes
    assert bits_per_element("exact-2bit-rp", data, 128) == pytest.approx(5.25 + projection, rel=0.05)
    assert bits_per_element("pyg-csr", data, 128) == pytest.approx(128, rel=0.02)


def test_live_bytes_forget_what_is_freed_and_ignore_inputs() -> None:
    x = torch.zeros(100)
    sparse = torch.eye(4).to_sparse_csr()
    with LiveBytes() as live:
        y = x.view(10, 10)
        sparse.values().view(2, 2)
        assert live.bytes == 0
        z = y + 1
        assert live.bytes == z.nbytes
        del z
        assert live.bytes == 0
        kept = [torch.ones(5), torch.ones(5)]
        assert live.bytes == sum(t.nbytes for t in kept)
    assert live.peak == x.nbytes


def test_subgraphs_cover_every_node_once_and_keep_inner_edges(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = list(baselines.random_subgraphs(problem.edge_index, NODES, 4, generator))
    assert torch.cat([nodes for nodes, _ in parts]).sort().values.equal(torch.arange(NODES))
    pairs = set(map(tuple, problem.edge_index.t().tolist()))
    part_of = {int(n): i for i, (nodes, _) in enumerate(parts) for n in nodes}
    kept = {tuple(nodes[edge].tolist()) for nodes, edges in parts for edge in edges.t()}
    assert kept == {(a, b) for a, b in pairs if part_of[a] == part_of[b]}
