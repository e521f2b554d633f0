"""SparseAdamW against torch's AdamW and SparseAdam, and its decay that waits for rows."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graphlossy.recsys import MultiSizeEmbedding
from graphlossy.recsys.optim import SparseAdamW

pytestmark = pytest.mark.usefixtures("one_thread")


def sparse_gradient(row: list[int], values: Tensor, rows: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([row], dtype=torch.int64), values, (rows, values.shape[1]))


def table(rows: int = 6, width: int = 4, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width).to(dtype))


def step(optimizer: torch.optim.Optimizer, param: Tensor, row: list[int], values: Tensor | None = None) -> None:
    values = torch.randn(len(row), param.shape[1]) if values is None else values
    param.grad = sparse_gradient(row, values.to(param.dtype), param.shape[0])
    optimizer.step()


def clone(param: Tensor) -> nn.Parameter:
    return nn.Parameter(param.detach().clone())


def test_rows_of_every_step_go_where_adamw_takes_them() -> None:
    """A table that is looked up wholly, a projection and a bias, under a schedule, against dense gradients."""
    sparse, dense = nn.Embedding(7, 5, sparse=True), nn.Embedding(7, 5)
    layers = nn.Linear(5, 3), nn.Linear(5, 3)
    dense.load_state_dict(sparse.state_dict())
    layers[1].load_state_dict(layers[0].state_dict())
    ours = SparseAdamW([*sparse.parameters(), *layers[0].parameters()], lr=0.1, weight_decay=0.2)
    theirs = torch.optim.AdamW([*dense.parameters(), *layers[1].parameters()], lr=0.1, weight_decay=0.2)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 20) for o in (ours, theirs)]
    for seed in range(15):
        ids = torch.cat([torch.arange(7), torch.randint(7, (9,), generator=torch.Generator().manual_seed(seed))])
        for model, layer, optimizer in ((sparse, layers[0], ours), (dense, layers[1], theirs)):
            optimizer.zero_grad()
            layer(model(ids)).square().sum().backward()
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    torch.testing.assert_close(sparse.weight, dense.weight, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(
        ours.state[sparse.weight]["exp_avg_sq"], theirs.state[dense.weight]["exp_avg_sq"], rtol=2e-4, atol=1e-5
    )


def test_dense_parameters_are_stepped_bit_for_bit_as_by_adamw() -> None:
    param = nn.Parameter(torch.randn(5, 3, 2))
    other = clone(param)
    ours = SparseAdamW([param], lr=0.05, weight_decay=0.3)
    theirs = torch.optim.AdamW([other], lr=0.05, weight_decay=0.3, foreach=False)
    for _ in range(5):
        param.grad = torch.randn_like(param)
        other.grad = param.grad.clone()
        ours.step()
        theirs.step()
    assert torch.equal(param, other)


@pytest.mark.parametrize("repeat", [1, 3])
def test_without_decay_it_is_sparse_adam(repeat: int) -> None:
    param = table(20)
    other = clone(param)
    ours = SparseAdamW([param], lr=0.1, weight_decay=0.0, eps=1e-20)
    theirs = torch.optim.SparseAdam([other], lr=0.1, eps=1e-20)
    for seed in range(10):
        row = torch.randint(20, (8,), generator=torch.Generator().manual_seed(seed)).tolist() * repeat
        values = torch.randn(len(row), 4)
        step(ours, param, row, values)
        step(theirs, other, row, values)
    torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.state[param]["exp_avg"], theirs.state[other]["exp_avg"], rtol=1e-6, atol=1e-7)
    assert "last" not in ours.state[param]  # nothing is kept for decay


def test_decay_of_rows_touched_at_most_once_is_that_of_dense_adamw() -> None:
    """Without a first moment a zero gradient moves nothing but by decay, so dense AdamW says what is right."""
    param = table(12)
    other = clone(param)
    ours = SparseAdamW([param], lr=0.1, betas=(0.0, 0.9), weight_decay=0.5)
    theirs = torch.optim.AdamW([other], lr=0.1, betas=(0.0, 0.9), weight_decay=0.5)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 8) for o in (ours, theirs)]
    for t in range(9):
        row = [t] if t % 3 else []  # rows 0, 3, 6 and those from 9 on are never touched
        values = torch.randn(len(row), 4)
        step(ours, param, row, values)
        other.grad = sparse_gradient(row, values, 12).to_dense()
        theirs.step()
        for schedule in schedules:
            schedule.step()
    assert not torch.allclose(param[9], other[9], rtol=1e-3)  # it waits
    ours.catch_up()
    torch.testing.assert_close(param, other, rtol=1e-6, atol=1e-7)
    before = param.detach().clone()
    ours.catch_up()
    assert torch.equal(param, before)


def test_a_row_makes_up_for_its_decay_at_its_next_touch() -> None:
    param = table(3)
    before = param.detach().clone()
    optimizer = SparseAdamW([param], lr=0.1, weight_decay=0.5)
    rates = [0.1, 0.3, 0.02, 0.2]
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        step(optimizer, param, [0])
    assert torch.equal(param[1], before[1])
    optimizer.param_groups[0]["lr"] = 0.1
    step(optimizer, param, [1], torch.zeros(1, 4))  # moments stay zero: decay alone
    expected = before[1] * math.prod(1 - 0.5 * rate for rate in [*rates, 0.1])
    torch.testing.assert_close(param[1], expected, rtol=1e-6, atol=0)


def test_decay_is_exact_over_more_steps_than_are_kept() -> None:
    param = table(3, 2, torch.float64)
    before = param.detach().clone()
    optimizer = SparseAdamW([param], weight_decay=0.1)
    log = 0.0
    for t in range(2500):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + t % 7)
        log += math.log1p(-1e-4 * (1 + t % 7))
        step(optimizer, param, [0] if t % 5 == 0 else [], torch.zeros(int(t % 5 == 0), 2))
    state = optimizer.state[param]
    assert state["pending"]["history"].numel() < 2500 and state["last"].dtype == torch.int16
    optimizer.catch_up()
    torch.testing.assert_close(param, before * math.exp(log), rtol=1e-12, atol=0)


def test_decay_that_begins_and_ends_in_training() -> None:
    param = table(2)
    before = param.detach().clone()
    optimizer = SparseAdamW([param], lr=0.1, weight_decay=0.0)
    for decay in (0.0, 0.0, 0.5, 0.5, 0.0):
        optimizer.param_groups[0]["weight_decay"] = decay
        step(optimizer, param, [0])
    optimizer.catch_up()
    torch.testing.assert_close(param[1], before[1] * 0.95**2)


def test_a_dense_gradient_after_sparse_ones_finds_nothing_pending() -> None:
    param = table(3)
    before = param.detach().clone()
    optimizer = SparseAdamW([param], lr=0.1, weight_decay=0.5)
    step(optimizer, param, [0])
    step(optimizer, param, [0])
    param.grad = torch.zeros(3, 4)
    optimizer.step()
    torch.testing.assert_close(param[1], before[1] * 0.95**3)
    step(optimizer, param, [0])
    optimizer.catch_up()
    torch.testing.assert_close(param[1], before[1] * 0.95**4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("rowwise", [False, True])
def test_state_goes_through_a_file_with_decay_pending(dtype: torch.dtype, rowwise: bool) -> None:
    param, layer = table(8, dtype=dtype), nn.Parameter(torch.randn(3))
    optimizer = SparseAdamW([param, layer], lr=0.1, weight_decay=0.5, rowwise=rowwise)
    for row in ([1, 2], [2, 2], [5]):
        layer.grad = torch.ones(3)
        step(optimizer, param, row)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "param": param.detach(), "layer": layer.detach()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, other_layer = nn.Parameter(saved["param"]), nn.Parameter(saved["layer"])
    again = SparseAdamW([other, other_layer])
    again.load_state_dict(saved["optimizer"])
    assert again.param_groups[0]["seed"] == optimizer.param_groups[0]["seed"]
    for name, value in optimizer.state[param].items():
        if isinstance(value, Tensor):
            assert again.state[other][name].dtype == value.dtype
            assert torch.equal(again.state[other][name], value)
    for row in ([0, 1], [7]):
        values = torch.randn(len(row), 4)
        for o, p, bias in ((optimizer, param, layer), (again, other, other_layer)):
            bias.grad = torch.ones(3)
            step(o, p, row, values)
            o.catch_up()
    assert torch.equal(param, other) and torch.equal(layer, other_layer)


def by_definition(w: Tensor, batches: list[tuple[list[int], Tensor]], rowwise: bool, decay: float) -> Tensor:
    """Lazy AdamW row by row in float64, every step's decay at once."""
    w, m, v = w.double().clone(), torch.zeros(w.shape).double(), torch.zeros(w.shape).double()
    for t, (row, values) in enumerate(batches, start=1):
        w *= 1 - 0.1 * decay
        for r in set(row):
            g = sum(values[i].double() for i, other in enumerate(row) if other == r)
            square = g.square().mean().expand_as(g) if rowwise else g.square()
            m[r] = 0.9 * m[r] + 0.1 * g
            v[r] = 0.99 * v[r] + 0.01 * square
            w[r] -= 0.1 * (m[r] / (1 - 0.9**t)) / ((v[r] / (1 - 0.99**t)).sqrt() + 1e-8)
    return w


