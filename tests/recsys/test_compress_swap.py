"""Which tables are found, how one takes the place of another, and who else held the old one."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from torch import nn

from graphlossy.recsys import BagOf, MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys._references import replace_references
from graphlossy.recsys._swap import core_of, swap_tables
from graphlossy.recsys._tables import find_tables


def small(old: nn.Module) -> nn.Module:
    """A multi-size table for a dense one, with hand-made sizes."""
    count, width = old.weight.shape
    sizes = [width if i % 3 == 0 else 2 for i in range(count)]
    if isinstance(old, nn.EmbeddingBag):
        last = old.include_last_offset
        return MultiSizeEmbeddingBag(count, width, mode=old.mode, include_last_offset=last, sizes=sizes)
    return MultiSizeEmbedding(count, width, padding_idx=old.padding_idx, sizes=sizes)


def swap(model: nn.Module, optimizers=(), **options) -> tuple[list, list[str]]:
    tables, left = find_tables(model, **options)
    replaced, notes = swap_tables([(table, small(table.module)) for table in tables])
    notes += replace_references(model, replaced, optimizers)
    return left, notes


class Nested(nn.Module):
    """Tables in every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.by_field = nn.ModuleDict({"user": nn.Embedding(30, 8), "item": nn.Embedding(40, 8, padding_idx=0)})
        self.bags = nn.ModuleList([nn.EmbeddingBag(20, 8, mode="sum"), nn.EmbeddingBag(25, 8, mode="mean")])
        self.tower = nn.Sequential(nn.Sequential(nn.Embedding(50, 8)), nn.Flatten(), nn.Linear(8, 1))
        self.gender = nn.Embedding(3, 8)


def test_tables_in_containers_are_found_by_pattern() -> None:
    model = Nested()
    assert [t.name for t in find_tables(model)[0]] == [
        "by_field.user", "by_field.item", "bags.0", "bags.1", "tower.0.0", "gender",
    ]  # fmt: skip
    tables, left = find_tables(model, ["by_field.*", "bags.1"])
    assert [t.name for t in tables] == ["by_field.user", "by_field.item", "bags.1"]
    assert {entry.name: entry.reason for entry in left} == dict.fromkeys(
        ["gender", "bags.0", "tower.0.0"], "its name does not match"
    )
    assert {entry.name: entry.nbytes for entry in left}["tower.0.0"] == 50 * 8 * 4


def test_small_tables_are_left_alone() -> None:
    tables, left = find_tables(Nested(), min_tokens=25)
    assert "gender" not in [t.name for t in tables] and "bags.1" in [t.name for t in tables]
    assert "3 tokens, fewer than min_tokens=25" in next(entry.reason for entry in left if entry.name == "gender")


