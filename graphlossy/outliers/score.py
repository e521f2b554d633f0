"""Scores of the nodes of a user's own graph, and the file they are written to."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphlossy.core._files import replace_file
from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.grid import check_engine
from graphlossy.outliers.runner.methods import check_names, check_options, find_method

__all__ = ["ENDINGS", "score", "write_scores"]

ENDINGS = (".csv", ".npy", ".json")


def score(
    data: Any,
    method: str | type = "dominant",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    engine: str = "native",
    root: str | Path | None = None,
) -> Any:
    """Fits a method to a graph; labels are not needed and not read.

    Args:
        data: PyG ``Data`` with x [N, F] and edge_index [2, E], or a name or path that ``graphlossy.outliers`` loads.
        method: key, ``"package.module:Class"``, or class.
        options: constructor arguments, beside the published defaults for a data set of that name.
        seed: of the method, and of what is drawn to make a graph that is given by name.
        engine: whose implementation.
        root: folder of the data sets.

    Returns:
        The fitted detector: ``decision_score_`` [N], higher is more outlying; ``threshold_`` and ``label_``.

    Raises:
        BenchmarkError: there is no such method, or it has no such option.
        ValueError, TypeError, OSError: the graph cannot be had or used.

    Example:
        >>> from torch_geometric.data import Data
        >>> star = Data(x=torch.eye(4), edge_index=torch.tensor([[0, 0, 0], [1, 2, 3]]))
        >>> int(score(star, "degree").decision_score_.argmax())
        0
    """
    from torch_geometric.data import Data

    if isinstance(data, (str, Path)):
        from graphlossy.outliers.data import load

        data = load(str(data), root=root, seed=seed)
    check_engine(engine)
    found, options = find_method(method, engine), dict(options or {})
    check_options(options)
    check_names(found, options)
    params = {**found.cls.fixed(str(getattr(data, "name", None) or "")), **options}
    if engine == "native":
        detector = found.cls(**params, seed=seed)
    else:
        from graphlossy.outliers import engines

        detector = engines.make(engine, found.name, params, seed)
    graph = Data(x=getattr(data, "x", None), edge_index=getattr(data, "edge_index", None), num_nodes=data.num_nodes)
    return detector.fit(graph)


def write_scores(path: str | Path, detector: Any, about: Mapping[str, Any] | None = None) -> None:
    """Writes the scores of a fitted detector, whole or not at all.

    ``.csv``: columns node, score, label (1 where the score is above the threshold). ``.npy``: the scores, [N].
    ``.json``: scores, labels, threshold and ``about``.

    Raises:
        BenchmarkError: the ending is another, or the file cannot be written.
    """
    path = Path(path)
    scores = np.asarray(torch.as_tensor(detector.decision_score_).detach().cpu())
    labels = np.asarray(torch.as_tensor(detector.label_).detach().cpu()).astype(int)
    ending = check_ending(path)
    try:
        if ending == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, scores)
            replace_file(path, buffer.getvalue())
        elif ending == ".json":
            content = {
                **dict(about or {}),
                "threshold": float(detector.threshold_),
                "scores": scores.tolist(),
                "labels": labels.tolist(),
            }
            replace_file(path, (json.dumps(content, allow_nan=False) + "\n").encode())
        else:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["node", "score", "label"])
            writer.writerows(zip(range(len(scores)), map(repr, scores.tolist()), labels.tolist(), strict=True))
            replace_file(path, text.getvalue().encode())
    except OSError as error:
        raise BenchmarkError(f"cannot write {path}: {error.strerror or error}") from None


def check_ending(path: str | Path) -> str:
    """The ending of a file of scores.

    Raises:
        BenchmarkError: it is none of ``ENDINGS``, or there is no such folder.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise BenchmarkError(f"a file of scores ends in {', '.join(ENDINGS)}; got {str(path)!r}")
    if not Path(path).absolute().parent.is_dir():
        raise BenchmarkError(f"cannot write {path}: there is no folder {Path(path).parent}")
    return ending
