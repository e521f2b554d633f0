"""``graphlossy.plan``: what will fit, before anything of full size runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from graphlossy._plan._batch import BatchInputs
from graphlossy._plan._budget import BudgetForecast
from graphlossy._plan._fit import Forecast
from graphlossy._plan._predict import Predictor
from graphlossy._plan._probe import Forward, GraphInputs
from graphlossy._plan._result import Plan, Row
from graphlossy._plan._schemes import DEFAULT_SCHEMES, FLOAT32, Scheme, parse_scheme
from graphlossy._plan._shapes import as_shapes

__all__ = ["plan"]

_STATES = {"adam": 2, "momentum": 1, "sgd": 0}  # numbers kept by the optimizer for each weight


def plan(
    model: nn.Module,
    shapes: Any = None,
    *,
    num_nodes: int | None = None,
    num_edges: int | None = None,
    num_features: int | None = None,
    num_classes: int | None = None,
    num_train_nodes: int | None = None,
    inputs: Any = None,
    forward: Forward | None = None,
    schemes: Sequence[str | Scheme] | None = None,
    adj: str = "edge_index",
    route: bool = True,
    optimizer: str = "adam",
    seed: int = 0,
) -> Plan:
    """Predicts the bytes that training saves for the backward pass, and needs at its peak, scheme by scheme.

    A copy of the model takes training steps on a few random graphs (or batches) of some thousand nodes. Every saved
    tensor and every moment's memory is affine in the numbers of nodes, edges and training nodes, so it can be solved
    for and evaluated at the real sizes; inputs that are small themselves are run at their own size. The model, its
    gradients and the random generators stay as they are. Saved bytes are within 5 % of what training saves; the peak
    is that of all tensors alive, without scratch memory inside kernels and what the allocator holds back.

    Args:
        model: any ``torch.nn.Module``.
        shapes: a PyG ``Data``, a :class:`GraphShapes`, a dict of its fields, or the name of a data set of known size
            such as ``"ogbn-products"``.
        num_nodes: N; this and the next four take the place of ``shapes``, or change it.
        num_edges: E, columns of ``edge_index``.
        num_features: width of the node features.
        num_classes: classes.
        num_train_nodes: nodes whose loss is taken; all by default.
        inputs: for a model without a graph, instead of the above: an example tensor or a shape such as ``(512, 784)``,
            a list of these (arguments) or a dict (keyword arguments). The first dimension is the batch.
        forward: called with (model, probe), returns the loss; by default cross entropy of ``model(x, adj)`` over the
            training nodes. ``probe`` is a :class:`GraphProbe` or :class:`BatchProbe`.
        schemes: names such as ``"compress 2 bits"``, ``"budget 1.5GiB"`` or ``"bf16 autocast + checkpoint"``; by
            default float32, bf16 autocast, checkpointing (of members of ModuleLists and pieces of Sequentials), and
            8, 4, 2 and 1 bits. float32 (the model as it is) is always there. One that cannot be used with this model
            is named in ``left_out``, with the reason.
        adj: how the model is given the graph: ``"edge_index"``, or ``"csr"`` for a sparse CSR ``adj_t``.
        route: as in :func:`graphlossy.compress`.
        optimizer: ``"adam"``, ``"momentum"`` or ``"sgd"``: the size of its state.
        seed: of the probes.

    Raises:
        TypeError: ``model`` is no module, or a size no number.
        ValueError: sizes are missing or out of range, a scheme is unknown, the model has no weights, fails on a probe,
            or its memory does not grow in proportion to the sizes.

    Example:
        >>> import graphlossy
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> found = graphlossy.plan(model, inputs=(100_000, 64), schemes=["compress 2 bits"])
        >>> [row.scheme for row in found.rows]
        ['float32', 'compress 2 bits']
        >>> found["float32"].saved_bytes == 100_000 * (256 + 10) * 4 + 4
        True
        >>> found.fits("100MB")
        []
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if adj not in ("edge_index", "csr"):
        raise ValueError(f"adj must be 'edge_index' or 'csr', got {adj!r}")
    if optimizer not in _STATES:
        raise ValueError(f"optimizer must be one of {', '.join(_STATES)}, got {optimizer!r}")
    if forward is not None and not callable(forward):
        raise TypeError(f"forward must be a function of (model, probe), got {type(forward).__name__}")
    chosen = _chosen(schemes)
    device, dtype = _place(model)
    sizes_given = {
        "num_nodes": num_nodes, "num_edges": num_edges, "num_features": num_features, "num_classes": num_classes,
        "num_train_nodes": num_train_nodes,
    }  # fmt: skip
    source: GraphInputs | BatchInputs
    if inputs is None:
        source = GraphInputs(as_shapes(shapes, **sizes_given), adj, dtype, device, seed)
    else:
        given = [name for name, value in {"shapes": shapes, **sizes_given}.items() if value is not None]
        if given:
            raise ValueError(f"inputs is for models without a graph; leave out {', '.join(given)}")
        source = BatchInputs(inputs, dtype, device, seed)
    predictor = Predictor(model, source, forward, route, seed, device)
    weights = _weight_bytes(model, optimizer)
    fixed = {**weights, **source.data_bytes(source.sizes)}
    rows, left_out = _rows(predictor, chosen, source.sizes, sum(fixed.values()))
    by_name = {scheme.name: scheme for scheme in chosen}
    # The probes of a large input, whatever the size of this one: a search evaluates one forecast at many sizes.
    large = {name: size * 10**6 for name, size in source.sizes.items()}

    @functools.cache
    def forecast(name: str) -> Forecast | BudgetForecast:
        return predictor.forecast(by_name[name], large)

    def total_at(name: str, sizes: Mapping[str, int]) -> float:
        try:
            peak = forecast(name).peak_bytes(sizes)
        except ValueError:  # a budget that these sizes pass
            return math.inf
        return peak + sum(weights.values()) + sum(source.data_bytes(sizes).values())

    return Plan(tuple(rows), source.sizes, fixed, left_out, total_at)