def test_a_pattern_that_fits_nothing_names_the_tables() -> None:
    with pytest.raises(ValueError, match=r"match='users' fits no embedding table.*by_field\.user"):
        find_tables(Nested(), ["by_field.*", "users"])


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ("no model", TypeError, "must be a torch.nn.Module, got str"),
        (nn.Embedding(3, 2), ValueError, "itself an Embedding"),
        (nn.Sequential(nn.Linear(2, 2)), ValueError, "fits no embedding table.*its tables: none"),
    ],
)
def test_wrong_models(model: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        find_tables(model)


def test_match_must_be_text() -> None:
    with pytest.raises(TypeError, match="match must be a pattern"):
        find_tables(Nested(), [])


class Scaled(nn.Embedding):
    def forward(self, input):
        return super().forward(input) * 2


class Renamed(nn.Embedding):
    def rank(self):
        return self.weight


class Offset(nn.Embedding):
    def __init__(self, *args):
        super().__init__(*args)
        self.bias = nn.Parameter(torch.zeros(self.embedding_dim))


def reason(module: nn.Module, **options) -> str:
    tables, left = find_tables(nn.ModuleDict({"t": module}), **options)
    assert not tables
    return left[0].reason


def test_what_cannot_be_replaced_is_left_alone_with_a_reason() -> None:
    frozen = nn.Embedding(5, 2).requires_grad_(False)
    bound = nn.Embedding(5, 2)
    bound.forward = lambda ids: torch.zeros(2)
    assert reason(Scaled(5, 2)) == "Scaled has a forward of its own"
    assert reason(bound) == "Embedding has a forward of its own"
    assert reason(Offset(5, 2)) == "Offset holds more than a weight: bias"
    assert "parametrized" in reason(nn.utils.parametrizations.weight_norm(nn.Embedding(5, 2)))
    assert reason(frozen) == "it is frozen (frozen=True takes it too)"
    assert [t.name for t in find_tables(nn.ModuleDict({"t": frozen}), frozen=True)[0]] == ["t"]
    assert "meta" in reason(nn.Embedding(5, 2, device="meta"))
    assert reason(MultiSizeEmbedding(5, 2, sizes=1)) == "it is compressed already"
    assert reason(BagOf(MultiSizeEmbedding(5, 2, sizes=1))) == "it is compressed already"


def test_a_weight_that_another_layer_uses_stays() -> None:
    model = nn.ModuleDict({"item": nn.Embedding(6, 4), "decoder": nn.Linear(4, 6, bias=False)})
    model["decoder"].weight = model["item"].weight
    tables, left = find_tables(model)
    assert tables == [] and left[0].reason == "its weight is shared with decoder.weight, which is no table"


def test_one_module_at_several_paths_is_replaced_once_and_shared() -> None:
    table = nn.Embedding(30, 8)
    model = nn.ModuleDict({"query": table, "deep": nn.Sequential(nn.ModuleDict({"key": table}))})
    (found,), _ = find_tables(model, "deep.*")
    assert (found.name, found.aliases) == ("query", ("deep.0.key",))
    swap(model)
    assert isinstance(model["query"], MultiSizeEmbedding) and model["query"] is model["deep"][0]["key"]
    assert model["query"].name == "query"


def test_tied_weights_are_one_table_again() -> None:
    model = nn.ModuleDict(
        {"bag": nn.EmbeddingBag(30, 8, mode="sum"), "a": nn.Embedding(30, 8), "b": nn.Embedding(30, 8)}
    )
    model["b"].weight = model["bag"].weight = model["a"].weight
    left, _ = swap(model)
    assert left == [] and model["a"] is model["b"]
    assert isinstance(model["bag"], BagOf) and model["bag"].embedding is model["a"]
    ids = torch.tensor([[1, 2], [3, 3]])
    torch.testing.assert_close(model["bag"](ids), model["a"](ids).sum(1))
    assert len({id(p) for p in model.parameters()}) == len(list(model["a"].parameters()))


def test_bags_that_pool_differently_share_one_table() -> None:
    model = nn.ModuleDict({"sum": nn.EmbeddingBag(30, 8, mode="sum"), "mean": nn.EmbeddingBag(30, 8, mode="mean")})
    model["mean"].weight = model["sum"].weight
    swap(model)
    ids = torch.tensor([[1, 2], [3, 3]])
    torch.testing.assert_close(model["sum"](ids), model["mean"](ids) * 2)


def test_tied_tables_of_other_settings_stay() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(30, 8, padding_idx=0), "b": nn.Embedding(30, 8)})
    model["b"].weight = model["a"].weight
    tables, left = find_tables(model)
    assert tables == [] and [entry.name for entry in left] == ["a", "b"]
    assert left[0].reason == "tables that share its weight differ in padding_idx"


def test_flags_hooks_and_attributes_move() -> None:
    model = nn.Sequential(nn.Embedding(30, 8)).eval()
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[0].feature, model[0].weight.no_decay = "user", True
    _, notes = swap(model)
    assert notes == [] and not model[0].training and model[0].feature == "user"
    assert all(param.no_decay for param in model[0].parameters())
    torch.testing.assert_close(model(torch.tensor([4])), model[0].weight[5:6])
    assert seen == ["MultiSizeEmbedding"]
    handle.remove()
    model(torch.tensor([4]))
    assert seen == ["MultiSizeEmbedding"]


