"""Which small sizes to probe for given real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Design", "batch_design", "graph_design"]

# Above the 4,096 elements below which `compress` keeps a tensor as it is. Multiples of 512 stay multiples of 256, the
# elements of a group, when they grow by half; so padding adds nothing that is not affine.
STEP = 512
NODES = 9 * STEP
MOST_EDGES_PER_NODE = 1.25  # messages are the dearest part of a probe
LEAST_EDGES_PER_NODE = 0.25
MOST_FEATURE_ELEMENTS = 2**26


@dataclass(frozen=True)
class Design:
    """Sizes at which to probe.

    Attributes:
        varied: sizes that differ between probes; the others are the real ones.
        probes: one more than ``varied``, not collinear.
        check: another probe, on which the forecast is compared with the truth.
    """

    varied: tuple[str, ...]
    probes: tuple[dict[str, int], ...]
    check: dict[str, int] | None


def graph_design(target: Mapping[str, int], num_features: int) -> Design:
    """Probes for a graph: as many edges per node as in ``target``, within limits.

    Whether there are more edges than nodes, and more nodes than training nodes, is as in ``target`` in every probe.
    """
    start = NODES
    while start > 2 * STEP and start * num_features > MOST_FEATURE_ELEMENTS:
        start -= STEP
    nodes, edges = target["nodes"], target["edges"]
    ratio = min(max(edges / nodes, LEAST_EDGES_PER_NODE), MOST_EDGES_PER_NODE)
    base = {"nodes": start if ratio >= 1 else _whole(start / ratio)}
    if nodes <= 2 * base["nodes"]:
        base["nodes"] = nodes
    base["edges"] = max(start, _whole(base["nodes"] * ratio))
    if edges > nodes:  # rounding must not make them equal
        base["edges"] = max(base["edges"], _whole(base["nodes"] + 1))
    if edges <= 2 * base["edges"]:
        base["edges"] = edges
    if "train_nodes" in target:
        # Not as large a share as in `target`, but as many that their indices are above the threshold too.
        most = min(base["nodes"], max(start, _whole(base["nodes"] * target["train_nodes"] / nodes)))
        base["train_nodes"] = min(target["train_nodes"], most)
    return _design(target, base)


def batch_design(target: Mapping[str, int], base: int) -> Design:
    """Probes for a batch of examples, the smallest of about ``base``."""
    base = -(-base // 8) * 8
    return _design(target, {"batch": target["batch"] if target["batch"] <= 2 * base else base})


def _design(target: Mapping[str, int], base: Mapping[str, int]) -> Design:
    # The largest grows first, so that the order of the sizes stays the same.
    varied = sorted((name for name in base if base[name] != target[name]), key=lambda name: -base[name])
    if not varied:
        return Design((), (dict(base),), None)
    probes = [{**base, **_grown(base, varied[:count], [1.5] * count)} for count in range(len(varied) + 1)]
    check = {**base, **_grown(base, varied, [2.0] * len(varied))}  # every size is one that no probe had
    return Design(tuple(varied), tuple(probes), check)


def _grown(base: Mapping[str, int], names: Sequence[str], factors: Sequence[float]) -> dict[str, int]:
    return {name: round(base[name] * factor) for name, factor in zip(names, factors, strict=False)}


def _whole(size: float) -> int:
    return max(1, round(size / STEP)) * STEP
