"""`MultiSizeEmbedding` where memory could be misread or a gradient be lost: autocast, strides, norms, broken maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from graphlossy.core import multi_size
from graphlossy.core.multi_size import Buckets
from graphlossy.recsys import MultiSizeEmbedding, MultiSizeEmbeddingBag

TOKENS, WIDTH = 200, 8
SIZES = torch.tensor([0, 1, 2, 4, 8]).repeat(TOKENS // 5)


def make(**options: object) -> MultiSizeEmbedding:
    return MultiSizeEmbedding(TOKENS, WIDTH, **({"sizes": SIZES} | options))


@pytest.mark.parametrize("batch", [3, 70])
@pytest.mark.parametrize("bits", [0, 4])
def test_autocast_changes_neither_scores_nor_rows(bits: int, batch: int) -> None:
    table, queries = make(), torch.randn(batch, WIDTH)
    if bits:
        table.quantize_(bits)
    scores, weight, rows = table.scores(queries), table.weight, table(torch.arange(TOKENS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(table.scores(queries), scores)
        assert torch.equal(table.weight, weight) and torch.equal(table(torch.arange(TOKENS)), rows)


def test_gradients_under_autocast_are_those_without() -> None:
    table, queries = make(), torch.randn(5, WIDTH)

    def gradients() -> list[torch.Tensor]:
        table.zero_grad()
        (table(torch.arange(TOKENS)).square().sum() + table.scores(queries).square().sum()).backward()
        return [param.grad for param in table.parameters()]

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, scores = table(torch.arange(TOKENS)), table.scores(queries)
    table.zero_grad()
    (rows.square().sum() + scores.square().sum()).backward()
    for param, grad in zip(table.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad)


def test_offsets_need_not_be_neighbours() -> None:
    bag = MultiSizeEmbeddingBag(TOKENS, WIDTH, sizes=SIZES, mode="sum", include_last_offset=True)
    ids = torch.randint(0, TOKENS, (10,))
    offsets = torch.tensor([[0, 9], [3, 1], [5, 1], [10, 2]])[:, 0]
    found, expected = bag(ids, offsets), bag(ids, offsets.contiguous())
    assert torch.equal(found, expected)
    found.square().sum().backward()
    grads = [param.grad.clone() for param in bag.parameters()]
    bag.zero_grad()
    expected.square().sum().backward()
    assert all(torch.equal(grad, param.grad) for grad, param in zip(grads, bag.parameters(), strict=True))


def test_operators_take_tensors_with_gaps() -> None:
    table = torch.randn(6, WIDTH)
    buckets = Buckets([table], [], [], [], [-1], [WIDTH], [0], 0, WIDTH)
    row = torch.arange(12).view(6, 2).remainder(6)[:, 0]
    bucket = torch.zeros(6, 3, dtype=torch.uint8)[:, 1]
    assert torch.equal(multi_size.forward(bucket, row, buckets, torch.float32), table[row])
    grad = torch.randn(WIDTH, 6).T
    order, _, values, _ = multi_size.backward(grad, bucket, row, buckets)
    assert torch.equal(values.view(6, WIDTH), grad[order])


def test_a_transposed_table_is_not_taken_for_the_one_it_views() -> None:
    square = torch.randn(WIDTH, WIDTH)
    bucket, row = torch.zeros(WIDTH, dtype=torch.uint8), torch.arange(WIDTH)
    for table in (square, square.T):
        buckets = Buckets([table], [], [], [], [-1], [WIDTH], [0], 0, WIDTH)
        assert torch.equal(multi_size.forward(bucket, row, buckets, torch.float32), table)


def test_two_lookups_with_bounded_norms_in_one_step() -> None:
    table = make(max_norm=0.5)
    first, second = torch.arange(0, 120), torch.arange(80, TOKENS)
    (table(first) * 2).sum().backward(retain_graph=False)
    table.zero_grad()
    with torch.no_grad():  # rows that have to be shortened again
        for rows in table.tables.values():
            rows.weight *= 10
    a = table(first)
    b = table(second)
    (a.square().sum() + b.square().sum()).backward()
    found = [param.grad.clone() for param in table.parameters()]
    table.zero_grad()
    table.max_norm = None  # by now all norms are within the bound
    (table(first).square().sum() + table(second).square().sum()).backward()
    for param, grad in zip(table.parameters(), found, strict=True):
        torch.testing.assert_close(grad, param.grad)


@pytest.mark.parametrize(
    ("name", "text"),
    [("planes", "names bucket 7 of 5"), ("counts", "do not go with"), ("tables", "by the map it has 40 rows of 2")],
)
def test_a_broken_map_is_not_loaded(name: str, text: str) -> None:
    model, fresh = nn.ModuleDict({"user": make()}), nn.ModuleDict({"user": make(sizes=4)})
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if name == "tables":
        state["user.tables.2.weight"] = state["user.tables.2.weight"][:30]
    else:
        state[f"user.{name}"][-1] -= 1
        if name == "planes":
            state["user.planes"][:] = -1
    with pytest.raises(RuntimeError, match=f"user.*{text}"):
        fresh.load_state_dict(state)
    assert fresh["user"].sizes.unique().tolist() == [4] and fresh["user"](torch.arange(TOKENS)).isfinite().all()


def test_a_frozen_table_stays_frozen_when_it_loads_another_form() -> None:
    table = make().requires_grad_(False)
    table.load_state_dict(make(sizes=2).state_dict())
    assert table.sizes.unique().tolist() == [2]
    assert not any(param.requires_grad for param in table.parameters())
    table = make()
    table.load_state_dict(make(sizes=2).state_dict())
    assert all(param.requires_grad for param in table.parameters())


def test_low_bit_rows_are_neither_assigned_nor_reset() -> None:
    table = make(sizes=4, padding_idx=3).quantize_(4)
    codes = table.tables["4"].packed.clone()
    table.reset_parameters()
    assert torch.equal(table.tables["4"].packed, codes)
    with pytest.raises(ValueError, match="assign sets float rows"):
        table.assign(torch.randn(TOKENS, WIDTH))


def test_a_parametrized_table_is_looked_up_as_it_is_seen() -> None:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    table = make(sizes=4)
    expected = 2 * table(torch.arange(TOKENS)).detach()
    parametrize.register_parametrization(table.tables["4"], "weight", Double())
    out = table(torch.arange(TOKENS))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(table.weight, expected)
    out.sum().backward()
    assert table.tables["4"].parametrizations.weight.original.grad.abs().sum() > 0
