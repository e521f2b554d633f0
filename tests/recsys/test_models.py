"""The click models: shapes, formulas, fields of every kind, and tables that may be swapped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.recsys import MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.models import MODELS, make_model, options_of
from graphlossy.recsys.models.fm import all_pairs, pairwise

REAL = [name for name in MODELS if name != "bias"]


def field(name, kind="token", num_tokens=7):
    return SimpleNamespace(name=name, kind=kind, num_tokens=num_tokens)


FIELDS = [field("user"), field("item", num_tokens=9), field("genres", "token_seq", 6), field("age", "float", 0)]


def make_batch(size=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "user": torch.randint(7, (size,), generator=draw),
        "item": torch.randint(9, (size,), generator=draw),
        "genres": torch.randint(1, 6, (size, 3), generator=draw),
        "age": torch.rand(size, generator=draw),
        "label": torch.ones(size),
    }


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fields", [FIELDS, FIELDS[:2], FIELDS[:3]], ids=["all", "tokens", "sequence"])
def test_logits_of_every_model(name, fields):
    model = make_model(name, fields, embedding_dim=4)
    out = model(make_batch())
    assert out.shape == (5,) and out.isfinite().all()
    out.sum().backward()
    for module in (*model.embeddings.values(), *model.linear.values()):
        assert module.weight.grad is not None and module.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", REAL)
def test_tables_are_plain(name):
    model = make_model(name, FIELDS, embedding_dim=4)
    assert [(k, tuple(m.weight.shape)) for k, m in model.embeddings.items()] == [
        ("user", (7, 4)), ("item", (9, 4)), ("genres", (6, 4))
    ]  # fmt: skip
    assert type(model.embeddings["user"]) is torch.nn.Embedding and model.embeddings["genres"].padding_idx == 1
    widths = [tuple(m.weight.shape) for m in model.linear.values()]
    assert widths == ([] if name in ("dlrm", "ncf") else [(7, 1), (9, 1), (6, 1)])


def test_fm_is_its_formula():
    model = make_model("fm", FIELDS[:2], embedding_dim=3)
    with torch.no_grad():
        model.bias.fill_(0.5)
    batch = make_batch()
    user, item = batch["user"], batch["item"]
    expected = 0.5 + model.linear["user"](user)[:, 0] + model.linear["item"](item)[:, 0]
    expected = expected + (model.embeddings["user"](user) * model.embeddings["item"](item)).sum(1)
    torch.testing.assert_close(model(batch), expected)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4))
def test_pairwise_is_the_sum_of_all_pairs(fields, width, batch):
    vectors = torch.randn(batch, fields, width, dtype=torch.float64)
    pairs = all_pairs(vectors)
    assert pairs.shape == (batch, fields * (fields - 1) // 2)
    torch.testing.assert_close(pairwise(vectors), pairs.sum(1))


def test_a_mean_leaves_padding_out():
    model = make_model("fm", [field("genres", "token_seq", 6)], embedding_dim=3)
    short, padded = torch.tensor([[2, 3]]), torch.tensor([[2, 3, 1, 1]])
    assert torch.equal(model({"genres": short}), model({"genres": padded}))
    assert model({"genres": torch.ones(1, 2, dtype=torch.int64)}).isfinite().all()


def test_ncf_finds_user_and_item():
    names = ["city", "item_id", "user_id"]
    model = make_model("ncf", [field(name) for name in names], embedding_dim=4)
    assert (model.user, model.item) == ("user_id", "item_id")
    assert make_model("ncf", [field("a"), field("b"), field("c")], 4).item == "b"
    chosen = make_model("ncf", [field(name) for name in names], 4, user="city")
    assert (chosen.user, chosen.item) == ("city", "item_id")
    assert make_model("ncf", [field("item_a"), field("shop")], 4).user == "shop"


@pytest.mark.parametrize("name", REAL)
def test_tables_can_be_swapped(name):
    model = make_model(name, FIELDS, embedding_dim=4)
    for tables, width in ((model.embeddings, 4), (model.linear, 1)):
        for key in list(tables):
            new = MultiSizeEmbedding(tables[key].num_embeddings, width, sizes=1)
            if key == "genres":
                new = MultiSizeEmbeddingBag(tables[key].num_embeddings, width, padding_idx=1, sizes=1)
            tables[key] = new
    model(make_batch()).sum().backward()
    assert all(p.grad is not None for p in model.embeddings.parameters())


@pytest.mark.parametrize(
    ("name", "fields", "options", "message"),
    [
        ("fm", [], {}, "fields must not be empty"),
        ("fm", [field("a"), field("a")], {}, "'a' twice"),
        ("fm", [field("a", "text")], {}, "kind must be one of"),
        ("fm", [field("a", num_tokens=0)], {}, "has no tokens"),
        ("fm", [field("a")], {"embedding_dim": 0}, "embedding_dim must be a positive int, got 0"),
        ("fm", [field("a")], {"init_std": 0}, "init_std must be"),
        ("fm", [field("a")], {"hidden": (3,)}, "model fm has no option 'hidden'"),
        ("deepfm", [field("a")], {"hidden": (0,)}, "hidden must be positive widths"),
        ("deepfm", [field("a")], {"dropout": 1.0}, "dropout must be at least 0"),
        ("dcn", [field("a")], {}, "model must be one of fm, deepfm"),
        ("ncf", [field("a")], {}, "NCF needs two fields"),
        ("ncf", [field("a"), field("b")], {"user": "c"}, "user must name a field"),
        ("ncf", [field("a"), field("b")], {"embedding_dim": 1}, "at least 2 for NCF"),
    ],
    ids=str,
)
def test_what_is_refused(name, fields, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make_model(name, fields, **options)


def test_fields_may_have_any_name():
    names = ["type", "items", "item.id", "item_id", "_modules", "training", ""]
    model = make_model("deepfm", [field(name) for name in names], 4)
    assert len(set(model.keys.values())) == len(names) and not any("." in key for key in model.keys.values())
    model({name: torch.tensor([1, 2]) for name in names}).sum().backward()
    copy = make_model("deepfm", [field(name) for name in names], 4)
    copy.load_state_dict(model.state_dict())
    for path, module in model.named_modules():
        assert model.get_submodule(path) is module


def test_a_missing_field_is_named():
    with pytest.raises(KeyError, match="no field 'item'; it has label, user"):
        make_model("fm", FIELDS[:2])({"user": torch.tensor([1]), "label": torch.ones(1)})


def test_options():
    assert options_of("deepfm") == ("hidden", "dropout", "first_order", "init_std")
    model = make_model("deepfm", FIELDS, 4, hidden=[], first_order=False, dropout=0.0)
    assert len(model.linear) == 0 and model(make_batch()).shape == (5,)
