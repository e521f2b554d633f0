"""Tables that change their sizes: outputs, errors, optimizers and new tokens."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graphlossy.recsys import BagOf, MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.optim import RowwiseAdagrad, SparseAdamW
from graphlossy.recsys.resize import append_tokens, rebalance, refit, resize_rows
from graphlossy.recsys.rows import LowBitRows

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 6

sizes_of = st.lists(st.integers(0, DIM), min_size=1, max_size=14)


def train(table: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, target: Tensor, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (table(ids) - target[ids]).square().sum().backward()
        optimizer.step()


def reloads(table: MultiSizeEmbedding) -> bool:
    """Whether a fresh table of another form can load it."""
    fresh = MultiSizeEmbedding(table.num_embeddings, DIM, sizes=1)
    fresh.load_state_dict(table.state_dict())
    return torch.equal(fresh.weight, table.weight) and fresh.nbytes == table.nbytes


@given(old=sizes_of, data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]))
def test_nested_rows_grow_without_a_change(old: list[int], data: st.DataObject, dtype: torch.dtype) -> None:
    new = [data.draw(st.integers(s, DIM)) for s in old]
    table = MultiSizeEmbedding(len(old), DIM, sizes=old, dtype=dtype)
    before = table.weight.detach()
    report = refit(table, new)
    assert table.sizes.tolist() == new
    after = table.weight.detach()
    exact = torch.tensor([s == t or t < DIM for s, t in zip(old, new, strict=True)])
    assert torch.equal(after[exact], before[exact])
    torch.testing.assert_close(after, before, rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    assert report.changed == sum(s != t for s, t in zip(old, new, strict=True)) == report.rewritten
    assert report.error <= 4 * torch.finfo(dtype).eps and (report.error == 0) == torch.equal(after, before)
    assert report.nbytes_after == table.nbytes


@given(
    old=sizes_of,
    data=st.data(),
    projection=st.sampled_from(["nested", "per_size"]),
    shared=st.sampled_from([0, 3]),
    bits=st.sampled_from([0, 8]),
    trainable=st.booleans(),
)
def test_any_sizes_to_any_others(
    old: list[int], data: st.DataObject, projection: str, shared: int, bits: int, trainable: bool
) -> None:
    """Shape, sizes, state and the reported error; tokens whose width stays keep their rows."""
    new = data.draw(st.lists(st.integers(0, DIM), min_size=len(old), max_size=len(old) + 4))
    table = MultiSizeEmbedding(len(old), DIM, sizes=old, projection=projection, shared_rows=shared)
    if bits:
        table.quantize_(bits, trainable=trainable)
    before = table.weight.detach().double()
    report = refit(table, new)
    assert table.sizes.tolist() == new and table.num_embeddings == len(new)
    after = table.weight.detach().double()[: len(old)]
    assert not after.isnan().any()
    same = torch.tensor([s == t for s, t in zip(old, new, strict=False)])
    if not bits or trainable:
        assert torch.equal(after[same], before[same])
        norm = before[~same].norm()
        error = float((after - before).norm() / norm) if norm else math.inf if (after != before).any() else 0.0
        assert report.error == pytest.approx(error, rel=1e-6, abs=1e-9)
    assert report.largest == pytest.approx(float((after - before).abs().max()), rel=1e-6, abs=1e-9)
    assert report.appended == len(new) - len(old)
    assert reloads(table)
    if not bits and any(new):
        table(torch.arange(len(new))).sum().backward()


def test_shrinking_is_least_squares() -> None:
    table = MultiSizeEmbedding(40, DIM, sizes=[DIM] * 20 + [4] * 20)
    with torch.no_grad():
        table.projections["nested"].add_(torch.randn(4, DIM))  # as training leaves it
    before = table.weight.detach().double()
    report = resize_rows(table, torch.arange(40), 3)
    basis = table.projections["nested"].detach().double()
    assert basis.shape == (3, DIM)
    closest = before @ torch.linalg.pinv(basis) @ basis
    torch.testing.assert_close(table.weight.detach().double(), closest, rtol=1e-4, atol=1e-4)
    assert report.error == pytest.approx(float((closest - before).norm() / before.norm()), rel=1e-4)
    assert 0.1 < report.error < 1


@pytest.mark.parametrize("projection", ["nested", "per_size"])
def test_a_first_projection_is_that_of_the_leading_directions(projection: str) -> None:
    dense = torch.randn(50, 3) @ torch.randn(3, DIM)  # of rank 3
    table = MultiSizeEmbedding.from_pretrained(dense, False, sizes=DIM, projection=projection)
    assert not table.projections
    report = resize_rows(table, torch.arange(10, 50), 3)
    assert report.error < 1e-5
    torch.testing.assert_close(table.weight, dense, rtol=1e-4, atol=1e-5)
    report = resize_rows(table, torch.arange(20, 50), 2)
    assert report.error > 0.05


def test_a_new_width_per_size_holds_narrower_rows() -> None:
    table = MultiSizeEmbedding(30, DIM, sizes=[2] * 30, projection="per_size")
    before = table.weight.detach()
    assert resize_rows(table, torch.arange(10), 4).error < 1e-6
    torch.testing.assert_close(table.weight.detach(), before, rtol=1e-5, atol=1e-6)
    assert set(table.projections) == {"2", "4"}


def test_new_rows_of_the_nested_projection_are_orthogonal() -> None:
    table = MultiSizeEmbedding(10, DIM, sizes=2)
    old = table.projections["nested"].detach().clone()
    resize_rows(table, [0], 5)
    matrix = table.projections["nested"].detach()
    assert torch.equal(matrix[:2], old)
    torch.testing.assert_close(matrix @ matrix.T, DIM * torch.eye(5), rtol=1e-5, atol=1e-4)


OPTIMIZERS = [
    lambda params: torch.optim.SparseAdam(params, lr=0.05),
    lambda params: torch.optim.Adagrad(params, lr=0.05, initial_accumulator_value=0.1),
    lambda params: torch.optim.SGD(params, lr=0.05),
    lambda params: SparseAdamW(params, lr=0.05, weight_decay=0.1),
    lambda params: SparseAdamW(params, lr=0.05, weight_decay=0.1, rowwise=True),
    lambda params: RowwiseAdagrad(params, lr=0.05, weight_decay=0.1),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_training_goes_on_as_if_nothing_had_happened(make) -> None:  # noqa: ANN001
    """Rows of the tokens that keep their width, with the projection held fixed, against a run without a resize."""
    torch.manual_seed(3)
    resized = MultiSizeEmbedding(12, DIM, sizes=[DIM, 4, 4, 2] * 3, sparse=True)
    resized.projections.requires_grad_(False)
    plain = copy.deepcopy(resized)
    target = torch.randn(20, DIM)
    optimizers = [make([p for p in t.parameters() if p.requires_grad]) for t in (resized, plain)]
    for table, optimizer in zip((resized, plain), optimizers, strict=True):
        train(table, optimizer, torch.arange(12), target, 5)
    changed = [1, 4, 7]
    resize_rows(resized, changed, [5, 2, 3], optimizers[0])
    append_tokens(resized, 3, [4, 2, 0], optimizers[0])
    for table, optimizer in zip((resized, plain), optimizers, strict=True):
        train(table, optimizer, torch.arange(12), target, 5)
        if hasattr(optimizer, "catch_up"):
            optimizer.catch_up()
    kept = [i for i in range(12) if i not in changed]
    torch.testing.assert_close(resized.weight[kept], plain.weight[kept], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(resized.weight[changed], plain.weight[changed])
    params = [p for p in resized.parameters() if p.requires_grad]
    assert {id(p) for p in params} == {id(p) for g in optimizers[0].param_groups for p in g["params"]}
    assert set(optimizers[0].state) <= set(params)
    steps = {float(s["step"]) for s in optimizers[0].state.values() if "step" in s}
    assert steps <= {10.0}
    train(resized, optimizers[0], torch.arange(15), target, 150)
    trained = (resized.weight[[0, 1, 2, 12]] - target[[0, 1, 2, 12]]).square().mean()
    assert float(trained.detach()) < 0.6


def test_state_of_dense_adam_follows_the_rows() -> None:
    table = MultiSizeEmbedding(4, DIM, sizes=[2, 4, 2, 4])
    optimizer = torch.optim.Adam([{"params": table.tables.parameters()}, {"params": table.projections.parameters()}])
    train(table, optimizer, torch.arange(4), torch.randn(4, DIM), 3)
    state = {k: v.clone() for k, v in optimizer.state[table.tables["2"].weight].items()}
    kept = optimizer.state[table.projections["nested"]]["exp_avg"].clone()
    resize_rows(table, [2], 5, optimizer)
    new = optimizer.state[table.tables["5"].weight]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(new[name], torch.nn.functional.pad(state[name][1:], (0, 3)))
        assert torch.equal(optimizer.state[table.tables["2"].weight][name], state[name][:1])
        assert state[name][1].any()
    assert float(new["step"]) == 3.0
    moment = optimizer.state[table.projections["nested"]]["exp_avg"]
    assert torch.equal(moment[:4], kept) and not moment[4].any()
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert sorted(held[0]) == sorted(id(p) for p in table.tables.parameters())
    assert held[1] == [id(table.projections["nested"])]


def test_state_between_projected_and_full_rows() -> None:
    table = MultiSizeEmbedding(3, DIM, sizes=[2, DIM, DIM])
    optimizer = torch.optim.Adam(table.parameters())
    train(table, optimizer, torch.arange(3), torch.randn(3, DIM), 3)
    old = {k: v.clone() for k, v in optimizer.state[table.tables["2"].weight].items()}
    basis = table.projections["nested"].detach().clone()
    resize_rows(table, [0], DIM, optimizer)
    state = optimizer.state[table.tables[str(DIM)].weight]
    # the first moment is the one of which the old one is the projection
    torch.testing.assert_close(state["exp_avg"][:1] @ basis.T, old["exp_avg"], rtol=1e-4, atol=1e-6)
    length = float(basis.square().sum(1).mean())
    torch.testing.assert_close(state["exp_avg_sq"][0], (old["exp_avg_sq"].mean() / length).expand(DIM))
    assert not table.projections and len(optimizer.param_groups[0]["params"]) == 1


def test_row_wise_state_follows_the_rows() -> None:
    table = MultiSizeEmbedding(4, DIM, sizes=[1, 2, 1, 2], sparse=True)
    optimizer = RowwiseAdagrad(table.parameters(), initial_accumulator_value=0.25)
    train(table, optimizer, torch.arange(3), torch.randn(4, DIM), 2)
    old = [optimizer.state[table.tables[k].weight]["sum"].clone() for k in ("1", "2")]
    append_tokens(table, 1, 2, optimizer)
    resize_rows(table, [0], 2, optimizer)
    new = optimizer.state[table.tables["2"].weight]["sum"]
    assert new.tolist() == [float(old[0][0]), float(old[1][0]), 0.25, 0.25]


def test_pending_decay_is_applied_before_rows_move() -> None:
    table = MultiSizeEmbedding(4, DIM, sizes=[2, 2, 4, 4], sparse=True)
    table.projections.requires_grad_(False)
    before = table.weight.detach()
    optimizer = SparseAdamW([p for p in table.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    train(table, optimizer, torch.tensor([0, 2]), torch.zeros(4, DIM), 3)
    resize_rows(table, [1], 4, optimizer)
    torch.testing.assert_close(table.weight[[1, 3]].detach(), before[[1, 3]] * 0.95**3)
    train(table, optimizer, torch.tensor([0, 2]), torch.zeros(4, DIM), 1)
    optimizer.catch_up()
    torch.testing.assert_close(table.weight[[1, 3]].detach(), before[[1, 3]] * 0.95**4)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_that_train_go_on(bits: int) -> None:
    table = MultiSizeEmbedding(30, DIM, sizes=[4] * 15 + [2] * 15)
    table.quantize_(bits, trainable=True)
    optimizer = SparseAdamW(table.parameters(), lr=0.02, weight_decay=0.01, seed=0)
    target = torch.randn(34, DIM)
    train(table, optimizer, torch.arange(30), target, 10)
    before = table.weight.detach()
    report = resize_rows(table, [3, 20], [DIM, 4], optimizer)
    untouched = [i for i in range(30) if i not in (3, 20)]
    assert torch.equal(table.weight[untouched].detach(), before[untouched])  # the same codes
    assert report.rewritten == 2 and 0 < report.error < (0.2 if bits == 4 else 0.02)
    append_tokens(table, 4, 4, optimizer)
    assert all(isinstance(rows, LowBitRows) and rows.is_trainable for rows in table.tables.values())
    loss = float((table.weight - target).square().mean().detach())
    train(table, optimizer, torch.arange(34), target, 200)
    assert float((table.weight - target).square().mean().detach()) < 0.7 * loss


def test_codes_of_shared_groups_are_accounted_for() -> None:
    table = MultiSizeEmbedding(30, DIM, sizes=[4] * 15 + [2] * 15).quantize_(4)
    before = table.weight.detach().double()
    report = resize_rows(table, [3], 2)
    change = table.weight.detach().double() - before
    assert report.changed == 1 and report.rewritten == 30
    assert report.error == pytest.approx(float(change.norm() / before.norm()), rel=1e-6)
    assert report.largest == pytest.approx(float(change.abs().max()), rel=1e-6)
    assert all(rows.bits == 4 and not rows.is_trainable for rows in table.tables.values())


def test_tables_that_do_not_change_are_the_same_objects() -> None:
    table = MultiSizeEmbedding(9, DIM, sizes=[DIM] * 3 + [4] * 3 + [2] * 3)
    kept, gone = table.tables["4"].weight, table.tables["2"].weight
    refit(table, [DIM] * 3 + [4] * 3 + [3, 2, 2])
    assert table.tables["4"].weight is kept and table.tables["2"].weight is not gone


@pytest.mark.parametrize("init", ["normal", "zeros", "mean", "tensor"])
def test_appended_tokens_begin_as_asked(init: str) -> None:
    table = MultiSizeEmbedding(400, DIM, sizes=[DIM, 4, 2, 0] * 100, padding_idx=-1)
    before = table.weight.detach()
    wanted = torch.randn(600, DIM) if init == "tensor" else init
    report = append_tokens(table, 600, [DIM, 3] * 300, init=wanted)
    assert report.appended == 600 and report.changed == 0 and report.error == 0
    assert table.num_embeddings == 1000 and table.padding_idx == 399
    weight = table.weight.detach()
    assert torch.equal(weight[:400], before)
    new = weight[400:]
    if init == "normal":
        assert 0.9 < float(new[::2].std()) < 1.1 and 0.9 < float(new[1::2].std()) < 1.1
    elif init == "zeros":
        assert not new.any()
    else:
        full = before.mean(0).expand(600, -1) if init == "mean" else wanted
        basis = table.projections["nested"][:3].detach()
        torch.testing.assert_close(new[::2], full[::2], rtol=1e-5, atol=1e-6)
        closest = full[1::2] @ torch.linalg.pinv(basis) @ basis
        torch.testing.assert_close(new[1::2], closest, rtol=1e-4, atol=1e-5)
    with pytest.raises(IndexError, match="id 1000 is not in the table of 1000 tokens"):
        table(torch.tensor([1000]))


def test_the_default_width_is_the_smallest_in_use() -> None:
    table = MultiSizeEmbedding(4, DIM, sizes=[4, 0, 3, 3])
    append_tokens(table, 2)
    assert table.sizes.tolist() == [4, 0, 3, 3, 3, 3]
    assert append_tokens(table, 0).appended == 0


def test_tokens_join_and_leave_shared_rows() -> None:
    table = MultiSizeEmbedding(40, DIM, sizes=[4] * 20 + [0] * 20, shared_rows=5, shared_size=2)
    before = table.weight.detach()
    assert before[20:].any()
    assert resize_rows(table, [30, 31], [3, DIM]).error < 1e-6  # they take what they shared along
    torch.testing.assert_close(table.weight.detach(), before, rtol=1e-5, atol=1e-6)
    report = resize_rows(table, [0], 0)
    assert report.error > 0 and table.tables["shared"].shape == (5, 2)
    resize_rows(table, torch.arange(40), 2)
    assert "shared" not in table.tables
    resize_rows(table, torch.arange(10), 0)
    assert table.weight[:10].any()  # means of what they were
    assert reloads(table)


def test_bags_of_both_kinds() -> None:
    bag = MultiSizeEmbeddingBag(6, DIM, mode="sum", sizes=[4, 4, 2, 2, 2, 0], padding_idx=5)
    other = BagOf(MultiSizeEmbedding(6, DIM, sizes=2), mode="mean")
    ids = torch.tensor([[0, 2, 5], [3, 4, 1]])
    for module in (bag, other):
        before = module(ids).detach()
        resize_rows(module, [2, 3], 5)
        append_tokens(module, 2, 1)
        assert torch.equal(module(ids), before) and module.num_embeddings == 8
        assert module(torch.tensor([[7]])).shape == (1, DIM)


def test_rebalance_keeps_the_bytes() -> None:
    table = MultiSizeEmbedding(20, DIM, sizes=[DIM] * 2 + [4] * 6 + [1] * 12)
    counts = torch.arange(20) % 10
    nbytes = table.nbytes
    report = rebalance(table, counts)
    assert report.nbytes_after == nbytes == table.nbytes
    assert table.sizes[[9, 19]].tolist() == [DIM, DIM]
    assert table.sizes[counts < 6].unique().tolist() == [1]
    assert rebalance(table, counts).changed == 0


def test_frozen_tables_stay_frozen_and_padding_zero() -> None:
    table = MultiSizeEmbedding(6, DIM, sizes=[4, 4, 2, 2, 2, 2], padding_idx=1).requires_grad_(False)
    resize_rows(table, [0, 1, 2], [5, 2, 1])
    assert not any(p.requires_grad for p in table.parameters())
    assert not table(torch.tensor([1])).any()


def test_an_optimizer_of_something_else_is_refused() -> None:
    table, other = MultiSizeEmbedding(4, DIM, sizes=2), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="optimizer holds no parameter of the embedding"):
        resize_rows(table, [0], 4, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got str"):
        resize_rows(table, [0], 4, "adam")


def test_a_state_that_cannot_be_moved_changes_nothing() -> None:
    table = MultiSizeEmbedding(4, DIM, sizes=2)
    optimizer = torch.optim.Adam(table.parameters())
    train(table, optimizer, torch.arange(4), torch.randn(4, DIM))
    weight = table.tables["2"].weight
    optimizer.state[weight]["factor"] = torch.zeros(1, 2)
    before, params = table.weight.detach(), list(optimizer.param_groups[0]["params"])
    with pytest.raises(ValueError, match=r"state 'factor' of shape \(1, 2\)"):
        resize_rows(table, [0], 4, optimizer)
    assert torch.equal(table.weight, before) and table.tables["2"].weight is weight
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], params, strict=True))
    assert table.sizes.tolist() == [2] * 4 and set(table.tables) == {"2"}


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda t: refit(t, [2, 2]), ValueError, "sizes must have at least 4 entries, got 2"),
        (lambda t: refit(t, [2, 2, 2, 9]), ValueError, r"sizes\[3\] is 9"),
        (lambda t: resize_rows(t, [0, 0], 3), ValueError, "ids must be all different"),
        (lambda t: resize_rows(t, [4], 3), IndexError, "id 4 is not in the table"),
        (lambda t: resize_rows(t, [1], [3, 3]), ValueError, "sizes must have one entry for each of 1"),
        (lambda t: append_tokens(t, -1), ValueError, "count must be an int of at least 0, got -1"),
        (lambda t: append_tokens(t, 1, init="ones"), ValueError, "init must be one of"),
        (lambda t: append_tokens(t, 2, init=torch.zeros(1, DIM)), ValueError, r"init must be float \[2, 6\]"),
        (lambda t: rebalance(t, torch.zeros(3)), ValueError, "scores must be one number for each of 4 tokens"),
        (lambda t: refit(nn.Embedding(4, DIM), [2] * 4), TypeError, "embedding must be a MultiSizeEmbedding"),
    ],
)
def test_wrong_arguments_change_nothing(call, kind: type[Exception], message: str) -> None:  # noqa: ANN001
    table = MultiSizeEmbedding(4, DIM, sizes=[4, 2, 2, 1])
    before = table.weight.detach()
    with pytest.raises(kind, match=message):
        call(table)
    assert torch.equal(table.weight, before)
