"""`compress_embeddings`: swap, budget, errors that leave the model alone, plans applied again, and the way back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from graphlossy.recsys.base import CompressedEmbedding
from graphlossy.recsys.compress import (
    CompressionReport,
    apply_plan,
    compress_embeddings,
    finish,
    parse_budget,
    restore_dense,
)
from graphlossy.recsys.plan import EmbeddingPlan, TablePlan
from graphlossy.recsys.tables import BudgetError

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, ITEMS, WIDTH = 300, 500, 16
PLAIN = 4 * WIDTH * (USERS + ITEMS)


class Clicks(nn.Module):
    """Two tables, one frozen table, a small one, and layers with a state of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {"user": nn.Embedding(USERS, WIDTH), "item": nn.Embedding(ITEMS, WIDTH, padding_idx=0)}
        )
        self.gender = nn.Embedding(3, WIDTH)
        self.pretrained = nn.Embedding(USERS, WIDTH).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4 * WIDTH)
        self.out = nn.Linear(4 * WIDTH, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        user = batch["user"]
        parts = [
            self.tables["user"](user),
            self.tables["item"](batch["item"]),
            self.gender(user % 3),
            self.pretrained(user),
        ]
        return self.out(self.norm(torch.cat(parts, dim=1))).squeeze(1)


def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch), batch["label"])


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    """Popular ids are small ones."""
    found = []
    for _ in range(6):
        user, item = (torch.rand(256) ** 3 * USERS).long(), (torch.rand(256) ** 3 * ITEMS).long()
        found.append({"user": user, "item": item, "label": ((user + item) % 2).float()})
    return found


def compress(model: nn.Module, batches: object, method: str = "frequency", budget: object = "1/4", **options: object):
    return compress_embeddings(model, batches, loss_fn, method, budget, seed=1, progress=False, **options)


