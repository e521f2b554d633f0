"""One cell after another with the real methods: budgets are met, figures are there, nothing depends on the cache."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from graphlossy.recsys.data import zipf
from graphlossy.recsys.models import MODELS
from graphlossy.recsys.train import (
    FIXED,
    REFERENCES,
    FitConfig,
    TrainingError,
    default_config,
    full_table_bytes,
    method_names,
    parse_method,
    run_cell,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = FitConfig(embedding_dim=8, model_options={"hidden": [8]}, epochs=2, finetune_epochs=1, batch_size=500, lr=0.01)
MEASURED = ("seconds", "search_epochs", "peak", "lookup_ms")


@pytest.fixture(scope="module")
def data():
    return zipf(rows=3000, vocab=(300, 100, 5), floats=1, factors=2)


@pytest.fixture(scope="module")
def full_bytes(data):
    found = full_table_bytes(data, "deepfm", CONFIG)
    assert found == 9 * 4 * sum(field.num_tokens for field in data.fields)
    return found


@pytest.fixture(scope="module")
def cache():
    return {}


def test_methods_and_labels():
    names = method_names()
    assert names[:2] == ["full", "bias"] and len(names) == len(set(names)) >= 14
    assert {"pme", "frequency", "mde", "uniform", "magnitude", "hash", "qr", "tt", *FIXED} <= set(names)
    assert parse_method("low_precision+int4") == ("low_precision", 4)
    for wrong, message in (
        ("pme4", "method must be"),
        ("pme+4", "stands int8"),
        ("full+int4", "takes no bits"),
        ("hash+int4", "takes no bits"),
    ):
        with pytest.raises(TrainingError, match=message):
            parse_method(wrong)


LABELS = [
    *(name for name in method_names() if name not in REFERENCES),
    "pme+int4",
    "uniform+int8",
    "low_precision+int4",
]


@pytest.mark.parametrize("label", LABELS)
def test_every_method(label, data, full_bytes, cache):
    name, bits = parse_method(label)
    budget = None if name in FIXED else full_bytes // 3
    row = run_cell(data, "deepfm", name, budget, 0, CONFIG, bits, cache=cache)
    assert row["status"] == "done" and row["label"] == label, row.get("reason")
    assert row["bytes"] <= (full_bytes if budget is None else budget)
    assert row["ratio"] == full_bytes / row["bytes"] and 0.3 < row["auc"] < 1 and 0 < row["logloss"] < 2
    for figure in ("search_seconds", "epoch_seconds", "state_bytes", "lookup_ms", "search_epochs"):
        assert row[figure] is not None and row[figure] >= 0, figure
    assert row["lookup_table"] == "embeddings.f0" and row["stage"] in ("before", "during", "after")
    if row["sizes"] is not None and name in ("pme", "frequency", "uniform"):
        assert sum(row["sizes"]["histogram"].values()) == sum(field.num_tokens for field in data.fields)
        assert sum(entry["tokens"] for entry in row["sizes"]["by_count"]) == 408
    assert (row["sizes"] is None) == (name in ("hash", "qr", "tt", "robe", "dhe", "magnitude", "pep"))


def test_references(data, full_bytes, cache):
    full = run_cell(data, "deepfm", "full", None, 0, CONFIG, cache=cache)
    assert full["bytes"] == full_bytes and full["ratio"] == 1 and full["search_seconds"] is None
    bias = run_cell(data, "deepfm", "bias", None, 0, CONFIG)
    assert bias["bytes"] * 9 == full_bytes and bias["ratio"] == 9 and bias["lookup_table"] == "linear.f0"


def figures(row):
    return {name: value for name, value in row.items() if not any(word in name for word in MEASURED) and name != "plan"}


@pytest.mark.parametrize("label", ["full", "int4", "magnitude", "pme", "sseds", "frequency+int4"])
def test_cache_and_folder_change_nothing(label, data, full_bytes, cache, tmp_path):
    (name, bits), budget = parse_method(label), full_bytes // 3
    plain = run_cell(data, "deepfm", name, budget, 0, CONFIG, bits)
    assert figures(run_cell(data, "deepfm", name, budget, 0, CONFIG, bits, cache=cache)) == figures(plain)
    for part in ("plans", "checkpoints"):
        (tmp_path / part).mkdir()
    first = run_cell(data, "deepfm", name, budget, 0, CONFIG, bits, folder=tmp_path)
    again = run_cell(data, "deepfm", name, budget, 0, CONFIG, bits, folder=tmp_path)  # from its plan and checkpoints
    assert figures(first) == figures(again) == figures(plain)
    for file in (tmp_path / "checkpoints").iterdir():
        file.unlink()
    assert figures(run_cell(data, "deepfm", name, budget, 0, CONFIG, bits, folder=tmp_path)) == figures(plain)
    assert name == "full" or (tmp_path / first["plan"]).exists()
    assert again["search_peak_bytes"] == first["search_peak_bytes"]


def test_seeds_differ(data, full_bytes):
    rows = [run_cell(data, "deepfm", "uniform", full_bytes // 3, seed, CONFIG) for seed in (0, 1)]
    assert rows[0]["auc"] != rows[1]["auc"]


def test_out_of_reach_is_a_row(data):
    row = run_cell(data, "deepfm", "int4", 100, 0, CONFIG)
    assert row["status"] == "unreachable" and row["minimum"] > 100 and "auc" not in row and "100" in row["reason"]


@pytest.mark.parametrize("model", [name for name in MODELS if name not in ("deepfm", "bias")])
def test_every_model(model, data):
    config = default_config(model, embedding_dim=8, epochs=1, batch_size=500)
    budget = full_table_bytes(data, model, config) // 4
    row = run_cell(data, model, "frequency", budget, 0, config)
    assert row["status"] == "done" and row["bytes"] <= budget and math.isfinite(row["logloss"])


@pytest.mark.parametrize("optimizer", ["sparse_adamw", "rowwise_adagrad"])
def test_row_optimizers(optimizer, data, full_bytes):
    config = FitConfig.from_dict({**CONFIG.to_dict(), "optimizer": optimizer})
    dense = run_cell(data, "deepfm", "uniform", full_bytes // 3, 0, CONFIG)
    row = run_cell(data, "deepfm", "uniform", full_bytes // 3, 0, config)
    assert row["status"] == "done" and row["auc"] > 0.4
    assert row["state_bytes"] < dense["state_bytes"]  # no dense gradient


def test_a_search_by_gradients_takes_less_than_an_epoch(data, full_bytes, tmp_path):
    from graphlossy.recsys.plan import EmbeddingPlan

    (tmp_path / "plans").mkdir()
    (tmp_path / "checkpoints").mkdir()
    batches = {}
    for limit in (None, 2):
        for name in ("pme", "frequency", "pep"):
            config = FitConfig.from_dict({**CONFIG.to_dict(), "epochs": 1, "search_batches": limit})
            row = run_cell(data, "deepfm", name, full_bytes // 3, 0, config, folder=tmp_path)
            batches[limit, name] = EmbeddingPlan.load(tmp_path / row["plan"]).batches
            for file in (tmp_path / "checkpoints").iterdir():
                file.unlink()
    assert batches[None, "pme"] == 3 and batches[None, "frequency"] == 5  # of the 5 batches of an epoch
    assert batches[2, "pme"] == batches[2, "frequency"] == 2 and batches[2, "pep"] == batches[None, "pep"]


def test_popular_tokens_get_wider_rows(data, full_bytes):
    row = run_cell(data, "deepfm", "frequency", full_bytes // 3, 0, CONFIG)
    means = [entry["mean_size"] for entry in row["sizes"]["by_count"]]
    assert means == sorted(means) and means[-1] > means[0]


def test_training_goes_on_after_a_stop_in_the_middle(data, full_bytes, tmp_path, monkeypatch):
    for part in ("plans", "checkpoints"):
        (tmp_path / part).mkdir()
    seen = []

    def stop(line):
        seen.append(line["epoch"])
        if len(seen) == 2:
            raise KeyboardInterrupt

    config = FitConfig.from_dict({**CONFIG.to_dict(), "epochs": 3, "patience": 0})
    monkeypatch.setattr("time.monotonic", iter(range(0, 10**6, 60)).__next__)  # every epoch writes a checkpoint
    with pytest.raises(KeyboardInterrupt):
        run_cell(data, "deepfm", "pme", full_bytes // 3, 0, config, folder=tmp_path, on_epoch=stop)
    rest = []
    row = run_cell(data, "deepfm", "pme", full_bytes // 3, 0, config, folder=tmp_path, on_epoch=rest.append)
    assert [line["epoch"] for line in rest] == [1, 2, 3] and rest[0]["seconds"] > 0
    assert figures(row) == figures(run_cell(data, "deepfm", "pme", full_bytes // 3, 0, config))


def test_loss_that_is_not_finite(data):
    broken = zipf(rows=600, vocab=(30, 20), floats=1)
    broken.train.columns["x0"][:] = math.nan
    with pytest.raises(TrainingError, match="became nan in epoch 1; lower the learning rate .*NaN in the float fields"):
        run_cell(broken, "deepfm", "full", None, 0, CONFIG)


def test_without_token_fields_there_is_nothing_to_be_smaller_than():
    numbers = zipf(rows=600, vocab=(30,), floats=2)
    numbers.fields = tuple(field for field in numbers.fields if field.kind == "float")
    row = run_cell(numbers, "wide_deep", "full", None, 0, CONFIG)
    assert (row["full_bytes"], row["bytes"], row["ratio"]) == (0, 0, 1.0)


def test_nothing_outlives_a_cell(data, full_bytes):
    state = torch.get_rng_state()
    run_cell(data, "deepfm", "pep", full_bytes // 3, 0, CONFIG)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("part", "words"), [("valid", "validation"), ("test", "test")])
def test_a_split_with_one_label_is_refused_before_training(data, part, words):
    rows = getattr(data, part)
    alone = rows.columns["label"] == 1
    columns = {name: values[alone] for name, values in rows.columns.items()}
    label = columns.pop("label")
    lacking = replace(data, **{part: type(rows)(columns, label)})
    lines = []
    with pytest.raises(TrainingError, match=f"the {len(label)} {words} rows of .* have only the label 1"):
        run_cell(lacking, "deepfm", "full", None, 0, CONFIG, on_epoch=lines.append)
    assert not lines


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_rounding_in_training_depends_on_the_seed_alone(data, optimizer):
    config = replace(CONFIG, optimizer=optimizer)
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        row = run_cell(data, "fm", "low_precision", None, 0, replace(config, model_options={}), 4)
        found.append((row["auc"], row["logloss"]))
    assert found[0] == found[1]
    other = run_cell(data, "fm", "low_precision", None, 1, replace(config, model_options={}), 4)
    assert (other["auc"], other["logloss"]) != found[0]


def test_a_damaged_plan_says_what_to_do(data, tmp_path):
    for name in ("plans", "checkpoints"):
        (tmp_path / name).mkdir()
    run_cell(data, "deepfm", "uniform", 9000, 0, CONFIG, folder=tmp_path)
    (file,) = (tmp_path / "plans").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(TrainingError, match=f"{file.name} is truncated.*; remove it to search anew$"):
        run_cell(data, "deepfm", "uniform", 9000, 0, CONFIG, folder=tmp_path)


PEAKS = """
from graphlossy.recsys.data import zipf
from graphlossy.recsys.train import FitConfig, run_cell
data, config = zipf(rows=3000, vocab=(300, 100)), FitConfig(epochs=1)
print(*(run_cell(data, "deepfm", "full", None, 0, config)["peak_bytes"] for _ in range(2)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are reset on Linux")
def test_the_first_peak_of_a_process_is_like_the_second():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PEAKS], env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    first, second = map(int, done.stdout.split())
    assert first < second + 6 * 2**20  # what a process does once, imports above all, takes 15 MiB