def test_what_is_lost_is_said() -> None:
    model = nn.ModuleDict({"plain": nn.Embedding(30, 8), "own": Renamed(30, 8)})
    model["plain"].weight.register_hook(lambda grad: grad)
    model["plain"].weight.groups = ["a"]
    model["plain"].sizes = (1, 2)
    model["plain"]._register_state_dict_hook(lambda *args: None)
    notes = "\n".join(swap(model)[1])
    assert "own: was a Renamed" in notes and "plain: hooks of its weight are lost" in notes
    assert "plain: attributes of its weight are lost: 'groups'" in notes
    assert "plain: its attribute 'sizes' is lost" in notes and "plain: hooks of its state_dict are lost" in notes


def test_optimizers_get_the_new_parameters() -> None:
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 1))
    groups = [{"params": [model[0].weight], "lr": 0.5}, {"params": list(model[1].parameters())}]
    optimizer = torch.optim.Adam(groups)
    model(torch.arange(3)).sum().backward()
    optimizer.step()
    _, notes = swap(model, optimizers=[optimizer])
    assert notes == ["Adam: 1 parameters replaced, the state of the old tables is dropped"]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model[0].parameters()]
    assert len(optimizer.state) == 2 and optimizer.param_groups[0]["lr"] == 0.5
    before = [p.detach().clone() for p in model[0].parameters()]
    model(torch.arange(3)).sum().backward()
    optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, model[0].parameters(), strict=True))


def test_named_parameters_of_an_optimizer_stay_named() -> None:
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(list(model.named_parameters()), lr=0.1)
    if "param_names" not in optimizer.param_groups[0]:
        pytest.skip("this torch keeps no names")
    swap(model, optimizers=[optimizer])
    group = optimizer.param_groups[0]
    assert len(group["param_names"]) == len(group["params"]) and group["param_names"][-1] == "1.bias"


def test_an_optimizer_that_the_model_holds_is_found() -> None:
    model = nn.Sequential(nn.Embedding(30, 8))
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert swap(model)[1] == ["SGD: 1 parameters replaced"]
    assert {id(p) for p in model.optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}


def test_an_optimizer_that_was_forgotten_is_reported() -> None:
    model = nn.Sequential(nn.Embedding(30, 8))
    optimizer = torch.optim.Adagrad(model.parameters())
    _, notes = swap(model)
    assert any("an Adagrad made before holds the old tables" in note for note in notes)
    assert optimizer.param_groups[0]["params"][0].shape == (30, 8)


Column = namedtuple("Column", "name table")


class Feature:
    def __init__(self, table: nn.Module) -> None:
        self.embed, self.name = table, "user"


def test_references_outside_the_tree_are_replaced() -> None:
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 1))
    old = model[0]
    model.penalty = [(list(model.parameters()), 0.1), (list(model.named_parameters()), 0.2)]
    model.features = {"user": Feature(old)}
    model.columns = (Column("user", old), Column("item", None))
    model.shared = [old]
    _, notes = swap(model)
    new, params = model[0], list(model[0].parameters())
    assert notes == []
    assert [id(p) for p in model.penalty[0][0]] == [id(p) for p in model.parameters()]
    assert [name for name, _ in model.penalty[1][0]] == ["0.weight.0", "0.weight.1", "0.weight.2", "1.weight", "1.bias"]
    assert [id(p) for _, p in model.penalty[1][0][: len(params)]] == [id(p) for p in params]
    assert model.features["user"].embed is new and model.shared == [new]
    assert model.columns == (Column("user", new), Column("item", None))


def test_a_single_reference_to_a_weight_of_several_parts_is_reported() -> None:
    model = nn.Sequential(nn.Embedding(30, 8))
    model.weights = {"user": model[0].weight}
    assert any("weights.user still holds the dense weight" in note for note in swap(model)[1])


def test_a_swapped_model_is_copied_and_pickled() -> None:
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 1))
    swap(model)
    ids = torch.arange(30)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(ids), model(ids), rtol=0, atol=0)
        assert core_of(twin[0]).name == "0" and core_of(twin[1]) is None


def test_models_that_are_wrapped_or_scripted_are_refused() -> None:
    wrapped = type("FullyShardedDataParallel", (nn.Sequential,), {})(nn.Embedding(5, 2))
    with pytest.raises(ValueError, match="compress the model before wrapping it"):
        find_tables(nn.Sequential(wrapped))
