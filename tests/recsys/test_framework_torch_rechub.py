"""torch-rechub: modules kept by feature objects, penalties by torch's classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torch_rechub", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_thread")
_spec = importlib.util.spec_from_file_location("framework_checks", Path(__file__).with_name("framework_checks.py"))
checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)
pipeline = checks.example("torch_rechub")


@pytest.mark.parametrize("method", ["pme", "frequency"])
@pytest.mark.parametrize("name", ["deepfm", "dssm"])
def test_models(method: str, name: str) -> None:
    report = checks.check(pipeline, method, name)
    assert sorted(table.num_embeddings for table in report.tables) == [1000, 2000]
    assert [note for note in report.notes if "regularize(trainer)" not in note] == []


def test_feature_objects_hold_the_new_tables() -> None:
    model = pipeline.build()
    old = model.embedding.embed_dict["user"]
    checks.compress_embeddings(model, pipeline.batches(model), pipeline.loss_fn, "uniform", "1/4", progress=False)
    new = model.embedding.embed_dict["user"]
    assert new is not old
    held = [f.get_embedding_layer() for f in (*model.deep_features, *model.fm_features) if f.name == "user"]
    assert held and all(table is new for table in held)


def test_penalties_count_compressed_tables_as_embeddings() -> None:
    from torch_rechub.basic.loss_func import RegularizationLoss

    from graphlossy.recsys.frameworks.torch_rechub import EmbeddingPenalty, regularize

    model = pipeline.build()
    plain = RegularizationLoss(embedding_l1=0.5, embedding_l2=0.25, dense_l1=0.125, dense_l2=0.0625)
    with torch.no_grad():
        assert float(EmbeddingPenalty(plain)(model)) == pytest.approx(float(plain(model)))
    checks.compress_embeddings(model, pipeline.batches(model), pipeline.loss_fn, "uniform", "1/4", progress=False)
    rows = [p for table in model.embedding.embed_dict.values() for p in table.parameters()]
    only = nn.Module()
    only.embed = model.embedding
    with torch.no_grad():
        assert float(EmbeddingPenalty(RegularizationLoss(dense_l1=1.0, dense_l2=1.0))(only)) == 0
        want = sum(0.5 * p.abs().sum() + 0.25 * p.square().sum() for p in rows)
        assert float(EmbeddingPenalty(plain)(only)) == pytest.approx(float(want), rel=1e-5)
    trainer = type("Trainer", (), {"reg_loss_fn": plain})()
    regularize(trainer)
    regularize(trainer)
    assert trainer.reg_loss_fn.penalty is plain
    with pytest.raises(TypeError, match="must be one of torch-rechub with a reg_loss_fn, got int"):
        regularize(3)
