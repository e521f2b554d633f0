"""Unsupervised outlying nodes: detectors, injected outliers with their leaks, and the benchmark over them.

Detectors have PyGOD's vocabulary; their memory is linear in the graph but where they say otherwise (docs/outliers.md).

>>> from graphlossy.outliers import DOMINANT, leak_report, load
>>> data = load("synth_200")
>>> DOMINANT(hid_dim=8, epoch=2, seed=0).fit(data).decision_score_.shape
torch.Size([200])
>>> leak_report(data)["all"]["maxrank"] > 0.7  # found without a model
True
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the file it lives in; imported when it is first asked for, so that one detector does not load them all.
_HOME = {
    "Detector": "_base",
    "Graph": "_checks",
    "prepare": "_checks",
    "DeepDetector": "_deep",
    "find": "data",
    "labels": "data",
    "load": "data",
    "names": "data",
    "save_npz": "data",
    "types": "data",
    "inject": "injection",
    "inject_contextual": "injection",
    "inject_contextual_norm_matched": "injection",
    "inject_structural": "injection",
    "inject_structural_degree_preserving": "injection",
    "leak_report": "leak",
    "model_free_scores": "leak",
    "ANOMALOUS": "methods",
    "AdONE": "methods",
    "AnomalyDAE": "methods",
    "CONAD": "methods",
    "CoLA": "methods",
    "DOMINANT": "methods",
    "DONE": "methods",
    "Degree": "methods",
    "FeatureCopies": "methods",
    "FeatureNorm": "methods",
    "GAAN": "methods",
    "GCNAE": "methods",
    "GUIDE": "methods",
    "IsolationForest": "methods",
    "LOF": "methods",
    "METHODS": "methods",
    "MLPAE": "methods",
    "MaxRank": "methods",
    "OCGNN": "methods",
    "Radar": "methods",
    "RandomScore": "methods",
    "SCAN": "methods",
    "make_method": "methods",
    "average_precision": "metrics",
    "evaluate": "metrics",
    "recall_at_k": "metrics",
    "roc_auc": "metrics",
    "BenchmarkError": "runner",
    "Observer": "runner",
    "Results": "runner",
    "benchmark": "runner",
    "dense_structure_error": "structure",
    "sampled_structure_error": "structure",
    "structure_error": "structure",
}

__all__ = [
    "ANOMALOUS",
    "AdONE",
    "AnomalyDAE",
    "BenchmarkError",
    "CONAD",
    "CoLA",
    "DOMINANT",
    "DONE",
    "DeepDetector",
    "Degree",
    "Detector",
    "FeatureCopies",
    "FeatureNorm",
    "GAAN",
    "GCNAE",
    "GUIDE",
    "Graph",
    "IsolationForest",
    "LOF",
    "METHODS",
    "MLPAE",
    "MaxRank",
    "OCGNN",
    "Observer",
    "Radar",
    "RandomScore",
    "Results",
    "SCAN",
    "average_precision",
    "benchmark",
    "dense_structure_error",
    "engines",
    "evaluate",
    "find",
    "inject",
    "inject_contextual",
    "inject_contextual_norm_matched",
    "inject_structural",
    "inject_structural_degree_preserving",
    "labels",
    "leak_report",
    "load",
    "make_method",
    "model_free_scores",
    "names",
    "prepare",
    "recall_at_k",
    "roc_auc",
    "sampled_structure_error",
    "save_npz",
    "structure_error",
    "types",
]


def __getattr__(name: str) -> Any:
    if name == "engines":
        return importlib.import_module("graphlossy.outliers.engines")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"graphlossy.outliers.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
