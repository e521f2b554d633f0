"""Every method on a small click model: budgets kept, the model untouched, results the same under one seed."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graphlossy.recsys.base import IdError
from graphlossy.recsys.methods import METHODS, Method, Problem, make_method, search
from graphlossy.recsys.plan import EmbeddingPlan
from graphlossy.recsys.tables import BudgetError

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, ITEMS, WIDTH = 400, 900, 16
DENSE = 4 * WIDTH * (USERS + ITEMS + 5)
SIZED = ["pme", "frequency", "mde", "uniform", "sseds"]
FIXED = {"int8": 0.27, "int4": 0.15, "int2": 0.09, "low_precision": 0.32, "full": 1.01}


class Clicks(nn.Module):
    """Users, items (a bag, padded) and a small table; dropout and a batch norm have a state that a search moves."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        tables = {"user": nn.Embedding(USERS, WIDTH), "item": nn.EmbeddingBag(ITEMS, WIDTH, mode="mean", padding_idx=0)}
        self.tables = nn.ModuleDict({**tables, "country": nn.Embedding(5, WIDTH)})
        self.norm, self.drop, self.out = nn.BatchNorm1d(3 * WIDTH), nn.Dropout(0.1), nn.Linear(3 * WIDTH, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        parts = [self.tables[name](batch[name]) for name in ("user", "item", "country")]
        return self.out(self.drop(self.norm(torch.cat(parts, dim=1)))).squeeze(1)


def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch), batch["label"])


def make_batches(count: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(tokens: int, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) ** 3 * tokens).long()

    found = []
    for _ in range(count):
        user, item = draw(USERS, 256), draw(ITEMS, 256, 3)
        country = draw(5, 256)
        found.append({"user": user, "item": item, "country": country, "label": ((user + country) % 2).float()})
    return found


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    return make_batches()


def options_of(name: str) -> dict[str, object]:
    return {"max_epochs": 2} if name == "pep" else {}


def budget_of(name: str) -> int:
    return int(DENSE * FIXED.get(name, 0.25))


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_is_within_its_budget_and_gives_a_model_that_trains(name: str, batches: list) -> None:
    model = Clicks()
    plan = search(model, batches, loss_fn, name, budget_of(name), seed=1, **options_of(name))
    assert isinstance(plan, EmbeddingPlan) and (plan.method, plan.stage) == (name, METHODS[name].stage)
    assert 0 < plan.nbytes <= budget_of(name) == plan.budget
    assert [table.name for table in plan.tables] == ["tables.user", "tables.item", "tables.country"]
    assert plan.dense_nbytes == DENSE and plan.peak_bytes >= DENSE and plan.seconds > 0
    built = 0
    for table in plan.tables:
        place = table.name.removeprefix("tables.")
        module = table.finish(table.build(model.tables[place], plan.keep_values))
        built += module.nbytes
        model.tables[place] = module
    assert built == plan.nbytes
    loss = loss_fn(model, batches[0])
    assert torch.isfinite(loss)
    loss.backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(p.grad.coalesce().values() if p.grad.is_sparse else p.grad).all() for p in trained)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in FIXED])
