"""pytorch-widedeep: a table for every column, whose parameters its trainer collects."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*:Warning:pytorch_widedeep"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),  # in its data loader
]


def _declare_operators() -> torch.library.Library | None:
    """Lets the package index's torchvision, made for CUDA, be imported beside a torch without: it looks for these."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return None
    except RuntimeError:
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + boxes)
        return library
    return None


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _library = _declare_operators()
    pytest.importorskip("pytorch_widedeep", exc_type=ImportError)
    _spec = importlib.util.spec_from_file_location("framework_checks", Path(__file__).with_name("framework_checks.py"))
    checks = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(checks)
    pipeline = checks.example("widedeep")


@pytest.mark.parametrize("method", ["pme", "frequency"])
def test_wide_and_deep(method: str) -> None:
    report = checks.check(pipeline, method, match="deeptabular.*")
    assert len(report.tables) == 2 and report.notes == ()
    assert [entry.reason for entry in report.left_alone] == ["its name does not match"]


def test_the_wide_table_of_width_one_is_compressed_too() -> None:
    model = pipeline.build()
    report = checks.compress_embeddings(model, pipeline.batches(model), pipeline.loss_fn, "pme", "1/4", progress=False)
    assert [table.embedding_dim for table in report.tables] == [1, 16, 16]
    assert model.wide.wide_linear.padding_idx == 0 and checks.compressed(model.wide.wide_linear)
    assert torch.isfinite(pipeline.loss_fn(model, pipeline.batches(model)[0]))
