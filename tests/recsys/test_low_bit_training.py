"""Tables that are trained as codes: stochastic rounding is right on average, nearest rounding is not."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphlossy.core import quantize
from graphlossy.recsys import MultiSizeEmbedding
from graphlossy.recsys.optim import RowwiseAdagrad, SparseAdamW
from graphlossy.recsys.rows import LowBitRows

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = [
    lambda params, **options: SparseAdamW(params, **options),
    lambda params, **options: SparseAdamW(params, rowwise=True, betas=(0.0, 0.999), **options),
    lambda params, **options: RowwiseAdagrad(params, **options),
]


def rows(bits: int = 4, count: int = 5, highest: int | None = None) -> LowBitRows:
    """Rows from -1 to 1 that are their own codes; those from the third element on are at most ``highest``."""
    levels = torch.arange(2**bits) / 2 ** (bits - 1)
    values = levels[torch.randint((highest or 2**bits - 1) + 1, (count, 8), generator=torch.Generator().manual_seed(1))]
    values[:, 0], values[:, 1] = 0, levels[-1]
    return LowBitRows(values - 1, bits, trainable=True)


def set_gradient(table: LowBitRows, row: list[int], values: Tensor) -> Tensor:
    param = table.trainable
    param.grad = torch.sparse_coo_tensor(torch.tensor([row], dtype=torch.int64), values, param.shape)
    return param


def write_nearest(self: LowBitRows, row: Tensor, values: Tensor, seed: int | None = None) -> None:
    found = quantize(values, self.bits, self.group_size, rounding="nearest", dim=-1)
    self.packed[row] = found.packed
    self.scale[row] = found.scale.view(torch.int16)
    self.offset[row] = found.offset.view(torch.int16)


def mean_step(make: Callable[..., torch.optim.Optimizer], lr: float, draws: int) -> tuple[Tensor, Tensor]:
    """(mean, standard error) of what one step adds to rows 1 and 3, [2, 8]."""
    table = rows()
    start, state = table.dense(), copy.deepcopy(table.state_dict())
    values = torch.zeros(2, 8)
    values[:, 2:6] = 1.0
    found = []
    for seed in range(draws):
        table.load_state_dict(state)
        optimizer = make([set_gradient(table, [1, 3], values)], lr=lr, seed=seed, weight_decay=0.0)
        optimizer.step()
        found.append(table.dense()[[1, 3]] - start[[1, 3]])
        assert torch.equal(table.dense()[[0, 2, 4]], start[[0, 2, 4]])
    found = torch.stack(found).double()
    return found.mean(0), found.std(0) / math.sqrt(draws)


def expected_step(make: Callable[..., torch.optim.Optimizer], lr: float) -> Tensor:
    """What the same optimizer adds to float rows."""
    weight = nn.Parameter(torch.zeros(2, 8))
    values = torch.zeros(2, 8)
    values[:, 2:6] = 1.0
    weight.grad = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), values, weight.shape)
    make([weight], lr=lr, weight_decay=0.0).step()
    return weight.detach().double()


def is_unbiased(make: Callable[..., torch.optim.Optimizer], lr: float, draws: int = 500) -> bool:
    mean, error = mean_step(make, lr, draws)
    expected = expected_step(make, lr)
    assert (expected[:, 2:6] < 0).all()
    # 5 standard errors, and what is too rare to be seen: a fifth of the smaller step, a fiftieth of a code's
    return bool(((mean - expected).abs() <= 5 * error + 10 * 0.135 / draws).all())


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("lr", [0.2, 0.01])
def test_steps_are_right_on_average(make: Callable[..., torch.optim.Optimizer], lr: float) -> None:
    assert is_unbiased(make, lr)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_nearest_rounding_would_be_found(
    make: Callable[..., torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LowBitRows, "write", write_nearest)
    assert not is_unbiased(make, 0.01)


def travelled(steps: int = 300) -> float:
    """Mean way of the inner elements of many rows after steps a hundredth of a code's distance each."""
    table = rows(count=64, highest=9)
    start = table.dense()
    optimizer = RowwiseAdagrad([table.trainable], lr=1e3, initial_accumulator_value=1e12, seed=3)
    values = torch.zeros(64, 8)
    values[:, 2:] = -1.0  # nothing beside the first sum: each step is 1e-3
    for _ in range(steps):
        set_gradient(table, list(range(64)), values)
        optimizer.step()
    return float((table.dense() - start)[:, 2:].mean())


