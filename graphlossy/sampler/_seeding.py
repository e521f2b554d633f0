"""Which random numbers a batch has: a function of (seed, epoch, input nodes), or new ones from torch's generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.sampler import NodeSamplerInput

from graphlossy.core._neighbors import mix64
from graphlossy.core._random import _GAMMA, _key, _signed
from graphlossy.core.quantize import seed_or_draw

__all__ = ["Seeded", "attach_weights", "below", "fold", "metadata"]


def fold(seed: int, *words: int) -> int:
    """A seed for each tuple of words, as an int64."""
    for word in words:
        seed = _key(seed, word)
    return _signed(seed)


def below(seed: int, count: int, bound: int) -> Tensor:
    """int64 [count] uniform on [0, bound), bound <= 2**60; every value to within 2**-60."""
    from graphlossy.core._neighbors import _below_wide
    from graphlossy.core._random import random_bits

    return _below_wide(random_bits(seed, count), torch.tensor(bound))


def _digest(nodes: Tensor) -> int:
    """A 64-bit hash of a list of nodes."""
    counter = torch.arange(1, nodes.shape[0] + 1) * _signed(_GAMMA)
    return int(mix64(mix64(nodes.to(torch.int64)) + counter).sum())


class Seeded:
    """What samplers share: the seed, the epoch, and the seed of a batch.

    With an integer seed a batch is a function of (seed, epoch, input nodes): the same in any process and whatever was
    drawn before. :meth:`set_epoch` gives new draws, in worker processes too. With ``seed=None`` each batch takes a new
    seed from torch's global generator, as PyG's own samplers do.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = None if seed is None else _signed(seed_or_draw(seed))
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that live on

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """New draws for the batches that are sampled from now on."""
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise TypeError(f"epoch must be an int, got {type(epoch).__name__} {epoch!r}")
        self._epoch.fill_(epoch)

    def batch_seed(self, nodes: Tensor) -> int:
        """The seed of the batch with these input nodes."""
        if self.seed is None:
            return seed_or_draw(None)
        return fold(self.seed, self.epoch, _digest(nodes))


def metadata(inputs: NodeSamplerInput, weights: dict[str, Any]) -> tuple[Any, Any]:
    """What PyG's loader reads from a sampler's output: (input_id, seed_time); weights take the unused second place."""
    if inputs.time is not None:
        raise ValueError("samplers of graphlossy take no input_time; remove it")
    input_id = inputs.input_id if inputs.input_id is not None else torch.arange(inputs.node.shape[0])
    return input_id, (weights or None)


def attach_weights(batch: Any) -> Any:
    """Turn a sampler's weights into attributes of the batch: the ``transform`` for PyG's ``NodeLoader``.

    PyG's loader has no place for per-edge results of a sampler, so they arrive in ``batch.seed_time``; this moves them
    to ``batch.edge_weight`` (float32 [E]) and ``batch.node_weight`` (float32 [N]). Other batches pass through.

    Args:
        batch: a ``Data`` or ``HeteroData`` from ``NodeLoader``.

    Returns:
        The same object.

    Example:
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.loader import NodeLoader
        >>> from graphlossy.sampler import NeighborSampler
        >>> data = Data(edge_index=torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)
        >>> sampler = NeighborSampler(data, num_neighbors=[2], weighted=True, seed=0)
        >>> seeds = torch.tensor([0])
        >>> loader = NodeLoader(data, node_sampler=sampler, input_nodes=seeds, transform=attach_weights)
        >>> next(iter(loader)).edge_weight.tolist()
        [1.5, 1.5]
    """
    for store in batch.node_stores if hasattr(batch, "node_stores") else [batch]:
        weights = store.get("seed_time")
        if isinstance(weights, dict):
            store["seed_time"] = None
            for name, value in weights.items():
                if isinstance(value, dict):
                    for edge_type, per_edge in value.items():
                        batch[edge_type][name] = per_edge
                else:
                    batch[name] = value
    return batch
