"""Neighbour draws and numbering: the kernel against the definition, the laws against their formulas, bad input."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from graphlossy.core import _cpu, neighbors, relabel, sample_neighbors

OPS = torch.ops.graphlossy
needs_kernels = pytest.mark.skipif(_cpu.kernels is None, reason=f"no CPU kernels: {_cpu.load_error}")
Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def graph(degrees: list[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(degrees)], dtype=dtype)


def weights_of(kind: str, edges: int, generator: torch.Generator) -> torch.Tensor | None:
    """Weights of every kind: wide in range, with zeros, equal, subnormal, huge, whole, unusable."""
    if kind == "none":
        return None
    w = torch.rand(edges, generator=generator, dtype=torch.float64)
    w = {
        "spread": (40 * (w - 0.5)).exp2(),
        "zeros": torch.where(w < 0.5, 0.0, w),
        "equal": torch.full_like(w, 0.1),
        "tiny": w * 1e-310,
        "huge": w * 1e308,
        "range": torch.where(w < 0.3, w.new_tensor(1e-300), w.new_tensor(1e300)),
        "unusable": torch.where(w < 0.2, torch.nan, torch.where(w < 0.4, torch.inf, torch.where(w < 0.6, -1.0, w))),
        "float32": w,
        "int64": w * 2**62,
        "int32": w * 7,
    }[kind]
    return w.to(getattr(torch, kind)) if kind in ("float32", "int32", "int64") else w


KINDS = ("none", "spread", "zeros", "equal", "tiny", "huge", "range", "unusable", "float32", "int64", "int32")


def assert_same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@needs_kernels
@given(
    degrees=st.lists(st.one_of(st.integers(0, 12), st.sampled_from([100, 1000])), min_size=1, max_size=30),
    k=st.sampled_from([-1, 0, 1, 2, 3, 5, 10, 49, 60]),
    replace=st.booleans(),
    kind=st.sampled_from(KINDS),
    wide=st.booleans(),
    with_stream=st.booleans(),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_the_kernel_is_the_definition(degrees, k, replace, kind, wide, with_stream, seed) -> None:
    generator = torch.Generator().manual_seed(seed % 1000)
    indptr = graph(degrees, torch.int64 if wide else torch.int32)
    weight = weights_of(kind, int(indptr[-1]), generator)
    seeds = torch.randint(len(degrees), (50,), generator=generator)
    stream = torch.randint(-(2**60), 2**60, (50,), generator=generator) if with_stream else None
    arguments = (indptr, seeds, weight, stream, k, replace, seed)
    assert_same(neighbors.cpu_sample(_cpu.kernels, *arguments), neighbors._reference_sample(*arguments))


def test_the_largest_k_takes_every_edge_for_certain() -> None:
    weight = torch.tensor([1e30, 1.0, 3.0, 1e-30])
    for k in (4, 2**31 - 1):
        position, counts, expected = sample_neighbors(graph([4]), torch.tensor([0]), k, weight=weight, seed=0)
        assert position.tolist() == [0, 1, 2, 3] and counts.tolist() == [4] and expected.tolist() == [1.0] * 4


@needs_kernels
@pytest.mark.parametrize("kind", ["none", "float32"])
@pytest.mark.parametrize("replace", [False, True])
def test_the_number_of_threads_changes_nothing(kind: str, replace: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    indptr = graph(torch.randint(0, 60, (3000,), generator=generator).tolist())
    weight = weights_of(kind, int(indptr[-1]), generator)
    seeds = torch.arange(3000)
    expected = neighbors._reference_sample(indptr, seeds, weight, None, 7, replace, 5)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same(neighbors.cpu_sample(_cpu.kernels, indptr, seeds, weight, None, 7, replace, 5), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("replace", [False, True])
def test_a_draw_depends_on_its_node_and_stream_alone(replace: bool) -> None:
    indptr = graph([30] * 40)
    seeds = torch.arange(40)
    whole, _, _ = sample_neighbors(indptr, seeds, 5, replace=replace, seed=3)
    order = torch.randperm(40)
    mixed, _, _ = sample_neighbors(indptr, order, 5, replace=replace, seed=3)
    assert torch.equal(mixed.view(40, 5), whole.view(40, 5)[order])
    alone, _, _ = sample_neighbors(indptr, torch.tensor([17], dtype=torch.int32), 5, replace=replace, seed=3)
    assert torch.equal(alone, whole.view(40, 5)[17])
    stream = torch.tensor([1, 2, 1])
    again, _, _ = sample_neighbors(indptr, torch.tensor([4, 4, 4]), 5, replace=replace, stream=stream, seed=3)
    first, second, third = again.view(3, 5)
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert not torch.equal(whole, sample_neighbors(indptr, seeds, 5, replace=replace, seed=4)[0])


def runs(
    degree: int, k: int, replace: bool, weight: torch.Tensor | None, count: int, shift: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` independent draws from one neighbourhood: [count, k] sorted positions and [count, k] expected."""
    indptr = graph([degree])
    stream = torch.arange(count) + shift
    seeds = torch.zeros(count, dtype=torch.int64)
    position, counts, expected = sample_neighbors(
        indptr, seeds, k, replace=replace, weight=weight, stream=stream, seed=1
    )
    assert bool((counts == k).all())
    order = position.view(count, k).sort(dim=1)
    return order.values, expected.view(count, k).gather(1, order.indices) if weight is not None else expected


