"""Results that are computed again: the plain gradients, fewer bytes, and no more work or memory than was promised."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from recompute_steps import D, Fn, N, compare, recomputed, rms_norm, step, swiglu, x_and
from torch import Tensor, nn

import graphlossy
from graphlossy._compress import _recompute
from graphlossy._compress._codecs import Recomputed

# -- small graphs --------------------------------------------------------------------------------------------------


SQUARE = (D, D)
GRAPHS: dict[str, tuple[Fn, tuple[tuple[int, ...], ...], list[str]]] = {
    "rms norm by hand": (lambda x, g, w: rms_norm(x + 0, g) @ w, ((D,), SQUARE), ["mul", "matmul"]),
    "F.rms_norm": (lambda x, g, w: F.rms_norm(x + 0, (D,), g) @ w, ((D,), SQUARE), ["matmul"]),
    "swiglu": (swiglu, (SQUARE, SQUARE, SQUARE), ["mul", "matmul"]),
    "layer norm": (lambda x, g, b, w: F.layer_norm(x + 0, (D,), g, b) @ w, ((D,), (D,), SQUARE), ["matmul"]),
    "layer norm without affine": (lambda x, w: F.layer_norm(x + 0, (D,)) @ w, (SQUARE,), ["matmul"]),
    "layer norm of two dimensions": (
        lambda x, w: F.layer_norm((x + 0).view(4, -1, D), (24, D)) @ w, (SQUARE,), ["matmul"],
    ),
    "gelu": (lambda x, w: F.gelu(x + 0) @ w, (SQUARE,), ["matmul"]),
    "gelu by tanh": (lambda x, w: F.gelu(x + 0, approximate="tanh") @ w, (SQUARE,), ["matmul"]),
    "gelu of GPT-2": (
        lambda x, w: (lambda h: 0.5 * h * (1.0 + torch.tanh(0.79788 * (h + 0.044715 * torch.pow(h, 3.0)))))(x + 0) @ w,
        (SQUARE,),
        ["tanh", "mul", "matmul"],
    ),
    "residuals": (
        lambda x, w: (lambda h: (h + F.silu(h)).square() * (h - 2 * torch.sigmoid(h)))(x @ w) @ w,
        (SQUARE,),
        ["square", "sigmoid", "mul", "mul", "matmul"],
    ),
    "own result": (lambda x, w: torch.tanh(F.silu(x + 0).sigmoid()) @ w, (SQUARE,), ["sigmoid", "tanh", "matmul"]),
    "double use": (
        lambda x, w: (lambda y: y @ w + y * y + F.silu(y))(F.silu(x + 0)),
        (SQUARE,),
        ["matmul", "mul", "mul", "silu"],
    ),
    "another shape": (lambda x, w: F.silu(x + 0).view(8, 12, D) @ w, (SQUARE,), ["matmul"]),
    "keyword arguments": (
        lambda x, g, w: torch.mul(input=F.silu(x + 0), other=g) @ w, ((D,), SQUARE), ["mul", "matmul"],
    ),
    "broadcast": (lambda x, w: (F.silu(x[:, None] * 1) + w[:8]).square() @ w, (SQUARE,), ["square", "matmul"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str) -> None:
    fn, shapes, expected = GRAPHS[name]
    assert compare(fn, *x_and(*shapes)) == expected


def halves(x: Tensor, w: Tensor) -> Tensor:
    y = F.silu(x + 0)
    first, second = y.chunk(2)
    return torch.cat([first @ w, (second * second).sin() @ w]) + y.square()


def transposed(x: Tensor, w: Tensor) -> Tensor:
    y = F.silu((x + 0).t())
    return (y.t() @ w) + y.square().t() + F.silu(y.contiguous()).t()


def expanded(x: Tensor, w: Tensor) -> Tensor:
    y = F.silu(x[:2] + 0)
    return (y[:, None].expand(2, D, D) * w) + (y[:1].expand(D, D) * w).square()


def strided(x: Tensor, w: Tensor) -> Tensor:
    y = F.silu(x + 0)
    return y[::2].square() @ w[:, ::2].square() + y[::2].contiguous().square() @ w[:, 1::2]


def other_type(x: Tensor, w: Tensor) -> Tensor:
    y = F.silu(x + 0)
    return (y.bfloat16().float() * y.double().float()).square() @ w + y.bfloat16().square().float()


def constants(x: Tensor, w: Tensor) -> Tensor:
    scale, rows = torch.linspace(0, 1, D), torch.linspace(1, 2, 2 * N)[:, None]
    y = (F.silu(x + 0) - scale) * rows
    return y.square() @ w + (y + torch.ones(2 * N, D)).square() @ w  # ones as large as the result


# How many tensors are computed again.
VIEWS: dict[Fn, int] = {halves: 2, transposed: 0, expanded: 0, strided: 1, other_type: 5, constants: 3}


@pytest.mark.parametrize("fn", VIEWS, ids=lambda fn: fn.__name__)
def test_views_types_and_constants(fn: Fn) -> None:
    assert len(compare(fn, torch.randn(2 * N, D), torch.randn(D, D))) == VIEWS[fn]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_tensors_that_are_no_dense_memory() -> None:
    w = torch.randn(D, D)
    compare(lambda x: ((x + 0).to_sparse_csr() * 2).to_dense() @ w, torch.randn(N, D))
    compare(lambda x: torch.vmap(lambda row: row.tanh() * 2)(F.silu(x + 0)) @ w, torch.randn(N, D))


def test_shapes_without_numbers() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.LayerNorm(D), nn.Linear(D, 2048)).to("meta")
    x, y = torch.empty(N, D, device="meta"), torch.empty(N, dtype=torch.int64, device="meta")
    with graphlossy.compress(bits=None, recompute=True):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


# -- memory that changes -------------------------------------------------------------------------------------------


def result_changed(x: Tensor, w: Tensor) -> Tensor:
    y = F.silu(x + 0)
    y += 1
    z = F.silu(x + 0)
    z.mul_(2.0)
    return (y + z) @ w + y.relu() @ w


def source_changed(x: Tensor, w: Tensor) -> Tensor:
    """The cube's graph is dropped, so torch does not mind that what it saved is changed."""
    h = x + 0
    h.pow(3)
    y = h * 2
    h.add_(1)
    return y @ w + h @ w


