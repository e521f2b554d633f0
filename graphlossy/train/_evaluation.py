"""Scores of all nodes: in one forward pass, or layer by layer in chunks of nodes where that would not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from graphlossy.autograd.graph import sparse_csr
from graphlossy.train._models import GCN2, GraphNet

__all__ = ["forward", "layerwise"]


def forward(model: torch.nn.Module, x: Tensor, adj: Tensor, amp: bool) -> Tensor:
    """The scores, float32, computed under bfloat16 autocast if ``amp``."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp):
        return model(x, adj).float()


@torch.no_grad()
def layerwise(
    model: GraphNet | GCN2, x: Tensor, adj: Tensor, chunk: int, device: torch.device, amp: bool = False
) -> Tensor:
    """The model's exact scores, one layer at a time and ``chunk`` nodes at a time.

    The states between two layers lie where ``x`` lies; ``device`` holds only a chunk of nodes, their neighbours and
    their edges. Each layer is given the subgraph of the edges into the chunk.

    Args:
        model: in evaluation mode, on ``device``; its layers must not normalise the graph themselves.
        x: features ``[N, F]``.
        adj: sparse CSR ``[N, N]``, rows receiving.
        chunk: nodes at a time.
        device: where to compute.
        amp: bfloat16 autocast.

    Returns:
        float32 ``[N, outputs]`` on the device of ``x``.

    Example:
        >>> from graphlossy.train import build_model
        >>> model = build_model("sage", inputs=4, hidden=8, out=3, layers=2, dropout=0.5).eval()
        >>> x, adj = torch.rand(10, 4), torch.ones(10, 10).to_sparse_csr()
        >>> torch.allclose(layerwise(model, x, adj, 3, x.device), model(x, adj), atol=1e-6)
        True
    """
    starts = range(0, x.shape[0], chunk)

    def compute(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            return function(*(part.to(device) for part in given)).float().to(x.device)

    def layer(number: int, state: Tensor, start: int) -> Tensor:
        nodes, edges = _into(adj, start, min(start + chunk, x.shape[0]), place)
        given = state[nodes]
        out = compute(partial(model.layer, number), given, given if state is first else first[nodes], edges)
        return out[: min(chunk, x.shape[0] - start)]

    state = first = _join((compute(model.before, x[i : i + chunk]) for i in starts), x.shape[0])
    place = torch.full((x.shape[0],), -1, dtype=adj.col_indices().dtype, device=x.device)
    for number in range(len(model.convs)):
        state = _join((layer(number, state, i) for i in starts), x.shape[0])
    return _join((compute(model.after, state[i : i + chunk]) for i in starts), x.shape[0])


def _join(parts: Iterator[Tensor], rows: int) -> Tensor:
    """The parts, one below the other; each is freed once it is written."""
    head = next(parts)
    out = head.new_empty(rows, head.shape[1])
    out[: len(head)] = head
    done = len(head)
    for part in parts:
        out[done : done + len(part)] = part
        done += len(part)
    return out


def _into(adj: Tensor, start: int, stop: int, place: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes ``start`` to ``stop`` and their neighbours, and the square matrix of the edges into the former."""
    crow, col, values = adj.crow_indices(), adj.col_indices(), adj.values()
    first, last = int(crow[start]), int(crow[stop])
    part = col[first:last]
    place[part] = 0  # marked; then numbered, the nodes of the chunk first
    place[start:stop] = -1
    others = (place == 0).nonzero().squeeze(1)
    nodes = torch.cat([torch.arange(start, stop, device=place.device), others])
    place[nodes] = torch.arange(len(nodes), dtype=place.dtype, device=place.device)
    rows = torch.cat([crow[start : stop + 1] - first, crow.new_full((len(others),), last - first)])
    edges = sparse_csr(rows, place[part], values[first:last], (len(nodes), len(nodes)))
    place[nodes] = -1
    return nodes, edges