def train(model: nn.Module, batches: list[dict[str, Tensor]], steps: int = 18) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for step in range(steps):
        loss = loss_fn(model, batches[step % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[object], list[bool], list[type]]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    grads = [param.grad for param in model.parameters()]
    return state, grads, [m.training for m in modules], [type(m) for m in modules]


def assert_untouched(model: nn.Module, before: tuple) -> None:
    after = snapshot(model)
    assert after[0].keys() == before[0].keys()
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert all(a is b for a, b in zip(after[1], before[1], strict=True))
    assert after[2:] == before[2:]


@pytest.mark.parametrize("method", ["pme", "frequency", "uniform"])
def test_tables_are_replaced_within_the_budget_and_train(method: str, batches: list) -> None:
    model = Clicks()
    report = compress(model, batches, method)
    assert isinstance(report, CompressionReport)
    assert [table.name for table in report.tables] == ["tables.user", "tables.item"]
    assert report.plain_bytes == PLAIN and report.final_bytes <= PLAIN // 4
    now = [model.tables["user"], model.tables["item"]]
    assert all(isinstance(table, CompressedEmbedding) for table in now)
    assert sum(table.nbytes for table in now) == report.nbytes == report.plan.nbytes
    assert now[1].padding_idx == 0 and now[1].name == "tables.item"
    losses = train(model, batches)
    assert sum(losses[-6:]) < sum(losses[:6]) and torch.isfinite(model(batches[0])).all()


def test_the_rest_of_the_model_stays_as_it_was(batches: list) -> None:
    model = Clicks()
    model.out.weight.grad = torch.ones_like(model.out.weight)
    model.norm.eval()
    before = snapshot(model)
    compress(model, batches, "pme")
    state = model.state_dict()
    rest = [name for name in before[0] if not name.startswith("tables.")]
    assert len(rest) == 9 and all(torch.equal(state[name], before[0][name]) for name in rest)
    assert model.out.weight.grad is not None and not model.norm.training and model.training
    assert torch.equal(model.out.weight.grad, torch.ones_like(model.out.weight))


def test_the_report_says_what_was_done_and_what_was_not(batches: list) -> None:
    report = compress(Clicks(), batches)
    reasons = {entry.name: entry.reason for entry in report.left_alone}
    assert reasons == {
        "gender": "it has 3 tokens, fewer than min_tokens=16",
        "pretrained": "it is frozen (frozen=True takes it too)",
    }
    text = str(report)
    assert "tables.user" in text and "left alone: gender" in text and "frequency: budget 12.5 KiB" in text
    found = json.loads(report.to_json())
    assert found["final_bytes"] == report.final_bytes and found["tables"][1]["num_embeddings"] == ITEMS
    assert found["seconds"] >= found["search_seconds"] >= 0 and found["batches"] > 0


def test_equal_seeds_give_equal_tables(batches: list) -> None:
    torch.manual_seed(5)
    model = Clicks()
    twin = copy.deepcopy(model)
    compress(model, batches, "pme")
    torch.rand(7)
    compress(twin, batches, "pme")
    state = twin.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_global_generator_is_left_alone_by_new_values(batches: list) -> None:
    plan = compress(Clicks(), batches).plan
    model = Clicks()
    before = torch.get_rng_state()
    apply_plan(model, plan)
    assert torch.equal(before, torch.get_rng_state())


def test_new_values_have_the_deviation_of_the_old(batches: list) -> None:
    model = Clicks()
    with torch.no_grad():
        model.tables["user"].weight.mul_(0.01)
    compress(model, batches, "uniform", "1/2")
    assert 0.007 < float(model.tables["user"].weight.detach().std()) < 0.013


def test_after_training_values_are_kept_and_rounded_at_once(batches: list) -> None:
    model = Clicks()
    train(model, batches, 5)
    before, old = model.eval()(batches[0]), model.tables["item"].weight.detach().clone()
    report = compress(model, batches, "int8", "1/2")
    assert report.nbytes == report.final_bytes <= PLAIN / 2
    assert (model.tables["item"].weight - old).abs().max() < 0.1
    torch.testing.assert_close(model(batches[0]), before, atol=0.1, rtol=0)


def test_finish_rounds_the_rows_after_training(batches: list) -> None:
    model = Clicks()
    report = compress(model, batches, "frequency", "1/8", bits=4)
    assert report.nbytes > report.final_bytes and "finish(model) rounds" in str(report)
    train(model, batches, 5)
    before = model.tables["user"].weight.detach().clone()
    assert finish(model) == ["tables.user", "tables.item"] and finish(model) == []
    assert sum(table.nbytes for table in model.tables.values()) == report.final_bytes <= PLAIN // 8
    assert not torch.equal(before, model.tables["user"].weight)
    assert (before - model.tables["user"].weight).norm() < 0.2 * before.norm()


@pytest.mark.parametrize("finished", [False, True])
def test_a_plan_gives_a_fresh_model_the_same_structure(finished: bool, batches: list, tmp_path) -> None:
    model = Clicks()
    report = compress(model, batches, bits=4)
    train(model, batches, 3)
    if finished:
        finish(model)
    report.plan.save(tmp_path / "plan.safetensors")
    fresh = Clicks()
    again = apply_plan(fresh, EmbeddingPlan.load(tmp_path / "plan.safetensors"))
    assert again.final_bytes == report.final_bytes
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.eval()(batches[0]), model.eval()(batches[0]), rtol=0, atol=0)


def test_a_plan_does_not_fit_another_model(batches: list) -> None:
    plan = compress(Clicks(), batches).plan
    with pytest.raises(ValueError, match=r"no table 'tables.user' to replace; it has: 0"):
        apply_plan(nn.Sequential(nn.Embedding(300, 16)), plan)
    other = Clicks()
    other.tables["item"] = nn.Embedding(ITEMS + 1, WIDTH)
    before = snapshot(other)
    with pytest.raises(
        ValueError, match=r"table 'tables.item' is \(501, 16\) in the model and \(500, 16\) in the plan"
    ):
        apply_plan(other, plan)
    assert_untouched(other, before)
    model = Clicks()
    apply_plan(model, plan)
    with pytest.raises(ValueError, match="'tables.user' to replace: it is compressed already"):
        apply_plan(model, plan)