def chi_square(found: Counter, law: dict[object, float], count: int) -> float:
    """The p-value of the counts under the law."""
    assert set(found) <= set(law)
    return float(stats.chisquare([found[key] for key in law], [p * count for p in law.values()]).pvalue)


def next_free(degree: int, k: int) -> set[int]:
    chosen: set[int] = set()
    for _ in range(k):
        drawn = random.randrange(degree)
        while drawn in chosen:
            drawn = (drawn + 1) % degree
        chosen.add(drawn)
    return chosen


@pytest.mark.parametrize(("degree", "k"), [(6, 2), (7, 3), (5, 4), (8, 1)])
def test_every_subset_is_equally_likely(degree: int, k: int) -> None:
    rows, _ = runs(degree, k, False, None, 30_000)
    subsets = list(itertools.combinations(range(degree), k))
    found = Counter(map(tuple, rows.tolist()))
    law = {s: 1 / len(subsets) for s in subsets}
    assert chi_square(found, law, 30_000) > 1e-4
    if 1 < k < degree - 1:  # the test rejects the usual mistake: where a draw repeats, the next edge that is free
        wrong = Counter(tuple(sorted(next_free(degree, k))) for _ in range(30_000))
        assert chi_square(wrong, law, 30_000) < 1e-4


def test_draws_with_replacement_are_uniform_and_independent() -> None:
    rows, _ = runs(4, 2, True, None, 30_000)
    pairs = list(itertools.combinations_with_replacement(range(4), 2))
    law = {p: (1 if p[0] == p[1] else 2) / 16 for p in pairs}
    found = Counter(map(tuple, rows.tolist()))
    assert chi_square(found, law, 30_000) > 1e-4
    uniform_pairs = {p: 1 / len(pairs) for p in pairs}
    assert chi_square(found, uniform_pairs, 30_000) < 1e-10


WEIGHTS = torch.tensor([5.0, 1.0, 0.5, 0.0, 1.5, 2.0, 0.25])


def test_weighted_draws_with_replacement() -> None:
    rows, expected = runs(7, 3, True, WEIGHTS, 40_000)
    share = (WEIGHTS / WEIGHTS.sum()).tolist()
    law = {i: p for i, p in enumerate(share) if p > 0}
    assert chi_square(Counter(rows.view(-1).tolist()), law, 120_000) > 1e-4
    torch.testing.assert_close(expected, 3 * WEIGHTS.double()[rows] / WEIGHTS.sum(), rtol=1e-8, atol=0)
    flat = {i: 1 / 6 for i in law}
    assert chi_square(Counter(rows.view(-1).tolist()), flat, 120_000) < 1e-10


