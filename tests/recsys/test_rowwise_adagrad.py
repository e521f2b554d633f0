"""RowwiseAdagrad against its definition and against torch's Adagrad."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graphlossy.recsys import MultiSizeEmbedding
from graphlossy.recsys.optim import RowwiseAdagrad

pytestmark = pytest.mark.usefixtures("one_thread")


def set_gradient(param: Tensor, row: list[int], values: Tensor) -> None:
    index = torch.tensor([row], dtype=torch.int64)
    param.grad = torch.sparse_coo_tensor(index, values.to(param.dtype), param.shape)


def by_definition(w: Tensor, batches: list[tuple[list[int], Tensor]], decay: float, start: float) -> Tensor:
    w, s = w.double().clone(), torch.full(w.shape[:1], start, dtype=torch.float64)
    for row, values in batches:
        w *= 1 - 0.1 * decay
        for r in set(row):
            g = sum(values[i].double() for i, other in enumerate(row) if other == r)
            s[r] += g.square().mean()
            w[r] -= 0.1 * g / (s[r].sqrt() + 1e-8)
    return w


@given(
    rows=st.integers(1, 6),
    width=st.integers(1, 9),
    decay=st.sampled_from([0.0, 0.3]),
    start=st.sampled_from([0.0, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    data=st.data(),
)
def test_any_batches_follow_the_definition(
    rows: int, width: int, decay: float, start: float, dtype: torch.dtype, data: st.DataObject
) -> None:
    param = nn.Parameter(torch.randn(rows, width).to(dtype))
    optimizer = RowwiseAdagrad([param], 0.1, weight_decay=decay, initial_accumulator_value=start)
    before, batches = param.detach().clone(), []
    for _ in range(4):
        row = data.draw(st.lists(st.integers(0, rows - 1), max_size=5))
        batches.append((row, torch.randn(len(row), width).to(dtype)))
        set_gradient(param, *batches[-1])
        optimizer.step()
    optimizer.catch_up()
    eps = max(1e-6, 8 * torch.finfo(dtype).eps)
    torch.testing.assert_close(param.double(), by_definition(before, batches, decay, start), rtol=eps, atol=2 * eps)


def test_repeated_rows_are_added_up_before_they_are_squared() -> None:
    param = nn.Parameter(torch.zeros(3, 2))
    optimizer = RowwiseAdagrad([param], lr=0.1)
    set_gradient(param, [1, 1, 2], torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 4.0]]))
    optimizer.step()
    assert optimizer.state[param]["sum"].tolist() == [0.0, 9.0, 12.5]
    torch.testing.assert_close(param[1], torch.tensor([-0.1, -0.1]))
    torch.testing.assert_close(param[2], torch.tensor([-0.3, -0.4]) / 12.5**0.5)


def test_rows_of_one_element_are_adagrad() -> None:
    ours, theirs = (nn.Embedding(9, 1, sparse=True) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    pair = (
        (ours, RowwiseAdagrad(ours.parameters(), 0.2, eps=1e-10, initial_accumulator_value=0.1)),
        (theirs, torch.optim.Adagrad(theirs.parameters(), 0.2, eps=1e-10, initial_accumulator_value=0.1)),
    )
    for seed in range(6):
        ids = torch.randint(9, (12,), generator=torch.Generator().manual_seed(seed))
        for model, optimizer in pair:
            optimizer.zero_grad()
            (model(ids).squeeze(1) * ids.cos()).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (3, 2, 2)])
def test_dense_parameters_have_a_number_for_each_row(shape: tuple[int, ...]) -> None:
    param = nn.Parameter(torch.randn(shape))
    expected, total = param.detach().double().clone(), torch.zeros(shape[:1]).double()
    optimizer = RowwiseAdagrad([param], lr=0.3, weight_decay=0.1)
    for _ in range(3):
        param.grad = torch.randn(shape)
        g = param.grad.double()
        total += g.square() if len(shape) < 2 else g.square().flatten(1).mean(1)
        scale = total.sqrt().view(*shape[:1], *(1,) * (len(shape) - 1)) if shape else total.sqrt()
        expected = expected * (1 - 0.03) - 0.3 * g / (scale + 1e-8)
        optimizer.step()
    assert optimizer.state[param]["sum"].shape == shape[:1]
    torch.testing.assert_close(param.double(), expected, rtol=1e-5, atol=1e-6)


def test_sparse_and_dense_gradients_step_alike() -> None:
    sparse, dense = nn.Embedding(6, 4, sparse=True), nn.Embedding(6, 4)
    dense.load_state_dict(sparse.state_dict())
    pair = [(m, RowwiseAdagrad(m.parameters(), 0.1, weight_decay=0.4)) for m in (sparse, dense)]
    for shift in range(4):
        ids = torch.tensor([0, 1, 1, 3, 5]) - shift % 2
        for model, optimizer in pair:
            optimizer.zero_grad()
            model(ids.clamp(min=0)).square().sum().backward()
            optimizer.step()
        pair[0][1].catch_up()
        torch.testing.assert_close(sparse.weight, dense.weight, rtol=1e-6, atol=1e-7)


def test_state_is_four_bytes_a_row() -> None:
    model = MultiSizeEmbedding(50, 16, sizes=[16] * 10 + [4] * 40, sparse=True)
    optimizer = RowwiseAdagrad(model.parameters())
    model(torch.arange(50)).sum().backward()
    optimizer.step()
    kept = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert sum(v.numel() * v.element_size() for v in kept) == 4 * (50 + 4)  # and the 4 rows of the projection


def test_state_dict_goes_on_exactly() -> None:
    params = [nn.Parameter(torch.randn(5, 3))]
    params.append(nn.Parameter(params[0].detach().clone()))
    optimizers = [RowwiseAdagrad([p], 0.1, weight_decay=0.2, initial_accumulator_value=0.3) for p in params]
    values = torch.randn(3, 2, 3)
    set_gradient(params[0], [1, 4], values[0])
    optimizers[0].step()
    params[1].data.copy_(params[0])
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for param, optimizer in zip(params, optimizers, strict=True):
        for i, row in enumerate(([0, 1], [2, 2])):
            set_gradient(param, row, values[1 + i])
            optimizer.step()
        optimizer.catch_up()
    assert torch.equal(*params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr must be at least 0"),
        ({"eps": -1.0}, "eps must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"initial_accumulator_value": -1.0}, "initial_accumulator_value must be at least 0"),
        ({"lr": math.inf}, "lr must be at least 0 and finite"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowwiseAdagrad([nn.Parameter(torch.zeros(2, 2))], **options)


def test_maximize_goes_up() -> None:
    param = nn.Parameter(torch.zeros(2, 2))
    optimizer = RowwiseAdagrad([param], 0.5, maximize=True)
    set_gradient(param, [1], torch.ones(1, 2))
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([[0.0, 0.0], [0.5, 0.5]]))
