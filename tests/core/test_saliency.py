"""Saliency scores, their accumulation over batches, and the best entries under a byte budget."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.core import SaliencyAccumulator, prune_to_budget, saliency, saliency_scores

KINDS = ["snip", "magnitude", "gradient", "fisher"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_by_formula(kind, dtype):
    w, g = torch.randn(3, 4).to(dtype), torch.randn(3, 4).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    a, b = w.to(wide), g.to(wide)
    expected = {"snip": (a * b).abs(), "magnitude": a.abs(), "gradient": b.abs(), "fisher": (a * b) ** 2 / 2}[kind]
    kept = w.clone(), g.clone()
    found = saliency_scores(w, g, kind)
    assert found.dtype == wide
    torch.testing.assert_close(found, expected)
    assert torch.equal(w, kept[0]) and torch.equal(g, kept[1])


def test_snip_predicts_what_removing_a_weight_costs():
    """First order: for a loss that is linear in the weights the score is the change itself."""
    w = torch.randn(6, dtype=torch.float64, requires_grad=True)
    c = torch.randn(6, dtype=torch.float64)
    loss = (w * c).sum()
    loss.backward()
    scores = saliency_scores(w, w.grad)
    assert not scores.requires_grad
    for i in range(6):
        without = w.detach().clone()
        without[i] = 0
        assert float(scores[i]) == pytest.approx(abs(float((without * c).sum() - loss.detach())))


@pytest.mark.parametrize("kind", ["snip", "gradient", "fisher"])
def test_sparse_gradients_equal_dense_ones(kind):
    tokens = torch.tensor([1, 3, 1, 1, 4])
    scores = []
    for sparse in (False, True):
        table = torch.nn.Embedding(6, 3, sparse=sparse)
        torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(2))
        (table(tokens) ** 3).sum().backward()
        assert table.weight.grad.is_sparse == sparse
        batches = SaliencyAccumulator(kind)
        batches.update(table.named_parameters())
        batches.update(table.named_parameters())
        scores += [2 * saliency_scores(table.weight, table.weight.grad, kind), batches.scores()["weight"]]
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0])
    assert scores[0][[0, 2, 5]].eq(0).all() and scores[0][[1, 3, 4]].gt(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_accumulations(dtype):
    w = torch.nn.Parameter(torch.randn(5, 4).to(dtype))
    gradients = [torch.randn(5, 4).to(dtype) for _ in range(7)]
    batches = {name: SaliencyAccumulator("snip", name) for name in ("sum_of_abs", "abs_of_sum")}
    for g in gradients:
        w.grad = g
        for each in batches.values():
            each.update([("w", w)])
    a, stack = w.detach().float(), torch.stack(gradients).float()
    torch.testing.assert_close(batches["sum_of_abs"].scores()["w"], (a * stack).abs().sum(0))
    torch.testing.assert_close(batches["abs_of_sum"].scores()["w"], (a * stack.sum(0)).abs())
    assert batches["sum_of_abs"].batches == 7


def test_accumulation_without_gradients_and_errors():
    batches = SaliencyAccumulator("gradient")
    w = torch.nn.Parameter(torch.ones(2))
    batches.update({"w": w})
    assert batches.scores()["w"].tolist() == [0, 0] and batches.batches == 1
    with pytest.raises(ValueError, match=r"w had shape \(2,\) in earlier batches, now \(3,\)"):
        batches.update({"w": torch.nn.Parameter(torch.ones(3))})
    with pytest.raises(ValueError, match="magnitude needs no batches"):
        SaliencyAccumulator("magnitude")
    with pytest.raises(ValueError, match="kind must be one of .*got 'best'"):
        SaliencyAccumulator("best")
    with pytest.raises(ValueError, match="accumulate must be .*got 'mean'"):
        SaliencyAccumulator("snip", "mean")
    with pytest.raises(ValueError, match="fisher adds squares"):
        SaliencyAccumulator("fisher", "abs_of_sum")
    with pytest.raises(TypeError, match="needs the gradient of param; got None"):
        saliency_scores(torch.ones(2))
    with pytest.raises(ValueError, match=r"shape of param, \(2,\); got \(3,\)"):
        saliency_scores(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="kind must be one of"):
        saliency_scores(torch.ones(2), torch.ones(2), "best")


def by_sorting(scores, keep):
    """What prune_to_budget must give: a stable sort of everything joined."""
    joined = torch.cat([torch.empty(0, dtype=torch.float64), *(s.double().flatten() for s in scores.values())])
    kept = torch.zeros(joined.numel(), dtype=torch.bool)
    kept[joined.sort(descending=True, stable=True).indices[:keep]] = True
    parts = kept.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=3), min_size=0, max_size=4),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]), min_size=4),
    share=st.floats(0, 1.2),
    ties=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_prune_equals_a_stable_sort(shapes, dtypes, share, ties, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False)):
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        scores[str(i)] = (value.round() if ties else value * 10.0 ** (9 * i - 9)).to(dtype)
    keep = int(share * sum(s.numel() for s in scores.values()))
    masks = prune_to_budget(scores, 4, 4 * keep + 3)
    expected = by_sorting(scores, keep)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in masks)


def test_prune_over_many_chunks(monkeypatch):
    monkeypatch.setattr(saliency, "_CHUNK", 50)
    scores = {"a": torch.randn(333), "b": torch.randn(7, 90).round(), "c": torch.randn(0)}
    for keep in (1, 100, 500, 962):
        masks, expected = prune_to_budget(scores, 2, 2 * keep), by_sorting(scores, keep)
        assert all(torch.equal(masks[name], expected[name]) for name in scores)
        assert sum(int(m.sum()) for m in masks.values()) == keep


def test_prune_special_values_and_views(device):
    scores = {
        "a": torch.tensor([[0.0, -0.0], [-torch.inf, torch.inf]], device=device).T,
        "b": torch.tensor([1e-45, -1e-45], device=device),
    }
    order = [("a", (1, 1)), ("b", (0,)), ("a", (0, 0)), ("a", (1, 0)), ("b", (1,)), ("a", (0, 1))]
    for keep in range(7):
        masks = prune_to_budget(scores, 1, keep)
        kept = {(n, tuple(at)) for n, m in masks.items() for at in m.nonzero().tolist()}
        assert kept == set(order[:keep])


def test_the_budget_is_exact():
    scores = {"a": torch.rand(1000), "b": torch.rand(10, 10)}
    for each, budget, expected in ((4, "1kB", 250), (6, 1000, 166), (0.265625, 100, 376), (4, 0, 0), (4, "1MiB", 1100)):
        masks = prune_to_budget(scores, each, budget)
        assert sum(int(m.sum()) for m in masks.values()) == expected
    assert prune_to_budget({}, 4, 100) == {}


def test_numbers_of_numpy_and_another_default_device():
    scores = {"w": torch.tensor([3.0, 1.0, 2.0])}
    torch.set_default_device("meta")
    try:
        masks = prune_to_budget(scores, np.float32(4), 8)
    finally:
        torch.set_default_device(None)
    assert masks["w"].tolist() == [True, False, True]


def test_prune_errors():
    scores = {"w": torch.rand(4)}
    for each in (0, -1.0, float("nan"), float("inf"), "4"):
        with pytest.raises(ValueError, match="bytes_per_entry must be a positive number"):
            prune_to_budget(scores, each, 100)
    with pytest.raises(ValueError, match="a size must be a finite number of bytes"):
        prune_to_budget(scores, 4, -1)
    with pytest.raises(ValueError, match="'much' is not a size"):
        prune_to_budget(scores, 4, "much")
    with pytest.raises(ValueError, match=r"scores\['w'\] holds NaN"):
        prune_to_budget({"w": torch.tensor([1.0, torch.nan])}, 4, 100)
    with pytest.raises(TypeError, match=r"scores\['w'\] must be a float tensor, got torch.int64"):
        prune_to_budget({"w": torch.ones(3, dtype=torch.int64)}, 4, 100)