def test_tiny_steps_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(travelled() - 0.3) < 0.045
    monkeypatch.setattr(LowBitRows, "write", write_nearest)
    assert travelled() == 0.0


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_run_repeats_with_its_seed(bits: int, make: Callable[..., torch.optim.Optimizer]) -> None:
    def run(seed: int, interrupted: bool = False) -> Tensor:
        table = rows(bits)
        optimizer = make([table.trainable], lr=0.1, weight_decay=0.5, seed=seed)
        for t in range(6):
            if interrupted and t == 3:
                other = rows(bits)
                other.load_state_dict(table.state_dict())
                again = make([other.trainable], lr=0.3)
                again.load_state_dict(optimizer.state_dict())
                table, optimizer = other, again
            values = torch.randn((2, 8), generator=torch.Generator().manual_seed(t))
            set_gradient(table, [t % 5, 1], values)
            optimizer.step()
        optimizer.catch_up()
        return table.dense()

    assert torch.equal(run(1), run(1))
    assert torch.equal(run(1), run(1, interrupted=True))
    assert not torch.equal(run(1), run(2))


def test_two_tables_have_noise_of_their_own() -> None:
    tables = [rows(2, 40), rows(2, 40)]
    optimizer = RowwiseAdagrad([t.trainable for t in tables], lr=0.05, seed=0)
    for table in tables:
        set_gradient(table, list(range(40)), torch.ones(40, 8))
    optimizer.step()
    assert not torch.equal(tables[0].dense(), tables[1].dense())


def test_decay_waits_for_codes_too() -> None:
    table = rows(8, 200)
    start = table.dense()
    optimizer = SparseAdamW([table.trainable], lr=0.1, weight_decay=0.5, seed=0)
    for _ in range(3):
        set_gradient(table, [0], torch.zeros(1, 8))
        optimizer.step()
    assert torch.equal(table.dense()[1:], start[1:])
    optimizer.catch_up()
    change = table.dense()[1:] - start[1:] * 0.95**3
    assert change.abs().max() < 2 / 255 and abs(float(change.mean())) < 1e-4
    settled = table.dense()
    optimizer.catch_up()
    assert torch.equal(table.dense(), settled)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_projections_and_layers_learn_in_one_optimizer(bits: int) -> None:
    model = MultiSizeEmbedding(40, 8, sizes=[8] * 10 + [4] * 20 + [2] * 10, padding_idx=0)
    model.quantize_(bits, trainable=True)
    layer = nn.Linear(8, 1)
    target = torch.randn(40)
    optimizer = SparseAdamW([*model.parameters(), *layer.parameters()], lr=0.02, weight_decay=1e-3, seed=0)
    losses = []
    for _ in range(300):
        ids = torch.randint(40, (20,))
        optimizer.zero_grad()
        loss = (layer(model(ids)).squeeze(1) - target[ids]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    kept = sum(t.numel() * t.element_size() for t in model.tables.buffers())
    assert kept < (10 * 8 + 20 * 4 + 10 * 2) * 4 + 40 * 4  # codes, and 4 bytes a row


def test_an_empty_gradient_writes_nothing() -> None:
    table = rows()
    before = table.dense()
    optimizer = SparseAdamW([set_gradient(table, [], torch.zeros(0, 8))], weight_decay=0.0)
    optimizer.step()
    assert torch.equal(table.dense(), before)


def test_a_dense_gradient_of_codes_is_refused() -> None:
    table = rows()
    before = table.dense()
    param = table.trainable
    param.grad = torch.ones(5, 8)
    for make in OPTIMIZERS:
        with pytest.raises(ValueError, match="low-bit rows need sparse gradients, got a dense one"):
            make([param]).step()
    assert torch.equal(table.dense(), before)


def test_codes_that_are_gone_are_named() -> None:
    table = rows()
    param = set_gradient(table, [1], torch.ones(1, 8))
    optimizer = SparseAdamW([param])
    optimizer.step()
    del table
    gc.collect()
    with pytest.raises(ValueError, match="the handle of low-bit rows that do not exist any more"):
        optimizer.step()
    with pytest.raises(ValueError, match="the handle of low-bit rows that do not exist any more"):
        optimizer.catch_up()


def test_torch_refuses_the_handle() -> None:
    table = rows()
    optimizer = torch.optim.SGD([set_gradient(table, [1], torch.ones(1, 8))], lr=0.1)
    with pytest.raises(RuntimeError):
        optimizer.step()
