"""Training: it learns, stops early, comes back after an interruption bit for bit, and says what is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from graphlossy.recsys import MultiSizeEmbedding
from graphlossy.recsys.models import make_model
from graphlossy.recsys.train import (
    FitConfig,
    PeakMeter,
    TrainingError,
    evaluate,
    fit,
    lookup_ms,
    resolve_device,
    table_bytes,
    tables_of,
)

FIELDS = [SimpleNamespace(name=n, kind="token", num_tokens=v) for n, v in (("user", 40), ("item", 30))]
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Split:
    columns: dict

    def __len__(self):
        return len(self.columns["label"])

    def batches(self, batch_size, shuffle=False, seed=0, drop_last=False):
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return [{k: v[part] for k, v in self.columns.items()} for part in order.split(batch_size)]


def clicks(rows, seed):
    """Clicks where user and item like each other, and where the item is liked by all."""
    taste = torch.Generator().manual_seed(99)
    users, items, liked = torch.randn(40, 3, generator=taste), torch.randn(30, 3, generator=taste), None
    draw = torch.Generator().manual_seed(seed)
    user, item = torch.randint(40, (rows,), generator=draw), torch.randint(30, (rows,), generator=draw)
    liked = (users[user] * items[item]).sum(1) + items[item, 0]
    label = (torch.rand(rows, generator=draw) < torch.sigmoid(2 * liked)).float()
    return Split({"user": user, "item": item, "label": label})


@pytest.fixture(scope="module")
def data():
    return SimpleNamespace(name="fake", fields=FIELDS, train=clicks(3000, 1), valid=clicks(800, 2), test=clicks(800, 3))


def new_model(dropout=0.2, **options):
    torch.manual_seed(5)
    return make_model("deepfm", FIELDS, 8, hidden=[16], dropout=dropout, **options)


QUICK = FitConfig(epochs=6, batch_size=256, lr=0.02, patience=0, l2=1e-3)


def test_it_learns_and_keeps_the_best_epoch(data):
    model = new_model()
    before = evaluate(model, data.test)
    result = fit(model, data, QUICK)
    after = evaluate(model, data.test)
    assert before["auc"] < 0.6 and after["auc"] > 0.75 and after["logloss"] < before["logloss"]
    assert result.epochs == 6 and [line["epoch"] for line in result.history] == [1, 2, 3, 4, 5, 6]
    best = max(result.history, key=lambda line: line["auc"])
    assert result.best_epoch == best["epoch"] and evaluate(model, data.valid) == result.valid
    assert result.valid["auc"] == best["auc"] and result.epoch_seconds > 0


def test_state_bytes_are_those_of_adam(data):
    model = new_model()
    result = fit(model, data, QUICK, epochs=1)
    tables = table_bytes(tables_of(model).values())
    assert tables == 70 * 9 * 4
    assert result.state_bytes == 4 * tables + 4 * 4  # value, gradient, two moments; a count of steps for each


def test_it_stops_early(data):
    config = FitConfig(epochs=60, patience=2, batch_size=256, lr=0.05)
    result = fit(new_model(), data, config)
    assert result.epochs == result.best_epoch + 2 < 60


def test_equal_seeds_give_equal_weights_and_leave_the_generator_alone(data):
    found = []
    for seed in (0, 0, 1):
        model = new_model()
        state = torch.get_rng_state()
        fit(model, data, QUICK, seed=seed, epochs=2)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


class Stop(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adamw", "rowwise_adagrad"])
def test_interrupted_and_taken_up_again_is_the_same(data, tmp_path, optimizer):
    pytest.importorskip("graphlossy.recsys.optim")
    config = FitConfig(epochs=5, batch_size=256, lr=0.02, patience=0, optimizer=optimizer)
    whole = new_model()
    expected = fit(whole, data, config)

    def stop(line):
        if line["epoch"] == 4:
            raise Stop

    file = tmp_path / "run.pt"
    with pytest.raises(Stop):
        fit(new_model(), data, config, checkpoint=file, on_epoch=stop, checkpoint_seconds=0)
    seen = []
    model = new_model()
    result = fit(model, data, config, checkpoint=file, on_epoch=lambda line: seen.append(line["epoch"]))
    assert seen == [1, 2, 3, 4, 5] and result.best_epoch == expected.best_epoch
    for line, other in zip(result.history, expected.history, strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    again = new_model()  # a finished run is not trained again
    assert fit(again, data, config, checkpoint=file).history == result.history
    assert torch.equal(again.embeddings["user"].weight, model.embeddings["user"].weight)


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    file = tmp_path / "run.pt"
    fit(new_model(), data, QUICK, epochs=1, checkpoint=file)
    with pytest.raises(TrainingError, match="is of another training; remove it"):
        fit(new_model(), data, QUICK, epochs=1, checkpoint=file, seed=1)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(TrainingError, match="cannot read checkpoint"):
        fit(new_model(), data, QUICK, epochs=1, checkpoint=file)
    torch.save({"epoch": 1}, file)
    with pytest.raises(TrainingError, match="is not of format"):
        fit(new_model(), data, QUICK, epochs=1, checkpoint=file)


def test_weights_that_came_can_be_the_best(data):
    model = new_model()
    fit(model, data, QUICK)
    before = evaluate(model, data.valid)
    spoil = FitConfig(epochs=2, lr=5.0, batch_size=256)
    result = fit(model, data, spoil, keep_first=True)
    assert result.best_epoch == 0 and evaluate(model, data.valid) == before == result.valid
    untouched = fit(model, data, spoil, epochs=0, keep_first=True)
    assert untouched.epochs == 0 and untouched.valid == before and untouched.epoch_seconds is None


def test_l2_makes_embeddings_small(data):
    norms = []
    for l2 in (0.0, 0.3):
        model = new_model()
        fit(model, data, FitConfig(epochs=4, batch_size=256, lr=0.02, l2=l2, patience=0))
        norms.append(float(model.embeddings["item"].weight.detach().norm()))
    assert norms[1] < norms[0] / 2


def test_nan_loss_is_one_clear_error(data):
    broken = clicks(500, 1)
    broken.columns["label"] = broken.columns["label"] * math.nan
    with pytest.raises(TrainingError, match="the training loss became nan in epoch 1; lower the learning rate"):
        fit(new_model(), SimpleNamespace(train=broken, valid=data.valid), QUICK)


def test_empty_splits_and_labels_of_one_kind(data):
    none = Split({"user": torch.empty(0), "item": torch.empty(0), "label": torch.empty(0)})
    none.batches = lambda *args, **kwargs: []
    with pytest.raises(TrainingError, match="the training split is empty"):
        fit(new_model(), SimpleNamespace(train=none, valid=data.valid), QUICK)
    with pytest.raises(TrainingError, match="empty split"):
        evaluate(new_model(), none)
    ones = clicks(50, 1)
    ones.columns["label"] = torch.ones(50)
    with pytest.raises(TrainingError, match="AUC needs labels of both kinds, got 50 of 1 and 0 of 0"):
        evaluate(new_model(), ones)


def test_evaluation_leaves_the_mode(data):
    model = new_model(dropout=0.9)
    whole, parts = evaluate(model, data.test), evaluate(model, data.test, batch_size=37)
    assert whole == pytest.approx(parts, rel=1e-5) and model.training
    assert evaluate(model.eval(), data.test) == whole and not model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be an int of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an int of at least 1, got 2.5"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"l2": -1}, "l2 must be a non-negative number, got -1"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam"),
        ({"search_batches": 0}, "search_batches must be an int of at least 1"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(TrainingError, match=message):
        FitConfig(**settings)


def test_settings_come_back_from_plain_values():
    config = FitConfig(model_options={"hidden": (8, 4)}, epochs=2)
    assert FitConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with pytest.raises(TrainingError, match="unknown settings epoch; there are"):
        FitConfig.from_dict({"epoch": 1})
    with pytest.raises(TrainingError, match="device must be auto, cpu, cuda"):
        resolve_device("tpu")


def test_tables_and_their_bytes():
    model = new_model()
    assert list(tables_of(model)) == ["embeddings.user", "embeddings.item", "linear.user", "linear.item"]
    model.linear["user"] = torch.nn.Module()
    model.embeddings["item"] = model.embeddings["user"]
    assert table_bytes(tables_of(model).values()) == 40 * 8 * 4 + 30 * 4
    table = MultiSizeEmbedding(100, 8, sizes=[8] * 10 + [2] * 90)
    model.embeddings["item"] = table
    assert table_bytes([table]) == table.nbytes and "embeddings.item" in tables_of(model)
    assert lookup_ms(table, torch.arange(100)) > 0 and lookup_ms(torch.nn.EmbeddingBag(5, 2), None) > 0
    assert lookup_ms(torch.nn.Embedding(5, 2), torch.zeros(5)) > 0


def test_the_meter_sees_a_block_and_forgets_the_one_before():
    meter = PeakMeter(torch.device("cpu"))
    if meter.kind != "resident":
        pytest.skip("this system does not say")
    meter.start()
    block = torch.ones(16_000_000)
    assert meter.read() > 60e6
    del block
    meter.start()
    assert meter.read() < 30e6
