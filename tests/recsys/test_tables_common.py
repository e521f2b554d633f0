"""What every compressed table must do: one row for an id, gradients, exact bytes, state, copies, budgets."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.recsys import BagOf, IdError
from graphlossy.recsys.tables import KINDS, BudgetError, Table

TOKENS, WIDTH = 200, 12
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "hash": [{"rows": 31}, {"rows": 31, "num_hashes": 3, "seed": 5}],
    "qr": [{"buckets": 20}, {"buckets": 7, "mode": "add"}, {"buckets": 33, "mode": "concat"}],
    "tt": [{"ranks": 3}, {"ranks": (2, 5), "shape": (5, 4, 11), "dim_shape": (2, 3, 3)}],
    "robe": [{"size": 97}, {"size": 50, "block": 5, "seed": 3}, {"size": 97, "block": 1}],
    "dhe": [{"num_hashes": 16, "width": 24, "depth": 2}, {"num_hashes": 9, "width": 8, "encoding": "gaussian"}],
    "pruned": [{"kept": 500}, {"kept": 0}],
}
CASES = [pytest.param(kind, options, id=f"{kind}{i}") for kind in KINDS for i, options in enumerate(OPTIONS[kind])]
cases = pytest.mark.parametrize(("kind", "options"), CASES)


def make(kind: str, options: dict[str, Any], **more: Any) -> Table:
    return KINDS[kind](TOKENS, WIDTH, **(options | more))


def saved(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_kinds() -> None:
    assert {kind: table.kind for kind, table in KINDS.items()} == {kind: kind for kind in OPTIONS}


@cases
def test_rows_depend_on_the_id_alone(kind: str, options: dict[str, Any]) -> None:
    table = make(kind, options)
    ids = torch.randint(0, TOKENS, (3, 40))
    out = table(ids)
    assert out.shape == (3, 40, WIDTH) and out.dtype == torch.float32
    torch.testing.assert_close(out, table.weight[ids])
    torch.testing.assert_close(table(ids.int()), out)
    for row, i in zip(out[0, :5], ids[0, :5], strict=True):
        torch.testing.assert_close(table(i), row)
    assert table(ids[:0]).shape == (0, 40, WIDTH)


@cases
def test_forward_is_repeated_bit_for_bit(kind: str, options: dict[str, Any]) -> None:
    table, ids = make(kind, options), torch.randint(0, TOKENS, (64,))
    assert torch.equal(table(ids), table(ids))


@cases
@pytest.mark.parametrize("sparse", [False, True])
def test_gradient_is_that_of_the_weight(kind: str, options: dict[str, Any], sparse: bool) -> None:
    if sparse and not KINDS[kind].gives_sparse:
        with pytest.raises(ValueError, match="sparse"):
            make(kind, options, sparse=True)
        return
    table = make(kind, options, sparse=sparse, dtype=torch.float64)
    ids = torch.randint(0, TOKENS, (90,))
    coefficients = torch.randn(90, WIDTH, dtype=torch.float64)
    params = list(table.parameters())
    found = torch.autograd.grad((table(ids) * coefficients).sum(), params)
    expected = torch.autograd.grad((table.weight[ids] * coefficients).sum(), params)
    for a, b in zip(found, expected, strict=True):
        assert a.is_sparse == sparse
        torch.testing.assert_close(a.to_dense(), b.to_dense())


@cases
def test_gradcheck(kind: str, options: dict[str, Any]) -> None:
    small = {"kept": 40, "dim_shape": (2, 2, 1), "shape": (2, 3, 4), "block": 3, "num_hashes": 4, "width": 5, "size": 9}
    options = {name: small.get(name, value) if value else value for name, value in options.items()}
    table = KINDS[kind](20, 4, **options, dtype=torch.float64)
    ids = torch.tensor([3, 19, 3, 0])
    names = [name for name, _ in table.named_parameters()]

    def run(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(table, dict(zip(names, values, strict=True)), (ids,))

    values = [p.detach().clone().requires_grad_() for p in table.parameters()]
    assert torch.autograd.gradcheck(run, values)


@cases
@pytest.mark.parametrize("padding", [None, 7, -1])
def test_scores(kind: str, options: dict[str, Any], padding: int | None) -> None:
    table = make(kind, options, padding_idx=padding, dtype=torch.float64)
    queries = torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True)
    found, expected = table.scores(queries), queries @ table.weight.T
    torch.testing.assert_close(found, expected)
    inputs, upstream = [queries, *table.parameters()], torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    )
    assert table.scores(queries[:0]).shape == (0, TOKENS)
    with pytest.raises(ValueError, match="queries must be"):
        table.scores(queries[:, 1:])


@cases
def test_padding(kind: str, options: dict[str, Any]) -> None:
    table = make(kind, options, padding_idx=-1)
    assert table.padding_idx == TOKENS - 1
    out = table(torch.tensor([TOKENS - 1, 5]))
    assert not out[0].any() and not table.weight[-1].any()
    grads = torch.autograd.grad(out[0].sum(), list(table.parameters()), allow_unused=True)
    assert all(g is None or not g.any() for g in grads)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_bytes_are_those_of_the_state_and_of_bytes_of(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    table = make(kind, options, dtype=dtype)
    assert table.nbytes == KINDS[kind].bytes_of(TOKENS, WIDTH, dtype=dtype, **options)
    assert table.nbytes == sum(t.numel() * t.element_size() for t in saved(table).values())
    assert table.dtype == dtype and table(torch.arange(4)).dtype == dtype


@cases
def test_state_loads_into_a_fresh_module(kind: str, options: dict[str, Any]) -> None:
    table = make(kind, options)
    other = make(kind, options | ({"seed": 99} if "seed" in options else {}))
    ids = torch.arange(TOKENS)
    if options != {"kept": 0}:
        assert not torch.equal(table(ids), other(ids))
    other.load_state_dict(saved(table))
    assert torch.equal(table(ids), other(ids))


@cases
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_conversion(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    table = make(kind, options)
    before = table.weight.detach()
    half = copy.deepcopy(table).to(dtype)
    found = half(torch.arange(TOKENS))
    assert found.dtype == half.dtype == dtype and table.dtype == torch.float32
    size = torch.finfo(dtype).eps * max(1.0, float(before.abs().max())) * 8
    torch.testing.assert_close(found.float(), before, rtol=0, atol=size)
    found.sum().backward()
    for a, b in zip(table.buffers(), half.buffers(), strict=True):
        assert torch.equal(a, b)


@cases
def test_deepcopy_is_apart(kind: str, options: dict[str, Any]) -> None:
    table = make(kind, options)
    other, ids = copy.deepcopy(table), torch.arange(TOKENS)
    assert torch.equal(other(ids), table(ids))
    before = table(ids).detach()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert torch.equal(table(ids), before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pruned"])
@pytest.mark.parametrize("std", [1.0, 0.01])
def test_init_std(kind: str, std: float) -> None:
    found = [KINDS[kind].for_budget(5000, 32, 200_000, init_std=std).weight.std() for _ in range(3)]
    assert torch.stack(found).mean().item() == pytest.approx(std, rel=0.1)
    mean = KINDS[kind].for_budget(5000, 32, 200_000, init_std=std).weight.mean()
    assert abs(mean) < 0.1 * std


@pytest.mark.parametrize("kind", list(KINDS))
@given(
    tokens=st.integers(1, 5000),
    width=st.sampled_from([2, 3, 8, 16, 33, 64]),
    nbytes=st.integers(1, 200_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_for_budget(kind: str, tokens: int, width: int, nbytes: int, dtype: torch.dtype) -> None:
    table = KINDS[kind]
    try:
        options = table.options_for_budget(tokens, width, nbytes, dtype=dtype)
    except BudgetError as error:
        assert error.minimum > nbytes and str(error.minimum) in str(error)
        options = table.options_for_budget(tokens, width, error.minimum, dtype=dtype)
        assert table.bytes_of(tokens, width, dtype=dtype, **options) == error.minimum
        return
    built = table.for_budget(tokens, width, nbytes, dtype=dtype)
    assert built.nbytes == table.bytes_of(tokens, width, dtype=dtype, **options) <= nbytes
    if kind == "tt":
        assert_no_rank_can_rise(built, nbytes)
        return
    size = {"hash": "rows", "qr": "buckets", "robe": "size", "dhe": "width", "pruned": "kept"}[kind]
    more = options | {size: options[size] + 1} | ({"num_hashes": options["width"] + 1} if kind == "dhe" else {})
    largest = {"hash": tokens, "qr": tokens, "robe": tokens * width, "pruned": tokens * width}.get(kind)
    if options[size] == largest or (kind == "dhe" and options["width"] >= 1024):
        return
    assert table.bytes_of(tokens, width, dtype=dtype, **more) > nbytes


def assert_no_rank_can_rise(table: Any, nbytes: int) -> None:
    most = [n * d for n, d in zip(table.shape[::2], table.dim_shape[::2], strict=True)]
    for at in range(2):
        ranks = [rank + (k == at) for k, rank in enumerate(table.ranks)]
        more = table.bytes_of(table.num_embeddings, table.embedding_dim, table.dtype, ranks=ranks)
        assert more > nbytes or ranks[at] > most[at] or max(table.ranks) >= max(most)


def test_a_tensor_train_uses_up_its_budget() -> None:
    for tokens in (1682, 4718, 36_165):
        for share in (8, 32, 128):
            table = KINDS["tt"].for_budget(tokens, 16, tokens * 64 // share)
            assert 0.9 * (tokens * 64 // share) < table.nbytes <= tokens * 64 // share


@pytest.mark.parametrize("kind", list(KINDS))
def test_budget_error(kind: str) -> None:
    with pytest.raises(BudgetError, match="at least") as error:
        KINDS[kind].for_budget(1000, 16, 8)
    assert isinstance(error.value, ValueError) and error.value.minimum > 8
    assert pickle.loads(pickle.dumps(error.value)).minimum == error.value.minimum


@cases
def test_bags(kind: str, options: dict[str, Any]) -> None:
    table = make(kind, options, padding_idx=3)
    input, offsets = torch.tensor([1, 3, 5, 7, 9]), torch.tensor([0, 2, 2])
    for mode in ("sum", "mean", "max"):
        expected = torch.nn.functional.embedding_bag(input, table.weight.detach(), offsets, mode=mode, padding_idx=3)
        torch.testing.assert_close(BagOf(table, mode)(input, offsets), expected)


@cases
def test_bad_arguments(kind: str, options: dict[str, Any]) -> None:
    table = make(kind, options)
    table.name = "item"
    for wrong in (-1, TOKENS):
        with pytest.raises(IdError, match=f"feature 'item': id {wrong} is not in the table of {TOKENS} tokens"):
            table(torch.tensor([3, wrong]))
    with pytest.raises(TypeError, match="ids must be"):
        table(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="init_std"):
        make(kind, options, init_std=-1.0)
    with pytest.raises(ValueError, match="padding_idx"):
        make(kind, options, padding_idx=TOKENS)
    for name, value in options.items():
        if isinstance(value, int) and name != "seed":
            with pytest.raises(TypeError, match=name):
                make(kind, options, **{name: 2.0})
            with pytest.raises(ValueError, match=name):
                make(kind, options, **{name: -1})
        elif isinstance(value, str):
            with pytest.raises(ValueError, match=name):
                make(kind, options, **{name: "no"})


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_table_without_tokens(kind: str) -> None:
    options = OPTIONS[kind][0] | ({"kept": 0} if kind == "pruned" else {})
    table = KINDS[kind](0, 4, **options)
    assert table.weight.shape == (0, 4) and table.scores(torch.randn(2, 4)).shape == (2, 0)
    assert table(torch.empty(0, dtype=torch.int64)).shape == (0, 4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_training_reduces_a_loss(kind: str) -> None:
    """Fitting the rows of 30 tokens: a step along the gradient must help."""
    options = OPTIONS[kind][0] | {"init_std": 0.5}
    table = KINDS[kind](30, 8, **(options | ({"kept": 150} if kind == "pruned" else {})))
    target, ids = torch.randn(30, 8), torch.arange(30)
    optimizer = torch.optim.Adam(table.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = (table(ids) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