def test_the_budget_is_used(name: str, batches: list) -> None:
    plan = search(Clicks(), batches, loss_fn, name, DENSE // 3, **options_of(name))
    assert plan.nbytes >= 0.97 * plan.budget


@pytest.mark.parametrize("name", METHODS)
def test_the_model_stays_as_it_was(name: str, batches: list) -> None:
    model = Clicks()
    model.tables["user"].sparse = True
    model.drop.eval()
    model.out.weight.grad = torch.ones_like(model.out.weight)
    weights = [p for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    search(model, batches, loss_fn, name, budget_of(name), **options_of(name))
    following = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(following, torch.rand(1))  # the global generator too
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.requires_grad and (p.grad is None or p is model.out.weight) for p in weights)
    assert bool((model.out.weight.grad == 1).all()) and model.training and not model.drop.training
    assert model.tables["user"].sparse and not model.tables["item"].sparse
    assert type(model.tables["user"]) is nn.Embedding
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", [n for n in METHODS if n not in FIXED])
def test_equal_seeds_give_equal_plans(name: str, batches: list) -> None:
    found = []
    for noise in (1, 2):
        model = Clicks()
        torch.manual_seed(noise)
        plan = search(model, batches, loss_fn, name, budget_of(name), seed=3, **options_of(name))
        found.append(plan)
    for one, two in zip(found[0].tables, found[1].tables, strict=True):
        assert (one.kind, dict(one.options)) == (two.kind, dict(two.options))
        assert one.sizes is None or torch.equal(one.sizes, two.sizes)
        assert one.mask is None or torch.equal(one.mask, two.mask)


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_out_of_reach_says_how_low_the_method_gets(name: str, batches: list) -> None:
    model = Clicks()
    with pytest.raises(BudgetError, match="raise the budget") as caught:
        search(model, batches, loss_fn, name, 60, **options_of(name))
    least = caught.value.minimum
    assert least > 60 and str(least) in str(caught.value)
    plan = search(model, batches, loss_fn, name, least, **options_of(name))
    assert plan.nbytes <= least
    with pytest.raises(BudgetError):
        search(model, batches, loss_fn, name, least - 1, **options_of(name))


@pytest.mark.parametrize("name", ["pme", "sseds", "pep"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_batch(name: str, value: float, batches: list) -> None:
    def broken(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return loss_fn(model, batch) * (value if batch is batches[2] else 1.0)

    model = Clicks()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"the loss of batch 2 is {value}"):
        search(model, batches, broken, name, DENSE // 4, **options_of(name))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["pme", "sseds", "pep"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_gradient_that_is_not_finite_names_its_table_and_batch(name: str, sparse: bool, batches: list) -> None:
    def broken(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return loss_fn(model, batch) + (model.tables["user"](batch["user"]) * 0).abs().sum().sqrt()

    model = Clicks()
    model.tables["user"].scale_grad_by_freq = not sparse  # then torch has dense gradients only
    with pytest.raises(ValueError, match=r"the gradient of table 'tables.user' is not finite for batch 0"):
        search(model, batches, broken, name, DENSE // 4, **options_of(name))


@pytest.mark.parametrize("name", ["pme", "frequency", "sseds", "pep"])
def test_empty_batches(name: str) -> None:
    with pytest.raises(ValueError, match="batches are empty"):
        search(Clicks(), [], loss_fn, name, DENSE // 4)


@pytest.mark.parametrize(
    ("returned", "error", "text"),
    [
        (lambda loss: float(loss.detach()), TypeError, "must return a scalar tensor, got float for batch 0"),
        (lambda loss: loss.expand(3), ValueError, r"must return a scalar, got \(3,\) for batch 0"),
        (lambda loss: loss.detach(), ValueError, "batch 0 does not depend on any parameter"),
    ],
)
def test_losses_that_are_none(returned: object, error: type[Exception], text: str, batches: list) -> None:
    with pytest.raises(error, match=text):
        search(Clicks(), batches, lambda m, b: returned(loss_fn(m, b)), "pme", DENSE // 4)


@pytest.mark.parametrize("name", SIZED)
def test_low_bits_stack_on_sizes(name: str, batches: list) -> None:
    budget = DENSE // 24
    plan = search(Clicks(), batches, loss_fn, name, budget, bits=4)
    assert plan.nbytes <= budget and {t.bits for t in plan.tables} == {4} and plan.settings["bits"] == 4
    trained = search(Clicks(), batches, loss_fn, name, DENSE // 5, bits=8, bits_when="training")
    module = trained.tables[0].build(nn.Embedding(USERS, WIDTH))
    assert module.nbytes == trained.tables[0].nbytes and trained.nbytes <= DENSE // 5


@pytest.mark.parametrize("name", ["magnitude", "pep", "hash", "qr", "tt", "robe", "dhe", "full"])
def test_low_bits_without_sizes_are_refused(name: str, batches: list) -> None:
    with pytest.raises(ValueError, match=rf"{name} has no low-bit rows, got bits=4"):
        search(Clicks(), batches, loss_fn, name, DENSE, bits=4)


def test_bits_of_a_method_that_has_its_own() -> None:
    with pytest.raises(ValueError, match="int8 has rows of 8 bits, got bits=4"):
        search(Clicks(), (), None, "int8", DENSE, bits=4)
    assert search(Clicks(), (), None, "low_precision", DENSE, bits=4).tables[0].bits == 4


@hypothesis_settings(max_examples=15)
@given(
    name=st.sampled_from(["pme", "frequency", "mde", "uniform", "sseds", "hash", "magnitude", "robe"]),
    share=st.floats(0.01, 1.1),
    seed=st.integers(0, 3),
)
def test_no_budget_is_exceeded(name: str, share: float, seed: int) -> None:
    budget = int(share * DENSE)
    try:
        plan = search(Clicks(seed), make_batches(1, seed), loss_fn, name, budget, seed=seed)
    except BudgetError as error:
        assert error.minimum > budget
    else:
        assert plan.nbytes <= budget


def test_methods_are_made_by_name() -> None:
    assert make_method("pme", accumulate="abs_of_sum").accumulate == "abs_of_sum"
    for name, kind in METHODS.items():
        found = make_method(name)
        assert type(found) is kind and found.name == name and isinstance(found, Method)
        assert found.stage in ("before", "during", "after") and kind.__doc__
    with pytest.raises(ValueError, match="method must be one of pme, frequency.*got 'ssed'"):
        make_method("ssed")
    with pytest.raises(ValueError, match="'pme' has no option 'alpha'; its options are rounding, min_size"):
        make_method("pme", alpha=1.0)
    with pytest.raises(ValueError, match="'full' has no option 'x'; it has no options"):
        make_method("full", x=1)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("pme", {"accumulate": "mean"}, "accumulate must be"),
        ("pme", {"rounding": "near"}, "rounding must be"),
        ("pme", {"min_size": -1}, "min_size must be an int of at least 0, got -1"),
        ("pme", {"projection": "none"}, "projection must be one of"),
        ("pme", {"shared_rows": -2}, "shared_rows must be an int of at least 0"),
        ("pme", {"bits_when": "never"}, "bits_when must be one of"),
        ("pme", {"group_size": 12}, "group_size must be a multiple of 8"),
        ("frequency", {"alpha": -1.0}, "alpha must be at least 0"),
        ("mde", {"alpha": float("nan")}, "alpha must be at least 0"),
        ("pep", {"granularity": "row"}, "granularity must be one of"),
        ("pep", {"lr": 0.0}, "lr must be positive"),
        ("pep", {"max_epochs": 0}, "max_epochs must be at least 1"),
        ("hash", {"whole": 2.0}, "whole must be a share of the budget"),
        ("low_precision", {"bits": 3}, "bits must be one of"),
        ("int8", {"group_size": 3}, "group_size must be a multiple of 8"),
    ],
)
def test_wrong_options(name: str, options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_method(name, **options)


def test_wrong_problems(batches: list) -> None:
    model = Clicks()
    tables = {"user": model.tables["user"]}
    with pytest.raises(TypeError, match="iterable again and again, such as a list; got a generator"):
        Problem(model, tables, (b for b in batches), loss_fn, 1000)
    with pytest.raises(TypeError, match="batches must be iterable"):
        Problem(model, tables, 3, loss_fn, 1000)
    with pytest.raises(ValueError, match="at least one embedding table"):
        Problem(model, {}, batches, loss_fn, 1000)
    with pytest.raises(ValueError, match="bits must be 0"):
        Problem(model, tables, batches, loss_fn, 1000, bits=5)
    with pytest.raises(TypeError, match="seed must be an int, got float"):
        Problem(model, tables, batches, loss_fn, 1000, seed=0.5)
    with pytest.raises(ValueError, match=r"counts of 'user' must be \[400\], got \(3,\)"):
        Problem(model, tables, batches, loss_fn, 1000, known_counts={"user": torch.ones(3)})
    with pytest.raises(ValueError, match="max_batches must be at least 1"):
        search(model, batches, loss_fn, "pme", DENSE // 4, max_batches=0)
    with pytest.raises(TypeError, match="method must be a name or a Method, got int"):
        search(model, batches, loss_fn, 3, DENSE)
    with pytest.raises(ValueError, match="options go with a method's name"):
        search(model, batches, loss_fn, make_method("pme"), DENSE, min_size=1)
    with pytest.raises(ValueError, match="give loss_fn"):
        search(model, batches, None, "pme", DENSE // 4)


def test_tables_are_chosen_by_pattern_frozen_ones_left_and_shared_ones_taken_once(batches: list) -> None:
    model = Clicks()
    model.again = model.tables["user"]
    model.tables["country"].weight.requires_grad_(False)
    plan = search(model, batches, loss_fn, "frequency", "1/4")
    assert [(t.name, t.aliases) for t in plan.tables] == [("tables.user", ("again",)), ("tables.item", ())]
    assert [t.name for t in search(model, batches, loss_fn, "pme", "1/4", "*item").tables] == ["tables.item"]
    with pytest.raises(ValueError, match="leaves nothing of the model to compress: .*tables.country: it is frozen"):
        search(model, batches, loss_fn, "pme", "1/4", "*country")


def test_a_bar_is_drawn_on_the_terminal_only_if_asked_for(batches: list, capfd: pytest.CaptureFixture) -> None:
    search(Clicks(), batches, loss_fn, "pme", "1/4")
    assert capfd.readouterr() == ("", "")
    search(Clicks(), batches, loss_fn, "pme", "1/4", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "saliency" in err


@pytest.mark.parametrize("name", ["pme", "sseds", "pep", "frequency"])
@pytest.mark.parametrize(("field", "tokens"), [("user", USERS), ("item", ITEMS)])
@pytest.mark.parametrize("wrong", [-1, 10**12])
def test_an_id_out_of_range_names_its_table_and_batch(name: str, field: str, tokens: int, wrong: int) -> None:
    damaged = make_batches()
    damaged[2][field].view(-1)[7] = wrong
    model = Clicks()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(IdError, match=f"batch 2: table 'tables.{field}' has {tokens} tokens, .* asked for id {wrong};"):
        search(model, damaged, loss_fn, name, budget="1/8")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
