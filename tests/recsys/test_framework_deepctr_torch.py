"""DeepCTR-Torch: tables shared by columns, penalties on lists of parameters, ids in a float matrix."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from graphlossy.recsys import MultiSizeEmbedding
from graphlossy.recsys.frameworks import deepctr_torch as adapter

with mock.patch.object(threading.Thread, "start", lambda self: None):  # it asks the network for a newer version
    pytest.importorskip("deepctr_torch", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_thread")
_spec = importlib.util.spec_from_file_location("framework_checks", Path(__file__).with_name("framework_checks.py"))
checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)
pipeline = checks.example("deepctr_torch")


@pytest.mark.parametrize("method", ["pme", "frequency"])
def test_deepfm(method: str) -> None:
    report = checks.check(pipeline, method, match="embedding_dict.*")
    assert [table.name for table in report.tables] == ["embedding_dict.user", "embedding_dict.item"]
    assert report.notes == ()
    reasons = {entry.reason for entry in report.left_alone if entry.name.startswith("linear_model")}
    assert reasons == {"its name does not match"}


def test_the_penalty_is_on_the_new_parameters() -> None:
    model = pipeline.build()
    dense = {id(table.weight) for table in model.embedding_dict.values()}
    checks.compress_embeddings(model, pipeline.batches(model), pipeline.loss_fn, "uniform", "1/4", progress=False)
    penalised = [
        id(param) for params, _, _ in model.regularization_weight for param in params if not isinstance(param, tuple)
    ]
    assert not dense & set(penalised)
    assert {id(param) for param in model.embedding_dict.parameters()} <= set(penalised)
    assert len(penalised) == len(set(penalised))
    before = model.get_regularization_loss()
    with torch.no_grad():
        for param in model.embedding_dict.parameters():
            param.mul_(2)
    assert float(model.get_regularization_loss().detach()) > float(before.detach())


def test_ids_that_a_float_cannot_hold_are_reported() -> None:
    wide = MultiSizeEmbedding(2**24 + 1, 2, sizes=0)
    wide.name = "embedding_dict.user"
    (note,) = adapter.notes_on(nn.ModuleDict({"user": wide, "item": MultiSizeEmbedding(100, 2, sizes=1)}))
    assert note.startswith("embedding_dict.user: DeepCTR-Torch carries ids as float32, which is exact up to 16,777,216")
