"""RecBole: models that read ``embedding.weight`` whole, on the data its wheel ships."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

# It was written for numpy 1, pandas 2 and older torch, whose names it goes on using.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:Warning:recbole"),
]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("recbole", exc_type=ImportError)
    for needed in ("texttable", "colorlog", "tensorboard"):
        pytest.importorskip(needed, exc_type=ImportError)
    _spec = importlib.util.spec_from_file_location("framework_checks", Path(__file__).with_name("framework_checks.py"))
    checks = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(checks)
    pipeline = checks.example("recbole")
pipeline.FILTER = {"user_inter_num_interval": "[250,inf)", "train_batch_size": 1024}

TABLES = {
    "BPR": ["user_embedding", "item_embedding"],
    "LightGCN": ["user_embedding", "item_embedding"],
    "SASRec": ["item_embedding"],
}


@pytest.mark.parametrize("method", ["pme", "frequency"])
@pytest.mark.parametrize("name", list(TABLES))
def test_models(method: str, name: str) -> None:
    report = checks.check(pipeline, method, name)
    assert [table.name for table in report.tables] == TABLES[name]


@pytest.mark.parametrize("name", ["BPR", "LightGCN"])
def test_ranking_all_items_reads_the_whole_weight(name: str) -> None:
    model = pipeline.build(name)
    batches = pipeline.batches(model)
    checks.compress_embeddings(model, batches, pipeline.loss_fn, "pme", "1/4", seed=0, progress=False)
    model.eval()
    users = batches[0]["user_id"][:4]
    with torch.no_grad():
        every = torch.arange(model.n_items)
        scores = model.full_sort_predict({"user_id": users}).view(4, -1)
        for row, user in zip(scores, users, strict=True):
            one = model.predict({"user_id": user.expand(model.n_items), "item_id": every})
            torch.testing.assert_close(row, one)


def test_a_loss_on_the_whole_weight_trains_the_rows() -> None:
    model = pipeline.build("BPR")
    batches = pipeline.batches(model)
    checks.compress_embeddings(model, batches, pipeline.loss_fn, "uniform", "1/4", seed=0, progress=False)
    model.item_embedding.weight.norm(2).backward()
    assert all(param.grad is not None and param.grad.any() for param in model.item_embedding.parameters())