def inclusion(weight: torch.Tensor, k: int) -> torch.Tensor:
    """min(1, k' w / W'), by the textbook's iteration."""
    w, p = weight.double(), torch.zeros(weight.shape, dtype=torch.float64)
    certain = torch.zeros(weight.shape, dtype=torch.bool)
    while True:
        p = torch.where(certain, 1.0, (k - certain.sum()) * w / w[~certain].sum())
        if not bool((p > 1).any()):
            return p
        certain |= p > 1


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_weighted_subsets_have_exact_inclusion_probabilities(k: int) -> None:
    count = 40_000
    rows, expected = runs(7, k, False, WEIGHTS, count)
    assert bool((rows[:, 1:] > rows[:, :-1]).all())
    p = inclusion(WEIGHTS, k)
    torch.testing.assert_close(expected, p[rows], rtol=1e-8, atol=0)
    times = torch.bincount(rows.view(-1), minlength=7).double()
    z = (times - count * p) / (count * p * (1 - p)).sqrt().clamp(min=1e-9)
    assert float(z[p < 1].abs().max() if bool((p < 1).any()) else 0) < 4.5
    assert bool((times[p == 1] == count).all()) and int(times[3]) == 0
    naive = (k * WEIGHTS / WEIGHTS.sum()).clamp(max=1).double()  # certain edges do not free their share
    if bool(((naive - p).abs() > 1e-6).any()):
        z = (times - count * naive) / (count * naive * (1 - naive)).sqrt().clamp(min=1e-9)
        assert float(z[(naive < 1) & (naive > 0)].abs().max()) > 10


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / values.numel() ** 0.5)


@pytest.mark.parametrize("replace", [False, True])
def test_sums_over_the_sample_are_unbiased(replace: bool) -> None:
    x = torch.tensor([3.0, -1.0, 8.0, 0.0, 2.0, 2.0, 40.0], dtype=torch.float64)
    rows, expected = runs(7, 3, replace, WEIGHTS, 40_000)
    truth = float(x[WEIGHTS > 0].sum())
    mean, error = mean_and_error((x[rows] / expected).sum(dim=1))
    assert abs(mean - truth) < 4.5 * error
    biased, error = mean_and_error((x[rows] * 7 / 3).sum(dim=1))  # as if the draws were uniform
    assert abs(biased - truth) > 10 * error


def test_edge_cases() -> None:
    indptr = graph([0, 3, 0, 1])
    position, counts, expected = sample_neighbors(indptr, torch.tensor([0, 2]), 3, seed=0)
    assert position.tolist() == [] and counts.tolist() == [0, 0] and expected.tolist() == []
    assert sample_neighbors(indptr, torch.empty(0, dtype=torch.int64), 3, seed=0)[0].tolist() == []
    position, counts, _ = sample_neighbors(indptr, torch.tensor([1, 3, 1]), -1, seed=0)
    assert position.tolist() == [0, 1, 2, 3, 0, 1, 2] and counts.tolist() == [3, 1, 3]
    nothing = torch.zeros(4)
    for replace in (False, True):
        drawn = sample_neighbors(indptr, torch.tensor([1, 3]), 2, replace=replace, weight=nothing, seed=0)
        assert drawn[1].tolist() == [0, 0]
    torch.manual_seed(1)
    one = sample_neighbors(graph([1000]), torch.tensor([0]), 4)[0]
    assert not torch.equal(one, sample_neighbors(graph([1000]), torch.tensor([0]), 4)[0])
    torch.manual_seed(1)
    assert torch.equal(one, sample_neighbors(graph([1000]), torch.tensor([0]), 4)[0])


BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"k": -2}, ValueError, "k must be -1 .* got -2"),
    ({"seeds": torch.tensor([0, 9])}, ValueError, "node ids from 0 to 1 .* seed 9"),
    ({"seeds": torch.tensor([-1])}, ValueError, "seed -1"),
    ({"seeds": torch.tensor([0.0])}, TypeError, "seeds must be int32, int64, got float32"),
    ({"seeds": torch.tensor([[0]])}, ValueError, r"one dimension, got shape \(1, 1\)"),
    ({"indptr": torch.tensor([0, 5, 2])}, ValueError, "rising indptr"),
    ({"indptr": torch.tensor([], dtype=torch.int64)}, ValueError, "at least one entry"),
    ({"indptr": torch.tensor([0, 2**29, 2**29])}, ValueError, "fewer than 2\\*\\*29 edges"),
    ({"weight": torch.ones(1)}, ValueError, "not sound"),
    ({"weight": torch.ones(4, dtype=torch.float16)}, TypeError, "weight must be float32, .* got float16"),
    ({"k": 2**31}, ValueError, r"from 0 to 2\*\*31 - 1, got 2147483648"),  # products with weights would overflow
    ({"stream": torch.tensor([1])}, ValueError, "one entry for each of 2 seeds, got 1"),
    ({"seed": 1.5}, TypeError, "seed must be an int or None"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"indptr": torch.tensor([0, 2, 4]), "seeds": torch.tensor([0, 1]), "k": 2, "seed": 0} | change
    with pytest.raises(error, match=message):
        sample_neighbors(**arguments)
    if "seed" not in change:
        names = ("indptr", "seeds", "weight", "stream", "k")
        with pytest.raises(error, match=message):
            neighbors._reference_sample(*(arguments.get(name) for name in names), False, 0)


@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.integers(0, 30), max_size=60))
def test_numbering(known_ids: list[int], found_ids: list[int]) -> None:
    known, found = (torch.tensor(ids, dtype=torch.int64) for ids in (known_ids, found_ids))
    number: dict[int, int] = {}
    for i, node in enumerate(known_ids):
        number.setdefault(node, i)
    fresh: list[int] = []
    for node in found_ids:
        if node not in number:
            number[node] = len(known_ids) + len(fresh)
            fresh.append(node)
    ways: list[Callable[[], tuple[torch.Tensor, ...]]] = [lambda: neighbors._reference_relabel(known, found, 31)]
    if _cpu.kernels is not None:
        ways += [lambda a=array: neighbors.cpu_relabel(_cpu.kernels, known, found, 31, a) for array in (True, False)]
    for way in ways:
        assert [t.tolist() for t in way()] == [fresh, [number[node] for node in found_ids]]


def test_bad_numbering_leaves_nothing_behind() -> None:
    known, found = torch.tensor([3, 1]), torch.tensor([2, 5, 7])
    ways: list[Callable[..., tuple[torch.Tensor, ...]]] = [neighbors._reference_relabel]
    if _cpu.kernels is not None:
        ways += [lambda *a, how=how: neighbors.cpu_relabel(_cpu.kernels, *a, how) for how in (True, False)]
    for way in ways:
        for bad in ((known, found, 6), (found, known, 6), (known, -found, 10), (-known, found, 10)):
            with pytest.raises(ValueError, match="ids must be at least 0"):
                way(*bad)
        with pytest.raises(TypeError, match="found must be int64"):
            way(known, found.int(), 10)
        assert [t.tolist() for t in way(known, found, 8)] == [[2, 5, 7], [2, 3, 4]]
    assert relabel(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))[0].shape == (0,)


def test_opcheck() -> None:
    indptr, seeds = graph([3, 0, 9]), torch.tensor([2, 0, 1, 2])
    for weight, stream, k, replace in itertools.product(
        (None, torch.rand(12)), (None, torch.arange(4)), (-1, 0, 2), (False, True)
    ):
        torch.library.opcheck(OPS.sample_neighbors.default, (indptr, seeds, weight, stream, k, replace, 7))
    torch.library.opcheck(OPS.relabel.default, (seeds, torch.tensor([5, 2, 5]), 9))


def test_both_have_kernels_and_a_definition() -> None:
    for name in neighbors._OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"graphlossy::{name}", "CompositeExplicitAutograd")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"graphlossy::{name}", "CPU") or _cpu.kernels is None


def test_full_graph_compilation() -> None:
    def two_hops(indptr: torch.Tensor, indices: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        position, counts, _ = OPS.sample_neighbors(indptr, seeds, None, None, 2, False, 3)
        fresh, local = OPS.relabel(seeds, indices[position], 0)
        return torch.cat([counts, fresh, local])

    indptr, seeds = graph([3, 4, 5, 2]), torch.tensor([0, 2])
    indices = torch.arange(14) % 4
    compiled = torch.compile(two_hops, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert torch.equal(compiled(indptr, indices, seeds), two_hops(indptr, indices, seeds))