def source_changed_without_gradient(x: Tensor, w: Tensor) -> Tensor:
    h = x + 0
    kept = h.square().mean().detach()  # saved ``h``
    y = h + 1
    with torch.no_grad():
        h.mul_(0)
    return y @ w + kept


def in_place_activation(x: Tensor, w: Tensor) -> Tensor:
    h = x @ w
    return F.silu(h + 1, inplace=True) @ w + (h * 2).tanh_() @ w + (h * 3).sigmoid_()


def freed(x: Tensor, w: Tensor) -> Tensor:
    """Other tensors come to lie where known ones were."""
    out = x @ w
    for i in range(6):
        y = F.silu(x * (i + 1))
        z = y * 2
        del y
        out = out + z.square() @ w
        del z
        with torch.no_grad():
            for _ in range(3):
                torch.full((N, D), float(i)).mul(2)
        out = out + (w[:1] * torch.full((N, D), float(i))) @ w
    return out


@pytest.mark.parametrize(
    "fn",
    [result_changed, source_changed, source_changed_without_gradient, in_place_activation, freed],
    ids=lambda fn: fn.__name__,
)
def test_memory_that_changes(fn: Fn) -> None:
    compare(fn, *x_and(SQUARE))


def test_a_buffer_that_is_updated_after_its_use() -> None:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        mean = torch.full((D,), 0.5)
        y = F.silu(x + 0) - mean
        mean.mul_(0.9)
        z = y.square() - mean
        out = y @ w + z @ w
        mean.zero_()
        return out

    # The first was changed before its result was saved, the other one after it.
    assert compare(fn, *x_and(SQUARE)) == ["matmul"]


def test_what_plain_autograd_refuses_is_refused() -> None:
    x, w = x_and(SQUARE)
    for recompute in (False, True):
        x.requires_grad_()
        with graphlossy.compress(bits=None, recompute=recompute):
            h = x + 0
            out = F.silu(h) @ w.requires_grad_()
            h.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


# -- work and memory -----------------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[number of operations that were run again]"""
    count, unpack = [0], Recomputed.unpack

    def counting(self: Recomputed) -> Tensor:
        count[0] += 1
        return unpack(self)

    monkeypatch.setattr(Recomputed, "unpack", counting)
    return count


