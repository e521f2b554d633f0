"""FuxiCTR: an optimizer made by the constructor, a penalty on everything under the embeddings, shared sequences."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("fuxictr.pytorch.models", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_thread")
_spec = importlib.util.spec_from_file_location("framework_checks", Path(__file__).with_name("framework_checks.py"))
checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)
pipeline = checks.example("fuxictr")


@pytest.mark.parametrize("method", ["pme", "frequency"])
def test_deepfm(method: str) -> None:
    report = checks.check(pipeline, method, match="embedding_layer.*")
    assert [(table.num_embeddings, len(table.aliases)) for table in report.tables] == [(1000, 0), (2000, 1)]
    assert report.notes == ("Adam: 2 parameters replaced",)


def test_the_optimizer_of_the_constructor_and_the_penalty_follow() -> None:
    model = pipeline.build()
    checks.compress_embeddings(model, pipeline.batches(model), pipeline.loss_fn, "uniform", "1/4", progress=False)
    held = [id(param) for group in model.optimizer.param_groups for param in group["params"]]
    assert sorted(held) == sorted(id(param) for param in model.parameters())
    model.regularization_loss().backward()
    assert all(param.grad is not None for param in model.embedding_layer.parameters())


def test_padding_of_a_sequence_stays_out() -> None:
    model = pipeline.build().eval()
    checks.compress_embeddings(model, pipeline.batches(model), pipeline.loss_fn, "uniform", "1/4", progress=False)
    batch = {name: values[:1].clone() for name, values in pipeline.clicks(8).items()}
    table = model.embedding_layer.embedding_layer.embedding_layers["history"]
    assert table.padding_idx == 0 and table is model.embedding_layer.embedding_layer.embedding_layers["item"]
    assert not table(batch["history"] * 0).any()
