"""`MultiSizeEmbedding` against `torch.nn.Embedding` with the same rows: output, every gradient, scores, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphlossy.recsys import IdError, MultiSizeEmbedding

TOKENS, WIDTH = 600, 12
KINDS = torch.tensor([12, 5, 5, 2, 0, 1])
SIZES = KINDS[torch.randint(0, 6, (TOKENS,), generator=torch.Generator().manual_seed(1))]
FORMS: dict[str, dict[str, Any]] = {
    "nested": {"sizes": SIZES},
    "per_size": {"sizes": SIZES, "projection": "per_size"},
    "shared": {"sizes": SIZES, "shared_rows": 13, "shared_size": 3},
    "shared_wide": {"sizes": SIZES.clamp(max=5), "shared_rows": 13, "shared_size": 12, "projection": "per_size"},
    "narrow": {"sizes": 4},
    "full": {"sizes": None},
    "nothing": {"sizes": 0},
    "all_shared": {"sizes": 0, "shared_rows": 7},
}
forms = pytest.mark.parametrize("form", list(FORMS))
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def make(form: str, **options: Any) -> MultiSizeEmbedding:
    return MultiSizeEmbedding(TOKENS, WIDTH, **(FORMS[form] | options))


def twin(table: MultiSizeEmbedding, **options: Any) -> nn.Embedding:
    """An ordinary table with the same rows, made from the tables and projections one token at a time."""
    rows, seen = [], dict.fromkeys(table.tables, 0)
    for token, size in enumerate(table.sizes.tolist()):
        key = str(size) if size else "shared"
        if key not in table.tables:
            rows.append(torch.zeros(WIDTH, dtype=table.dtype))
            continue
        at = seen[key] if size else int(table._place(torch.tensor([token]))[1])
        seen[key] += 1
        row = table.tables[key].weight[at]
        width = row.shape[0]
        if width < WIDTH:
            p = table.projections["nested"][:width] if "nested" in table.projections else table.projections[str(width)]
            row = row @ p
        rows.append(row)
    return nn.Embedding(TOKENS, WIDTH, _weight=torch.stack(rows).detach(), **options)


def gradients_of(table: MultiSizeEmbedding, dense: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of every parameter from that of the full table [V, d], by hand."""
    found = {name: torch.zeros_like(p) for name, p in table.named_parameters()}
    for size in [s for s in table.sizes.unique().tolist() if s or table.shared_rows]:
        tokens = (table.sizes == size).nonzero().squeeze(1)
        key = str(size) if size else "shared"
        at = table._place(tokens)[1]
        rows, g = table.tables[key].weight.detach(), dense[tokens]
        width = rows.shape[1]
        if width < WIDTH:
            name = "nested" if "nested" in table.projections else str(width)
            found[f"projections.{name}"][:width] += rows[at].T @ g
            g = g @ table.projections[name][:width].detach().T
        found[f"tables.{key}.weight"].index_add_(0, at, g)
    return found


@forms
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_are_those_of_an_ordinary_table(form: str, dtype: torch.dtype) -> None:
    table = make(form, dtype=dtype)
    dense = twin(table)
    eps = torch.finfo(dtype).eps * 16
    for ids in (torch.arange(TOKENS), torch.randint(0, TOKENS, (3, 70)), torch.tensor(5), torch.empty(2, 0).long()):
        found = table(ids)
        assert found.shape == (*ids.shape, WIDTH) and found.dtype == dtype
        torch.testing.assert_close(found, dense(ids), rtol=eps, atol=eps)
        torch.testing.assert_close(table(ids.int()), found, rtol=0, atol=0)
    torch.testing.assert_close(table.weight, dense.weight, rtol=eps, atol=eps)
    torch.testing.assert_close(table.to_dense().weight, dense.weight, rtol=eps, atol=eps)