def test_restore_dense_gives_torch_tables_of_the_same_rows(batches: list) -> None:
    model = Clicks()
    model.again = model.tables["item"]
    compress(model, batches)
    train(model, batches, 3)
    out = model.eval()(batches[0])
    assert restore_dense(model) == ["tables.user", "tables.item"]
    assert {type(module) for module in model.tables.values()} == {nn.Embedding} and model.again is model.tables["item"]
    assert model.tables["item"].padding_idx == 0 and not model.tables["item"].training
    torch.testing.assert_close(model(batches[0]), out)
    Clicks().load_state_dict({name: value for name, value in model.state_dict().items() if name != "again.weight"})


def test_shared_and_pooled_tables_survive_there_and_back(batches: list) -> None:
    model = nn.ModuleDict({"one": nn.Embedding(USERS, WIDTH), "bag": nn.EmbeddingBag(USERS, WIDTH, mode="sum")})
    model["bag"].weight = model["one"].weight

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model["one"](batch["user"]) + model["bag"](batch["user"].unsqueeze(1))).square().mean()

    report = compress_embeddings(model, batches, loss, "pme", "1/4", seed=0, progress=False)
    assert report.plain_bytes == USERS * WIDTH * 4 and report.tables[0].aliases == ("bag",)
    assert model["bag"].embedding is model["one"]
    before = loss(model, batches[0]).item()
    fresh = nn.ModuleDict({"one": nn.Embedding(USERS, WIDTH), "bag": nn.EmbeddingBag(USERS, WIDTH, mode="sum")})
    fresh["bag"].weight = fresh["one"].weight
    apply_plan(fresh, report.plan)
    fresh.load_state_dict(model.state_dict())
    assert loss(fresh, batches[0]).item() == before
    restore_dense(model)
    assert type(model["bag"]) is nn.EmbeddingBag and model["bag"].weight is model["one"].weight
    assert loss(model, batches[0]).item() == pytest.approx(before)


def test_frozen_tables_only_if_asked_for_and_kept(batches: list) -> None:
    model = Clicks()
    with pytest.raises(ValueError, match="frozen tables need their values, which 'frequency' drops"):
        compress(model, batches, frozen=True)
    old = model.pretrained.weight.clone()
    report = compress(model, batches, "int8", "1/2", frozen=True, match="pretrained")
    assert [table.name for table in report.tables] == ["pretrained"]
    assert not any(param.requires_grad for param in model.pretrained.parameters())
    assert (model.pretrained.weight - old).abs().max() < 0.1


def test_an_optimizer_made_before_goes_on(batches: list) -> None:
    model = Clicks()
    optimizer = torch.optim.Adam([param for param in model.parameters() if param.requires_grad], lr=0.05)
    report = compress(model, batches, optimizer=optimizer)
    assert "Adam: 2 parameters replaced" in report.notes
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    assert held == {id(param) for param in model.parameters() if param.requires_grad}


