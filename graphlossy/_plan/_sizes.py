"""Which small sizes to probe for given real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PILOT_NODES", "Design", "batch_design", "graph_design", "graph_pilot"]

# Above the 4,096 elements below which `compress` keeps a tensor as it is. Multiples of 512 stay multiples of 256, the
# elements of a group, when they grow by half; so padding adds nothing that is not affine.
STEP = 512
NODES = 9 * STEP
PILOT_NODES = STEP
MOST_EDGES_PER_NODE = 1.25  # messages are the dearest part of a probe
LEAST_EDGES_PER_NODE = 0.25
MOST_GRAPH_BYTES = 512 * 2**20
MOST_BATCH_BYTES = 48 * 2**20
SMALLEST_BATCH, LARGEST_BATCH = 8, 4096


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


def graph_pilot(target: Mapping[str, int]) -> dict[str, int]:
    """A first, small graph that shows how many bytes a node costs."""
    most = {"nodes": PILOT_NODES, "edges": round(PILOT_NODES * MOST_EDGES_PER_NODE), "train_nodes": PILOT_NODES}
    nodes = min(target["nodes"], most["nodes"])
    return {name: min(size, nodes if name == "train_nodes" else most[name]) for name, size in target.items()}


def graph_design(target: Mapping[str, int], node_bytes: float) -> Design:
    """Probes for a graph: as many edges per node as in ``target``, within limits.

    Whether there are more edges than nodes, and more nodes than training nodes, is as in ``target`` in every probe.

    Args:
        target: the real sizes.
        node_bytes: what a node costs, at most, so that wide models get fewer.
    """
    start = NODES
    while start > 2 * STEP and start * node_bytes > MOST_GRAPH_BYTES:
        start -= STEP
    nodes, edges = target["nodes"], target["edges"]
    ratio = min(max(edges / nodes, LEAST_EDGES_PER_NODE), MOST_EDGES_PER_NODE)
    base = {"nodes": start if ratio >= 1 else _whole(start / ratio)}
    if nodes <= 2 * base["nodes"]:
        base["nodes"] = nodes
    # Not fewer, however wide the model: below, `compress` would leave the indices of the edges as they are.
    base["edges"] = max(NODES, _whole(base["nodes"] * ratio))
    if edges > nodes:  # rounding must not make them equal
        base["edges"] = max(base["edges"], _whole(base["nodes"] + 1))
    if edges <= 2 * base["edges"]:
        base["edges"] = edges
    if "train_nodes" in target:
        # Not as large a share as in `target`, but as many that their indices are above the threshold too.
        most = min(base["nodes"], max(start, _whole(base["nodes"] * target["train_nodes"] / nodes)))
        base["train_nodes"] = min(target["train_nodes"], most)
    return _design(target, base)


def batch_design(target: Mapping[str, int], example_bytes: float) -> Design:
    """Probes for a batch of examples that cost about ``example_bytes`` each."""
    base = int(min(max(MOST_BATCH_BYTES / max(example_bytes, 1), SMALLEST_BATCH), LARGEST_BATCH))
    base = -(-base // 8) * 8
    return _design(target, {"batch": target["batch"] if target["batch"] <= 2 * base else base})


def _design(target: Mapping[str, int], base: Mapping[str, int]) -> Design:
    # The largest grows first, so that the order of the sizes stays the same.
    varied = sorted((name for name in base if base[name] != target[name]), key=lambda name: -base[name])
    if not varied:
        return Design((), (dict(base),), None)
    probes = [
        {name: size * 3 // 2 if name in varied[:count] else size for name, size in base.items()}
        for count in range(len(varied) + 1)
    ]
    # Every size is one that no probe had. Half: cheap, and what grows with a product of sizes is far off there.
    check = {name: -(-size // 2) if name in varied else size for name, size in base.items()}
    check = {name: max(size, check.get("train_nodes", 0)) if name == "nodes" else size for name, size in check.items()}
    return Design(tuple(varied), tuple(probes), check)


def _whole(size: float) -> int:
    return max(1, round(size / STEP)) * STEP