def _chosen(schemes: Sequence[str | Scheme] | None) -> list[Scheme]:
    if isinstance(schemes, (str, Scheme)):
        schemes = [schemes]
    wanted = [parse_scheme(scheme) for scheme in (DEFAULT_SCHEMES if schemes is None else schemes)]
    return list(dict.fromkeys([FLOAT32, *wanted]))


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and element type of the weights."""
    parameters = list(model.parameters())
    if any(p.is_meta for p in parameters):
        raise ValueError(
            "model: its weights are on the meta device; give them memory with model.to_empty(device='cpu')"
        )
    if not any(p.requires_grad for p in parameters):
        raise ValueError(f"model: {type(model).__name__} has no weights to train, so nothing is saved for them")
    return parameters[0].device, next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def _rows(
    predictor: Predictor, chosen: Sequence[Scheme], sizes: Mapping[str, int], fixed: int
) -> tuple[list[Row], dict[str, str]]:
    """The schemes that run, float32 first, and why the others do not."""
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for scheme in chosen:
        try:
            forecast = predictor.forecast(scheme, sizes)
            saved, peak = forecast.saved_bytes(sizes), forecast.peak_bytes(sizes)
        except ValueError as error:
            if scheme == FLOAT32:
                raise
            left_out[scheme.name] = " ".join(str(error.__cause__ or error).split())
            continue
        plain = rows[0] if rows else None
        rows.append(
            Row(
                scheme=scheme.name,
                saved_bytes=saved,
                peak_bytes=peak,
                cached_bytes=forecast.cached_bytes(sizes),
                fixed_bytes=fixed,
                ratio=plain.saved_bytes / max(saved, 1) if plain else 1.0,
                peak_ratio=plain.peak_bytes / max(peak, 1) if plain else 1.0,
                gradient=forecast.gradient,
            )
        )
    return rows, left_out


def _weight_bytes(model: nn.Module, optimizer: str) -> dict[str, int]:
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    return {"weights": weights, "gradients": trained, f"{optimizer} state": _STATES[optimizer] * trained}
