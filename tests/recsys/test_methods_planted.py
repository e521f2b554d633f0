"""What each method is for: planted tables in which the answer is known, and wrong variants that must not pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphlossy.core import SaliencyAccumulator
from graphlossy.recsys.methods import PEP, PME, Problem, search

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS, WIDTH = 300, 8


class Linear(nn.Module):
    """The loss of a batch is the sum of all entries looked up, times a strength of the token: gradients are planted."""

    def __init__(self, tokens: int = TOKENS, width: int = WIDTH, bag: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.EmbeddingBag(tokens, width, mode="sum") if bag else nn.Embedding(tokens, width)
        self.strength = torch.ones(tokens)

    def forward(self, ids: Tensor) -> Tensor:
        if isinstance(self.table, nn.EmbeddingBag):
            return (self.table(ids.unsqueeze(1)) * self.strength[ids].unsqueeze(1)).sum()
        return (self.table(ids) * self.strength[ids].unsqueeze(1)).sum()


def loss_fn(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids)


def pme_sizes(model: nn.Module, batches: list[Tensor], budget: int = 2000, **options: object) -> Tensor:
    return search(model, batches, loss_fn, "pme", budget, **options).tables[0].sizes


def fair(sizes_of: Callable[[nn.Module, list[Tensor]], Tensor]) -> bool:
    """Whether tokens of equal gradients over all batches get about equal sizes, whichever batch they are in."""
    model, order = Linear(), torch.randperm(TOKENS)
    sizes = sizes_of(model, [part for part in order.chunk(6)]).float()
    means = torch.stack([sizes[part].mean() for part in order.chunk(6)])
    return bool(means.min() > 0.5 * means.max())


def test_saliency_is_accumulated_over_all_batches() -> None:
    assert fair(pme_sizes)
    assert not fair(lambda model, batches: pme_sizes(model, batches[:1]))  # one batch alone
    assert not fair(lambda model, batches: pme_sizes(model, batches, max_batches=1))


@pytest.mark.parametrize("accumulate", ["sum_of_abs", "abs_of_sum"])
@pytest.mark.parametrize("bag", [False, True])
def test_tokens_of_planted_gradients_get_the_wide_rows(accumulate: str, bag: bool) -> None:
    model = Linear(bag=bag)
    model.strength[100:120] = 30.0
    sizes = pme_sizes(model, list(torch.arange(TOKENS).chunk(3)), 1500, accumulate=accumulate)
    assert float(sizes[100:120].float().mean()) > 4 * float(sizes.float().mean())
    assert int(sizes[100:120].min()) >= 4


def test_the_two_accumulations_differ_where_batches_pull_both_ways() -> None:
    class Swings(Linear):
        def forward(self, batch: tuple[Tensor, float]) -> Tensor:
            ids, sign = batch
            return (self.table(ids).sum(1) * torch.where(ids < 150, sign, 1.0)).sum()

    batches = [(torch.arange(TOKENS), sign) for sign in (1.0, -1.0)]
    both = pme_sizes(Swings(), batches, accumulate="sum_of_abs").float()
    once = pme_sizes(Swings(), batches, accumulate="abs_of_sum").float()
    assert both[:150].mean() > 0.7 * both[150:].mean()
    assert once[:150].sum() == 0 < once[150:].sum()


@pytest.mark.parametrize("accumulate", ["sum_of_abs", "abs_of_sum"])
def test_sizes_are_the_entries_above_one_threshold(accumulate: str) -> None:
    """Against a direct computation with dense gradients, sorted as a whole."""
    model = Linear(2000)
    batches = [torch.randint(0, 2000, (500,)) for _ in range(4)]
    sizes = pme_sizes(model, batches, 20_000, rounding="exact", accumulate=accumulate).long()
    saliency = SaliencyAccumulator("snip", accumulate)
    for ids in batches:
        model.zero_grad()
        loss_fn(model, ids).backward()
        saliency.update({"table": model.table.weight})
    scores = saliency.scores()["table"]
    threshold = scores.flatten().topk(int(sizes.sum())).values[-1]
    expected = (scores >= threshold).sum(1)
    assert (sizes - expected).abs().float().mean() < 0.3
    assert torch.corrcoef(torch.stack([sizes.float(), expected.float()]))[0, 1] > 0.97
    by_norm = (scores.norm(dim=1) > scores.norm(dim=1).median()).float()
    assert torch.corrcoef(torch.stack([sizes.float(), by_norm]))[0, 1] < 0.97  # another rule is another result


def test_sparse_and_dense_gradients_give_equal_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [torch.randint(0, TOKENS, (200,)) for _ in range(3)]
    sparse = pme_sizes(Linear(), batches)
    monkeypatch.setattr("graphlossy.recsys.methods._batches._can_be_sparse", lambda module: False)
    assert torch.equal(sparse, pme_sizes(Linear(), batches))


def test_gradients_of_the_search_take_the_memory_of_a_batch() -> None:
    model = Linear(20_000)
    dense = 20_000 * WIDTH * 4
    plan = search(model, [torch.arange(50)] * 2, loss_fn, "pme", "1/4")
    assert 2 * dense < plan.peak_bytes <= 3 * dense
    model.table.scale_grad_by_freq = True
    assert search(model, [torch.arange(50)] * 2, loss_fn, "pme", "1/4").peak_bytes == 3 * dense


def test_least_sizes_and_shared_rows() -> None:
    batches = [torch.arange(50)]
    assert int(pme_sizes(Linear(), batches).min()) == 0
    sizes = pme_sizes(Linear(), batches, min_size=1)
    assert int(sizes.min()) == 1 and float(sizes[:50].float().mean()) > 3
    plan = search(Linear(), batches, loss_fn, "pme", 1200, shared_rows=10, shared_size=2)
    table = plan.tables[0]
    assert (table.shared_rows, table.shared_size) == (10, 2) and plan.nbytes <= 1200
    built = table.build(nn.Embedding(TOKENS, WIDTH))
    assert built.nbytes == plan.nbytes and bool(built(torch.tensor([299])).any())


def test_a_table_without_any_gradient_is_named() -> None:
    model = Linear()
    model.unused = nn.Embedding(40, 4)
    for method in ("pme", "sseds"):
        with pytest.raises(ValueError, match="table 'unused' got no gradient in 1 batches: is it used by loss_fn"):
            search(model, [torch.arange(TOKENS)], loss_fn, method, 2000)
    with pytest.raises(ValueError, match="table 'unused' was not looked up in 1 batches"):
        search(model, [torch.arange(TOKENS)], loss_fn, "frequency", 2000)


def test_counts_are_those_of_the_ids() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.one = nn.EmbeddingBag(10, 4, mode="sum", padding_idx=9), nn.Embedding(6, 4, padding_idx=0)
            self.alias = self.one

        def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            ids, offsets, one = batch
            return self.bag(input=ids, offsets=offsets).sum() + self.one(one).sum() + self.alias(one[:1]).sum()

    model = Pooled()
    batch = torch.tensor([1, 2, 2, 9]), torch.tensor([0, 3]), torch.tensor([[5], [0], [5]])
    problem = Problem.of(model, [batch, batch], lambda m, b: m(b), 1000)
    assert problem.counts["bag"].tolist() == [0, 2, 4, 0, 0, 0, 0, 0, 0, 0]
    assert problem.counts["one"].tolist() == [0, 0, 0, 0, 0, 6]
    assert problem.counts is problem.counts and problem.aliases["one"] == ("alias",)


def test_frequency_follows_the_power_of_the_count() -> None:
    counts = {"table": torch.tensor([6400.0] * 4000 + [400.0] * 4000 + [25.0] * 4000)}
    model = Linear(12_000, 32)
    half, none, full = (
        search(model, (), None, "frequency", 300_000, counts=counts, alpha=alpha, rounding="exact").tables[0].sizes
        for alpha in (0.5, 0.0, 1.0)
    )
    means = half.view(3, 4000).float().mean(1)
    assert means[0] / means[1] == pytest.approx(4, rel=0.3) and means[1] / means[2] == pytest.approx(4, rel=0.3)
    assert none.view(3, 4000).float().mean(1).std() < 0.5 < full.view(3, 4000).float().mean(1).std()
    assert int(full.view(3, 4000)[2].max()) <= 1


def test_tokens_that_never_occur_get_the_least_size() -> None:
    batches = [torch.arange(100)]
    assert int(search(Linear(), batches, loss_fn, "frequency", "1/2").tables[0].sizes[100:].max()) == 0
    assert int(search(Linear(), batches, loss_fn, "frequency", "1/2", min_size=1).tables[0].sizes.min()) == 1


def test_mde_and_uniform_have_one_size_a_table() -> None:
    model = nn.ModuleDict(
        {"large": nn.Embedding(16_000, 64), "middle": nn.Embedding(1000, 64), "tiny": nn.Embedding(4, 64)}
    )
    mde = search(model, (), None, "mde", "1/8", alpha=0.5, fill=False)
    uniform = search(model, (), None, "uniform", "1/8", fill=False)
    sizes = {t.name: t.sizes.unique().tolist() for t in mde.tables}
    assert all(len(found) == 1 for found in sizes.values()) and sizes["tiny"] == [64]
    assert sizes["middle"][0] / sizes["large"][0] == pytest.approx(4, rel=0.15)  # 16 ** 0.5
    assert [t.sizes.unique().tolist() for t in uniform.tables] == [[7], [8], [64]]  # and what is left


@pytest.mark.parametrize("method", ["uniform", "mde"])
def test_tokens_of_one_table_fill_the_budget(method: str) -> None:
    model = nn.ModuleDict({"a": nn.Embedding(3000, 32), "b": nn.Embedding(40, 32)})
    one = search(model, (), None, method, "1/8", fill=False)
    both = search(model, (), None, method, "1/8", seed=4)
    assert all(len(sizes) == 1 for sizes in one.sizes.values()) and one.nbytes < 0.97 * one.budget
    assert 0.999 * both.budget < both.nbytes <= both.budget
    assert sorted(len(sizes) for sizes in both.sizes.values()) == [1, 2]
    again, other = (search(model, (), None, method, "1/8", seed=seed).tables[0].sizes for seed in (4, 5))
    assert torch.equal(both.tables[0].sizes, again) and not torch.equal(again, other)
    assert other.max() - other.min() == 1


def test_sseds_keeps_the_dimensions_that_the_loss_depends_on() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.strong, self.weak = nn.Embedding(200, 16), nn.Embedding(200, 16)
            self.mix = torch.tensor([1.0] * 6 + [0.0] * 10)

        def forward(self, ids: Tensor) -> Tensor:
            return (self.strong(ids) * self.mix).sum(1) + 1e-3 * self.weak(ids).sum(1)

    plan = search(Wide(), [torch.arange(200)] * 2, lambda m, b: (m(b) - 1).square().mean(), "sseds", 5600, fill=False)
    assert plan.sizes == {"strong": {6: 200}, "weak": {0: 200}} and plan.retrain and not plan.keep_values


def test_magnitude_keeps_the_largest_entries_of_all_tables_together() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Embedding(200, 8), "b": nn.Embedding(100, 8)})
    with torch.no_grad():
        model["b"].weight *= 3
    plan = search(model, (), None, "magnitude", "1/4")
    every = torch.cat([model[k].weight.detach().abs().flatten() for k in "ab"])
    kept = torch.cat([t.mask.flatten() for t in plan.tables])
    assert float(every[kept].min()) >= float(every[~kept].max())
    assert plan.tables[1].mask.float().mean() > 3 * plan.tables[0].mask.float().mean()
    assert plan.keep_values and not plan.retrain
    assert search(model, (), None, "magnitude", "1/4", fine_tune=True).retrain


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float32, torch.float16)])
def test_masks_use_the_budget_up_to_an_entry(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    model = nn.ModuleDict({n: nn.Embedding(150, 8, dtype=dtype) for n, dtype in zip("ab", dtypes, strict=True)})
    plan = search(model, (), None, "magnitude", 2000)
    assert 1990 <= plan.nbytes <= 2000


def test_a_table_that_is_hardly_pruned_stays_whole() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(2000, 8), "b": nn.Embedding(20, 8)})
    with torch.no_grad():
        model["b"].weight.copy_(torch.ones(20, 8) * 9)
    plan = search(model, (), None, "magnitude", "1/2")
    assert [t.kind for t in plan.tables] == ["pruned", "multi_size"] and plan.nbytes >= 0.99 * plan.budget


def test_pep_prunes_what_the_loss_does_not_need() -> None:
    class Half(Linear):
        def forward(self, ids: Tensor) -> Tensor:
            used = torch.where(ids < 100, self.table(ids).abs().sum(1) / 8 - 4, 0 * self.table(ids).sum(1))
            return used.square().sum()

    model = Half(200)
    plan = search(model, [torch.arange(200)] * 10, loss_fn, "pep", 4400, lr=0.01, max_epochs=30)
    mask = plan.tables[0].mask
    assert plan.settings["reached"] and mask[:100].float().mean() > 0.9 > 0.2 > mask[100:].float().mean()
    assert plan.stage == "during" and plan.retrain and plan.keep_values and plan.batches > 10


def test_pep_says_where_the_budget_was_not_reached_and_still_meets_it() -> None:
    plan = search(Linear(), [torch.arange(TOKENS)], loss_fn, "pep", 1500, max_epochs=1)
    assert not plan.settings["reached"] and 1490 <= plan.nbytes <= 1500


@pytest.mark.parametrize("granularity", ["table", "dimension", "token", "entry"])
def test_thresholds_of_every_granularity(granularity: str) -> None:
    plan = search(Linear(), [torch.arange(TOKENS)], loss_fn, "pep", 1500, max_epochs=1, granularity=granularity)
    assert plan.nbytes <= 1500 and plan.settings["granularity"] == granularity


def test_the_budget_is_shared_in_proportion_with_small_tables_whole() -> None:
    model = nn.ModuleDict(
        {"large": nn.Embedding(8000, 16), "middle": nn.Embedding(4000, 16), "tiny": nn.Embedding(30, 16)}
    )
    plan = search(model, (), None, "hash", "1/8", seed=5)
    kinds, nbytes = [t.kind for t in plan.tables], [t.nbytes for t in plan.tables]
    assert kinds == ["hash", "hash", "multi_size"] and nbytes[0] / nbytes[1] == pytest.approx(2, rel=0.02)
    assert plan.nbytes >= 0.99 * plan.budget
    assert plan.tables[0].options["seed"] != plan.tables[1].options["seed"]
    shared = search(model, (), None, "hash", "1/8", whole=0.0)
    assert [t.kind for t in shared.tables] == ["hash"] * 3


def test_options_reach_the_tables() -> None:
    plan = search(Linear(3000), (), None, "hash", "1/8", num_hashes=2)
    assert plan.tables[0].options["num_hashes"] == 2
    assert plan.tables[0].build(nn.Embedding(3000, WIDTH)).num_hashes == 2


def test_reconstruction_options_are_recorded() -> None:
    plan = search(Linear(), [torch.arange(TOKENS)], loss_fn, "pme", 2000, accumulate="abs_of_sum", rounding="exact")
    assert {
        "accumulate": "abs_of_sum",
        "rounding": "exact",
        "min_size": 0,
        "retrain": True,
    }.items() <= plan.settings.items()
    assert PME().accumulate == "sum_of_abs" and PEP().granularity == "entry" and plan.settings["price"] > 0


def test_pep_takes_a_model_whose_other_tables_have_sparse_gradients() -> None:
    model = nn.ModuleDict({"user": nn.Embedding(60, 8, sparse=True), "item": nn.Embedding(60, 8, sparse=True)})

    def distance(model: nn.ModuleDict, ids: Tensor) -> Tensor:
        return (model["user"](ids) - model["item"](ids) - 1).square().mean()

    plan = search(model, [torch.arange(60)] * 2, distance, "pep", 600, match="user", max_epochs=2)
    assert [table.name for table in plan.tables] == ["user"] and plan.nbytes <= 600
    assert model["user"].sparse and model["item"].sparse


def test_magnitude_keeps_an_entry_of_every_token_first() -> None:
    table = torch.nn.Embedding(40, 8)
    with torch.no_grad():
        table.weight.mul_(torch.linspace(3, 0.01, 40).unsqueeze(1))  # rare tokens have small rows
    model = torch.nn.Sequential(table)
    plain = search(model, (), None, "magnitude", budget=500).tables[0]
    fair = search(model, (), None, "magnitude", budget=500, min_size=1).tables[0]
    assert int((plain.mask.sum(1) == 0).sum()) > 5 and int((fair.mask.sum(1) == 0).sum()) == 0
    assert fair.nbytes <= 500 and int(fair.mask.sum()) == int(plain.mask.sum())
    largest = table.weight.detach().abs().argmax(1)
    assert bool(fair.mask[torch.arange(40), largest].all())
    with pytest.raises(ValueError, match="min_size"):
        search(model, (), None, "magnitude", budget=500, min_size=-1)