@given(
    rows=st.integers(1, 6),
    width=st.integers(1, 9),
    rowwise=st.booleans(),
    decay=st.sampled_from([0.0, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    data=st.data(),
)
def test_any_batches_follow_the_definition(
    rows: int, width: int, rowwise: bool, decay: float, dtype: torch.dtype, data: st.DataObject
) -> None:
    param = table(rows, width, dtype)
    optimizer = SparseAdamW([param], 0.1, (0.9, 0.99), weight_decay=decay, rowwise=rowwise)
    start, batches = param.detach().clone(), []
    for _ in range(4):
        row = data.draw(st.lists(st.integers(0, rows - 1), max_size=5))
        batches.append((row, torch.randn(len(row), width).to(dtype)))
        step(optimizer, param, *batches[-1])
    optimizer.catch_up()
    eps = max(1e-6, 8 * torch.finfo(dtype).eps)  # one rounding a step
    torch.testing.assert_close(param.double(), by_definition(start, batches, rowwise, decay), rtol=eps, atol=2 * eps)


def test_rows_that_are_not_named_stay() -> None:
    param = table(5)
    before = param.detach().clone()
    optimizer = SparseAdamW([param], weight_decay=0.1)
    step(optimizer, param, [3, 3, 1])
    assert (param == before).all(1).tolist() == [True, False, True, False, True]
    assert optimizer.state[param]["exp_avg"].any(1).tolist() == [False, True, False, True, False]


def test_an_empty_gradient_counts_as_a_step() -> None:
    param = table(5)
    before = param.detach().clone()
    optimizer = SparseAdamW([param], weight_decay=0.0)
    step(optimizer, param, [])
    assert torch.equal(param, before) and optimizer.state[param]["step"] == 1


def test_small_gradients_of_half_precision_move_rows() -> None:
    """1e-5 squared is nothing in float16, and torch's SparseAdam would divide by eps alone."""
    param = nn.Parameter(torch.zeros(4, 2, dtype=torch.float16))
    optimizer = SparseAdamW([param], lr=0.25, weight_decay=0.0)
    step(optimizer, param, [1], torch.full((1, 2), 1e-5))
    assert optimizer.state[param]["exp_avg_sq"].dtype == torch.float32
    torch.testing.assert_close(param[1].float(), torch.full((2,), -0.25), rtol=1e-2, atol=0)


def test_row_wise_state_is_small() -> None:
    param = table(100, 16)
    for options, numbers in (({"rowwise": True}, 17), ({"rowwise": True, "betas": (0.0, 0.9)}, 1), ({}, 32)):
        optimizer = SparseAdamW([param], weight_decay=0.0, **options)
        step(optimizer, param, [0])
        kept = [v for v in optimizer.state[param].values() if isinstance(v, Tensor)]
        assert sum(v.numel() for v in kept) == 100 * numbers


def test_nan_is_passed_through() -> None:
    param = table(4)
    optimizer = SparseAdamW([param])
    values = torch.ones(2, 4)
    values[0, 1] = math.nan
    step(optimizer, param, [2, 3], values)
    assert param.isnan().nonzero().tolist() == [[2, 1]]


def test_maximize_closure_and_groups() -> None:
    up, down = table(3), table(3)
    start = clone(up), clone(down)
    options = {"params": [up], "maximize": True, "lr": torch.tensor(0.5)}
    optimizer = SparseAdamW([options, {"params": [down]}], lr=0.25, weight_decay=0.0)
    up.grad = down.grad = None

    def closure() -> float:
        assert torch.is_grad_enabled()
        for param in (up, down):
            param.grad = sparse_gradient([0], torch.ones(1, 4), 3)
        return 7.0

    assert optimizer.step(closure) == 7.0
    torch.testing.assert_close(up[0], start[0][0] + 0.5)
    torch.testing.assert_close(down[0], start[1][0] - 0.25)


def test_a_multi_size_table_and_its_projections_learn_together() -> None:
    model = MultiSizeEmbedding(30, 8, sizes=[8] * 5 + [4] * 10 + [1] * 10 + [0] * 5, sparse=True, padding_idx=2)
    target = torch.randn(30, 8)
    optimizer = SparseAdamW(model.parameters(), lr=0.05, weight_decay=1e-3)
    kinds: list[bool] = []
    losses: list[float] = []
    for _ in range(150):
        ids = torch.randint(30, (20,))
        optimizer.zero_grad()
        loss = (model(ids) - target[ids]).square().mean()
        loss.backward()
        kinds = [p.grad.is_sparse for p in model.parameters()]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sorted(set(kinds)) == [False, True]
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    assert not model(torch.tensor([2])).any()  # padding has no gradient


WRONG = [
    ({"lr": -1.0}, ValueError, r"lr must be at least 0 and finite, got -1.0"),
    ({"lr": "fast"}, TypeError, "lr must be a number, got str"),
    ({"lr": torch.ones(2)}, ValueError, "lr must be a single number"),
    ({"eps": math.nan}, ValueError, "eps must be"),
    ({"weight_decay": math.inf}, ValueError, "weight_decay must be"),
    ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be at least 0 and below 1, got 1.0"),
    ({"betas": 0.9}, TypeError, "betas must be two numbers"),
    ({"seed": 0.5}, TypeError, "seed must be an int"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG)
def test_wrong_options_are_refused(options: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SparseAdamW([table()], **options)
    optimizer = SparseAdamW([table()])
    with pytest.raises(kind, match=message):
        optimizer.add_param_group({"params": [table()], **options})
    assert len(optimizer.param_groups) == 1


def test_only_dense_float_parameters_are_taken() -> None:
    with pytest.raises(TypeError, match="params must be dense float tensors"):
        SparseAdamW([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
    with pytest.raises(TypeError, match="params must be dense float tensors"):
        SparseAdamW([nn.Parameter(sparse_gradient([0], torch.ones(1, 2), 3))])


def test_a_wrong_gradient_changes_nothing() -> None:
    first, second = table(), table()
    before = first.detach().clone()
    optimizer = SparseAdamW([first, second])
    first.grad = sparse_gradient([0], torch.ones(1, 4), 6)
    second.grad = torch.randn(6, 4).to_sparse()
    with pytest.raises(ValueError, match="2 sparse dimensions of 2"):
        optimizer.step()
    second.grad = None
    optimizer.param_groups[0].update(lr=10.0, weight_decay=0.2)
    with pytest.raises(ValueError, match=r"lr \* weight_decay must be below 1, got 10.0 \* 0.2"):
        optimizer.step()
    assert torch.equal(first, before) and not optimizer.state[first]
