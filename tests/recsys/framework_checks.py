"""What is checked of every framework: its example is the pipeline, compressed by two methods."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from graphlossy.recsys.base import BagOf, CompressedEmbedding
from graphlossy.recsys.compress import CompressionReport, apply_plan, compress_embeddings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    """``examples/recsys_<name>.py`` as a module."""
    spec = importlib.util.spec_from_file_location(f"recsys_{name}_example", EXAMPLES / f"recsys_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(pipeline: ModuleType, method: str, *build: Any, falls: float = 0.98, **options: Any) -> CompressionReport:
    """Compresses a model of the pipeline to a quarter, trains it as the framework does and loads it again."""
    torch.manual_seed(0)
    model = pipeline.build(*build)
    fresh = copy.deepcopy(model)
    batches = pipeline.batches(model)
    dense = {
        id(m.weight): m.weight.numel() * 4 for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
    }
    names = set(model.state_dict())

    report = compress_embeddings(
        model, batches, pipeline.loss_fn, method, "1/4", seed=0, min_tokens=50, progress=False, **options
    )
    tables = {id(m): m for m in model.modules() if isinstance(m, CompressedEmbedding)}.values()
    assert len(tables) == len(report.tables) > 0
    assert sum(table.nbytes for table in tables) == report.final_bytes <= report.plain_bytes // 4
    saved = {id(t): t.numel() * t.element_size() for t in model.state_dict(keep_vars=True).values()}
    assert sum(saved.values()) <= sum(dense.values()) - report.plain_bytes + report.final_bytes + _rest(fresh, dense)
    assert not names & {f"{table.name}.weight" for table in report.tables} & set(model.state_dict())

    before = [param.detach().clone() for table in tables for param in table.parameters()]
    losses = pipeline.train(model)
    assert all(loss == loss and abs(loss) < float("inf") for loss in losses) and losses[-1] < falls * losses[0]
    after = [param for table in tables for param in table.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a table was not trained"

    apply_plan(fresh, report.plan)
    fresh.load_state_dict(model.state_dict())
    model.eval(), fresh.eval()
    with torch.no_grad():
        loss = pipeline.loss_fn(model, batches[0])
        assert torch.isfinite(loss) and torch.equal(loss, pipeline.loss_fn(fresh, batches[0]))
    return report


def _rest(model: nn.Module, dense: dict[int, int]) -> int:
    """Bytes of everything that is saved and no table."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    rest = {
        id(t): t.numel() * t.element_size() for t in model.state_dict(keep_vars=True).values() if id(t) not in tables
    }
    return sum(rest.values())


def compressed(module: nn.Module) -> bool:
    """Whether a module took a table's place."""
    return isinstance(module, CompressedEmbedding | BagOf)
