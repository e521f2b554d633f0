"""``graphlossy.plan``: what will fit, before anything of full size runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from graphlossy._plan._batch import BatchInputs
from graphlossy._plan._predict import Predictor
from graphlossy._plan._probe import Forward, batch_loss, graph_loss, make_graph
from graphlossy._plan._result import Plan, Row
from graphlossy._plan._schemes import DEFAULT_SCHEMES, FLOAT32, Scheme, checkpointable, parse_scheme
from graphlossy._plan._shapes import as_shapes
from graphlossy._plan._sizes import Design, batch_design, graph_design

__all__ = ["plan"]

_STATES = {"adam": 2, "momentum": 1, "sgd": 0}  # numbers kept by the optimizer for each weight
_PILOT = 4
_PROBE_BYTES = 48 * 2**20
_SMALLEST_BATCH, _LARGEST_BATCH = 8, 4096


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
    for and evaluated at the real sizes; inputs that are small themselves are run as they are. The model, its
    gradients and torch's generators stay as they are. Scratch memory inside single kernels is not counted.

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
        schemes: names such as ``"compress 2 bits"`` or ``"bf16 autocast + checkpoint"``; by default float32, bf16
            autocast, checkpointing of each layer, and 8, 4, 2 and 1 bits. float32 is always there.
        adj: how the model is given the graph: ``"edge_index"``, or ``"csr"`` for a sparse CSR ``adj_t``.
        route: as in :func:`graphlossy.compress`.
        optimizer: ``"adam"``, ``"momentum"`` or ``"sgd"``: the size of its state.
        seed: of the probes.

    Raises:
        TypeError: ``model`` is no module, or a size no number.
        ValueError: sizes are missing or out of range, a scheme is unknown, the model fails on a probe, or its memory
            does not grow in proportion to the sizes.

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
    numbers = {
        "num_nodes": num_nodes, "num_edges": num_edges, "num_features": num_features, "num_classes": num_classes,
        "num_train_nodes": num_train_nodes,
    }  # fmt: skip
    chosen = _chosen(model, schemes)
    first = next(iter(model.parameters()), None)
    if first is None or not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"model: {type(model).__name__} has no weights to train, so nothing is saved for them")
    device = first.device
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    data: Callable[[Mapping[str, int]], dict[str, int]]
    if inputs is not None:
        given = [name for name, value in {"shapes": shapes, **numbers}.items() if value is not None]
        if given:
            raise ValueError(f"inputs is for models without a graph; leave out {', '.join(given)}")
        batch = BatchInputs(inputs)
        sizes = {"batch": batch.batch}
        predictor = Predictor(model, lambda s: batch.make(s["batch"], dtype, device, seed), forward or batch_loss,
                              route, seed, device)  # fmt: skip
        pilot = predictor.trace(FLOAT32, {"batch": min(batch.batch, _PILOT)}).peak_bytes
        base = min(max(_PILOT * _PROBE_BYTES // max(pilot, 1), _SMALLEST_BATCH), _LARGEST_BATCH)

        def design(s: Mapping[str, int]) -> Design:
            return batch_design(s, base)

        def data(s: Mapping[str, int]) -> dict[str, int]:
            return {"inputs": batch.nbytes(s["batch"])}
    else:
        graph = as_shapes(shapes, **numbers)
        sizes = graph.sizes()
        predictor = Predictor(model, lambda s: make_graph(graph, s, adj, dtype, device, seed), forward or graph_loss,
                              route, seed, device)  # fmt: skip

        def design(s: Mapping[str, int]) -> Design:
            return graph_design(s, graph.num_features)

        def data(s: Mapping[str, int]) -> dict[str, int]:
            return graph.data_bytes(s, adj)

    fixed = {**_weight_bytes(model, _STATES[optimizer], optimizer), **data(sizes)}
    rows: list[Row] = []
    for scheme in chosen:
        forecast = predictor.forecast(scheme, design(sizes))
        saved, peak = forecast.saved_bytes(sizes), forecast.peak_bytes(sizes)
        base_row = rows[0] if rows else None
        rows.append(
            Row(
                scheme=scheme.name,
                saved_bytes=saved,
                peak_bytes=peak,
                cached_bytes=forecast.cached_bytes(sizes),
                fixed_bytes=sum(fixed.values()),
                ratio=base_row.saved_bytes / max(saved, 1) if base_row else 1.0,
                peak_ratio=base_row.peak_bytes / max(peak, 1) if base_row else 1.0,
                gradient=forecast.gradient,
            )
        )
    by_name = {scheme.name: scheme for scheme in chosen}
    model_bytes = sum(_weight_bytes(model, _STATES[optimizer], optimizer).values())

    def total_at(name: str, at: Mapping[str, int]) -> int:
        # The probes of a large input, whatever the size of this one: the search evaluates one forecast at many sizes.
        whole = {key: size * 10**6 for key, size in sizes.items()}
        return predictor.forecast(by_name[name], design(whole)).peak_bytes(at) + model_bytes + sum(data(at).values())

    return Plan(tuple(rows), sizes, fixed, total_at)


def _chosen(model: nn.Module, schemes: Sequence[str | Scheme] | None) -> list[Scheme]:
    if isinstance(schemes, (str, Scheme)):
        schemes = [schemes]
    wanted = [parse_scheme(scheme) for scheme in (DEFAULT_SCHEMES if schemes is None else schemes)]
    if not checkpointable(model):
        if schemes is not None and any(scheme.checkpointed for scheme in wanted):
            raise ValueError(
                f"schemes: {type(model).__name__} has no Sequential or ModuleList of layers that could be checkpointed"
            )
        wanted = [scheme for scheme in wanted if not scheme.checkpointed]
    return list(dict.fromkeys([FLOAT32, *wanted]))


def _weight_bytes(model: nn.Module, states: int, optimizer: str) -> dict[str, int]:
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    return {"weights": weights, "gradients": trained, f"{optimizer} state": states * trained}