CHAINS: dict[str, Fn] = {
    "activations": F.silu,
    "products with itself": lambda y: y * y,
    "gates": lambda y: y * F.silu(y) - y.sigmoid(),
}


@pytest.mark.parametrize("name", CHAINS)
def test_work_does_not_grow_with_depth(name: str, runs: list[int]) -> None:
    per_tensor = []
    for length in (20, 60):

        def fn(x: Tensor, length: int = length) -> Tensor:
            y = x + 0
            for _ in range(length):
                y = CHAINS[name](y)
            return y

        runs[0] = 0
        again = compare(fn, torch.rand(N, D))
        assert again
        per_tensor.append(runs[0] / len(again))
    assert max(per_tensor) <= _recompute._MOST_WORK and per_tensor[1] < 1.2 * per_tensor[0]


def test_knowing_keeps_nothing_alive() -> None:
    """In a block around many steps, and of graphs that are dropped."""
    model = nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.LayerNorm(D), nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
    with graphlossy.compress(bits=None, recompute=True) as ledger:
        for rows in (100, 120, 140):
            model(torch.randn(rows, D)).sum().backward()
            assert ledger.live_bytes == 0
            model(torch.randn(rows, D))
            assert ledger.live_bytes == 0
    assert recomputed(ledger)


def test_bytes() -> None:
    """Of a gated block nothing but the residual stream and the results of the matrix products is stored."""
    _, _, plain = step(lambda x, g, *w: swiglu(rms_norm(x + 0, g), *w), *x_and((D,), SQUARE, SQUARE, SQUARE),
                       recompute=False)  # fmt: skip
    _, _, ledger = step(lambda x, g, *w: swiglu(rms_norm(x + 0, g), *w), *x_and((D,), SQUARE, SQUARE, SQUARE))
    wide, rows = 4 * N * D, 4 * N
    # x, x / rms, weight * (x / rms), both halves, silu and their product; two numbers of each row, mean and rms.
    assert plain.plain_bytes == plain.saved_bytes == ledger.plain_bytes
    assert 7 * wide + rows <= plain.plain_bytes <= 7 * wide + 2 * rows
    assert ledger.saved_bytes == plain.saved_bytes - 4 * wide
    for record in ledger.records:
        assert record.how != "recomputed" or (record.saved_bytes, record.bits, record.gradient) == (0, 32, "exact")


def test_small_tensors_are_kept() -> None:
    assert not compare(lambda x: F.silu(x[:8] + 0).square(), torch.randn(N, D))


# -- any graph -------------------------------------------------------------------------------------------------------

OPS: list[Fn] = [
    F.silu, torch.sigmoid, torch.tanh, torch.square, F.gelu, torch.neg, F.relu, torch.sin,
    lambda t: 0.5 * t, lambda t: 1 - t, lambda t: t.float().pow(3), lambda t: F.layer_norm(t, (D,)),
    lambda t: F.rms_norm(t, (D,)), lambda t: t.view(4, -1).contiguous().view(-1, D), lambda t: t.t().clone().t(),
    lambda t: t.add_(1), lambda t: t.detach() * t, lambda t: t.bfloat16().float(), lambda t: t.softmax(-1),
]  # fmt: skip
PAIRS: list[Fn] = [torch.mul, torch.add, torch.sub, lambda a, b: a @ b, lambda a, b: a * b[:1], torch.maximum]


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(OPS), st.integers(0, 9)),
            st.tuples(st.sampled_from(PAIRS), st.integers(0, 9), st.integers(0, 9)),
        ),
        min_size=3,
        max_size=14,
    )
)
def test_any_graph_of_cheap_operations(steps: list) -> None:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        made = [x * 0.5, w * 0.5]
        for op, *sources in steps:
            made.append(op(*(made[i % len(made)] for i in sources)) * 0.7)
        return torch.stack([t.double().clamp(-1e3, 1e3) for t in made]).sum(0).float()

    inputs = torch.randn(D, D), torch.randn(D, D)
    try:
        step(fn, *inputs, recompute=False)
    except RuntimeError as error:  # an in-place change that plain autograd does not allow
        if "inplace" not in str(error):
            raise
        with pytest.raises(RuntimeError, match="inplace"):
            step(fn, *inputs)
        return
    expected, theirs, _ = step(fn, *inputs, recompute=False)
    out, ours, _ = step(fn, *inputs)
    assert torch.equal(out, expected)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