@forms
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("by_freq", [False, True])
def test_gradients_are_those_of_an_ordinary_table(form: str, sparse: bool, padding: int | None, by_freq: bool) -> None:
    options = {"padding_idx": padding, "scale_grad_by_freq": by_freq}
    table = make(form, dtype=torch.float64, sparse=sparse, **options)
    dense = twin(table, **options)
    ids = torch.randint(0, TOKENS, (5, 200))
    ids[0, :20] = table.padding_idx or 0
    upstream = torch.randn(5, 200, WIDTH, dtype=torch.float64)
    dense(ids).backward(upstream)
    out = table(ids)
    if form == "nothing":
        assert not out.requires_grad and not list(table.parameters())
        return
    out.backward(upstream)
    expected = gradients_of(table, dense.weight.grad)
    for name, p in table.named_parameters():
        assert p.grad.is_sparse == (sparse and name.startswith("tables")), name
        torch.testing.assert_close(p.grad.to_dense(), expected[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("form", [f for f in FORMS if f != "nothing"])
def test_float32_gradients(form: str) -> None:
    """The C++ kernels, which float64 does not use."""
    table, ids = make(form), torch.randint(0, TOKENS, (1500,))
    upstream = torch.randn(1500, WIDTH)
    table(ids).backward(upstream)
    dense = torch.zeros(TOKENS, WIDTH).index_add_(0, ids, upstream)
    expected = gradients_of(table, dense)
    for name, p in table.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", [f for f in FORMS if f != "nothing"])
def test_gradcheck(form: str) -> None:
    options = FORMS[form] | {
        "sizes": SIZES[:15] if isinstance(FORMS[form]["sizes"], torch.Tensor) else FORMS[form]["sizes"]
    }
    table = MultiSizeEmbedding(15, WIDTH, **options, dtype=torch.float64)
    names = [name for name, _ in table.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in table.parameters()]
    ids = torch.tensor([3, 14, 3, 0, 7, 8])

    def run(*given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(table, dict(zip(names, given, strict=True)), (ids,))

    assert torch.autograd.gradcheck(run, values, fast_mode=True)


def test_no_second_derivative_is_said_rather_than_wrong() -> None:
    table = make("nested")
    (first,) = torch.autograd.grad(
        table(torch.arange(50)).square().sum(), [table.projections["nested"]], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@forms
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scores(form: str, dtype: torch.dtype) -> None:
    table = make(form, dtype=dtype)
    weight = table.weight.detach()
    for batch in (0, 1, 70):
        queries = torch.randn(batch, WIDTH).to(dtype)
        found = table.scores(queries)
        assert found.shape == (batch, TOKENS) and found.dtype == dtype
        eps = torch.finfo(dtype).eps * 60
        torch.testing.assert_close(found, queries @ weight.T, rtol=eps, atol=eps)
    with pytest.raises(ValueError, match=f"queries must be \\[batch, {WIDTH}\\]"):
        table.scores(torch.randn(WIDTH))


@pytest.mark.parametrize("form", [f for f in FORMS if f != "nothing"])
@pytest.mark.parametrize("what", ["scores", "weight"])
def test_gradients_of_scores_and_of_weight(form: str, what: str) -> None:
    table = make(form, dtype=torch.float64)
    queries = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(4, TOKENS, dtype=torch.float64)
    found = table.scores(queries) if what == "scores" else queries @ table.weight.T
    found.backward(upstream)
    torch.testing.assert_close(queries.grad, upstream @ table.weight.detach())
    expected = gradients_of(table, upstream.T @ queries.detach())
    for name, p in table.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


@settings(max_examples=20)
@given(
    tokens=st.sampled_from([1, 2, 64, 511, 513, 1025]),
    width=st.sampled_from([1, 7, 16, 32]),
    kinds=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    positions=st.integers(0, 80),
    dtype=st.sampled_from(FLOATS),
    nested=st.booleans(),
    sparse=st.booleans(),
    padded=st.booleans(),
)
def test_any_table(
    tokens: int,
    width: int,
    kinds: list[float],
    positions: int,
    dtype: torch.dtype,
    nested: bool,
    sparse: bool,
    padded: bool,
) -> None:
    sizes = torch.tensor([round(k * width) for k in kinds])[torch.randint(0, len(kinds), (tokens,))]
    table = MultiSizeEmbedding(
        tokens, width, sizes=sizes, dtype=dtype, sparse=sparse, projection="nested" if nested else "per_size",
        padding_idx=0 if padded else None,
    )  # fmt: skip
    assert torch.equal(table.sizes, sizes)
    ids = torch.randint(0, tokens, (positions,))
    dense = nn.Embedding(tokens, width, 0 if padded else None, _weight=table.weight.detach())
    eps = torch.finfo(dtype).eps * 64
    found = table(ids)
    torch.testing.assert_close(found, dense(ids), rtol=eps, atol=eps)
    if not found.requires_grad:
        return
    upstream = torch.randn(positions, width).to(dtype)
    found.backward(upstream)
    dense(ids).backward(upstream)
    whole = torch.autograd.grad(table.weight, list(table.parameters()), dense.weight.grad, allow_unused=True)
    for p, g in zip(table.parameters(), whole, strict=True):
        g = torch.zeros_like(p) if g is None else g
        bound = eps * max(1.0, float(g.abs().max()) if g.numel() else 0.0) * max(1, positions)
        torch.testing.assert_close(p.grad.to_dense(), g, rtol=eps, atol=bound)


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_max_norm(norm_type: float) -> None:
    table = make("nested", max_norm=2.0, norm_type=norm_type)
    dense = twin(table, max_norm=2.0, norm_type=norm_type)
    ids = torch.randint(0, TOKENS, (100,))
    torch.testing.assert_close(table(ids), dense(ids), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table.weight, dense.weight, rtol=1e-4, atol=1e-5)
    assert table(ids).norm(norm_type, dim=1).max() < 2.001


@forms
def test_padding_row_is_zero(form: str) -> None:
    table = make(form, padding_idx=-3)
    assert table.padding_idx == TOKENS - 3 and not table(torch.tensor(TOKENS - 3)).any()


@pytest.mark.parametrize("form", [f for f in FORMS if f != "nothing"])
def test_init_std(form: str) -> None:
    several = isinstance(FORMS[form]["sizes"], torch.Tensor)
    options = FORMS[form] | ({"sizes": KINDS.repeat(2000)} if several else {}) | {"init_std": 0.3}
    table = MultiSizeEmbedding(12_000, 32, **options)
    for size in table.sizes.unique().tolist():
        if size or table.shared_rows > 10:
            assert table.weight[table.sizes == size].std().item() == pytest.approx(0.3, rel=0.3 if size < 3 else 0.1)


def test_rows_of_nan() -> None:
    table = make("nested")
    with torch.no_grad():
        table.tables["5"].weight[7] = torch.nan
    token = int((table.sizes == 5).nonzero()[7])
    assert table.weight.isnan().any(1).nonzero().flatten().tolist() == [token]
    assert table.scores(torch.randn(3, WIDTH)).isnan().any(0).nonzero().flatten().tolist() == [token]
    others = torch.tensor([i for i in range(TOKENS) if i != token])
    table(others).sum().backward()
    assert all(p.grad.isfinite().all() for p in table.parameters())


def test_a_step_between_forward_and_backward_is_refused() -> None:
    table = make("nested")
    out = table(torch.arange(50))
    with torch.no_grad():
        table.tables["5"].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation|was changed between"):
        out.sum().backward()


def test_frozen_parts_get_no_gradient() -> None:
    table = make("nested")
    table.projections.requires_grad_(False)
    table.tables["5"].requires_grad_(False)
    table(torch.arange(TOKENS)).sum().backward()
    got = {name for name, p in table.named_parameters() if p.grad is not None}
    assert got == {"tables.12.weight", "tables.2.weight", "tables.1.weight"}
    assert not table.requires_grad_(False)(torch.arange(5)).requires_grad


@pytest.mark.parametrize("wrong", [-1, TOKENS, 2**31, 2**40])
def test_ids_out_of_range(wrong: int) -> None:
    for form in FORMS:
        table = make(form)
        table.name = "item"
        with pytest.raises(
            IdError, match=f"feature 'item': id {wrong} is not in the table of {TOKENS} tokens"
        ) as error:
            table(torch.tensor([[0, 1], [wrong, 2]]))
        assert isinstance(error.value, IndexError)
    for ids in (torch.tensor([1.0]), torch.tensor([True]), [1, 2]):
        with pytest.raises(TypeError, match="ids must be a tensor of int64 or int32"):
            make("nested")(ids)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"sizes": [1] * 9}, ValueError, "one entry for each of 10 tokens"),
        ({"sizes": 13}, ValueError, "from 0 to embedding_dim = 12"),
        ({"sizes": [1] * 9 + [-1]}, ValueError, r"sizes\[9\] is -1"),
        ({"sizes": torch.ones(10)}, TypeError, "sizes must be integers, got float32"),
        ({"projection": "none"}, ValueError, "projection must be one of"),
        ({"shared_rows": -1}, ValueError, "shared_rows"),
        ({"sizes": 0, "shared_rows": 3, "shared_size": 13}, ValueError, "shared_size"),
        ({"padding_idx": 10}, ValueError, "padding_idx must be from -10 to 9"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        MultiSizeEmbedding(10, WIDTH, **options)


def test_a_table_without_tokens() -> None:
    table = MultiSizeEmbedding(0, 4, sizes=[])
    assert table(torch.empty(0, dtype=torch.int64)).shape == (0, 4) and table.weight.shape == (0, 4)
    assert table.scores(torch.randn(2, 4)).shape == (2, 0)
    with pytest.raises(IdError, match="table of 0 tokens"):
        table(torch.tensor([0]))