class Failing:
    """Batches that can be gone through again and again and break in the middle."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from self.batches[:2]
        raise OSError("the disk is gone")


@pytest.mark.parametrize("method", ["pme", "frequency", "sseds", "pep"])
@pytest.mark.parametrize("fault", ["empty", "nan", "io", "shape", "budget"])
def test_after_an_error_the_model_is_untouched(method: str, fault: str, batches: list) -> None:
    model = Clicks()
    model.out.weight.grad = torch.ones_like(model.out.weight)
    before = snapshot(model)
    given, loss, budget = batches, loss_fn, "1/4"
    error, text = ValueError, ""
    if fault == "empty":
        given, text = [], "batches"
    elif fault == "nan":
        text = "(?i)nan|finite"

        def loss(model, batch):
            return loss_fn(model, batch) * float("nan")
    elif fault == "io":
        given, error, text = Failing(batches), OSError, "the disk is gone"
    elif fault == "shape":
        text = "scalar"

        def loss(model, batch):
            return model(batch)
    else:
        budget, error, text = 4, BudgetError, "at least [0-9]+ bytes"
    if method == "frequency" and fault in ("nan", "shape"):
        pytest.skip("the method looks at ids alone")
    with pytest.raises(error, match=text):
        compress_embeddings(model, given, loss, method, budget, seed=0, progress=False)
    assert_untouched(model, before)
    assert not any(hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks))


def test_the_least_budget_is_named_and_works(batches: list) -> None:
    with pytest.raises(BudgetError, match="at least") as caught:
        compress(Clicks(), batches, budget=500, min_size=1)
    least = caught.value.minimum
    assert f"{least} bytes" in str(caught.value) and least > 500
    assert compress(Clicks(), batches, budget=least, min_size=1).final_bytes <= least


def test_a_table_without_a_single_row_is_reported() -> None:
    sizes = torch.zeros(USERS, dtype=torch.int64)
    plan = EmbeddingPlan("hand", "before", (TablePlan("tables.user", USERS, WIDTH, "multi_size", sizes=sizes),))
    assert apply_plan(Clicks(), plan).notes == (
        "tables.user: no token has a row, all are zeros; raise the budget or set min_size=1",
    )


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"match": "gender"}, ValueError, r"leaves nothing.*gender: it has 3 tokens"),
        ({"match": "nothing"}, ValueError, "fits no embedding table"),
        ({"method": "magic"}, ValueError, "magic"),
        ({"method": 3}, TypeError, "method must be a name or a Method, got int"),
        ({"budget": "much"}, ValueError, "'much' is not a size"),
        ({"budget": 0}, ValueError, "budget must be a positive number of bytes, got 0"),
        ({"budget": "1/0"}, ValueError, "'1/0' is no share"),
        ({"batches": iter([1])}, TypeError, "iterable again and again.*list_iterator"),
        ({"optimizer": [3]}, TypeError, "optimizer must be a torch.optim.Optimizer or several, got int"),
    ],
)
def test_wrong_arguments(options: dict, error: type[Exception], text: str, batches: list) -> None:
    model = Clicks()
    before = snapshot(model)
    with pytest.raises(error, match=text):
        compress(model, **({"batches": batches} | options))
    assert_untouched(model, before)


def test_budgets_are_sizes_or_shares() -> None:
    found = [parse_budget(b, 8000) for b in ("1/8", " 3 / 4 ", "12.5%", 0.125, "2kB", 700, "1.5 KiB")]
    assert found == [1000, 6000, 1000, 1000, 2000, 700, 1536]


def test_every_method_that_reaches_the_budget_does(batches: list) -> None:
    from graphlossy.recsys.methods import METHODS

    reached = {}
    for name in METHODS:
        model = Clicks()
        try:
            reached[name] = compress(model, batches, name, "1/2").final_bytes
        except BudgetError as error:
            assert error.minimum > PLAIN // 2
            continue
        assert torch.isfinite(model(batches[0])).all()
    assert {"pme", "frequency", "uniform"} <= reached.keys() and all(b <= PLAIN // 2 for b in reached.values())


def test_rows_trained_in_few_bits_need_our_optimizer_and_load_again(batches: list) -> None:
    from graphlossy.recsys.optim import SparseAdamW

    model = Clicks()
    report = compress(model, batches, "frequency", "1/4", bits=8, bits_when="training")
    assert report.notes == ("rows of 8 bits are trained: take an optimizer of graphlossy.recsys.optim",)
    assert report.nbytes == report.final_bytes <= PLAIN // 4 and finish(model) == []
    optimizer = SparseAdamW([param for param in model.parameters() if param.requires_grad], lr=0.03)
    losses = []
    for step in range(12):
        loss = loss_fn(model, batches[step % 6])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[6:]) < sum(losses[:6])
    fresh = Clicks()
    apply_plan(fresh, report.plan)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(batches[0]), model.eval()(batches[0]))
