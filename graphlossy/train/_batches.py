"""What one step trains on: the whole graph, or the mini-batches of a sampler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from graphlossy.train._adjacency import model_graph
from graphlossy.train._checks import parse_sparsify
from graphlossy.train._config import TrainConfig
from graphlossy.train._ddp_model import partition
from graphlossy.train._errors import TrainError
from graphlossy.train._task import Split, Task, TrainGraph

__all__ = ["Batch", "Batches", "FullBatch", "SampledBatches", "make_batches", "sampling_defaults"]

NODES_PER_PART = 163  # of ogbn-products in the 15,000 parts of OGB's own Cluster-GCN script
CLUSTERS_PER_BATCH = 32
FANOUTS = (15, 10, 5)


@dataclass
class Batch:
    """Input of one step.

    Attributes:
        x: features ``[n, F]``.
        adj: the graph of these nodes as the model is given it.
        y: labels ``[n]`` or ``[n, tasks]``.
        rows: numbers of the nodes that the loss is taken over.
        weight: factors ``[len(rows)]`` of a weighted sum of losses; None for the mean.
        share: of the epoch's loss.
    """

    x: Tensor
    adj: Tensor
    y: Tensor
    rows: Tensor
    weight: Tensor | None = None
    share: float = 1.0


class Batches(Protocol):
    """The steps of an epoch."""

    sampled: bool

    def __len__(self) -> int:
        """Steps in an epoch."""
        ...

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch ``number``: the same whenever it is asked for."""
        ...


class FullBatch:
    """One step an epoch, on the whole graph.

    Args:
        task: the data.
        split: whose training nodes carry the loss.
        rank: number of this process among ``world_size`` that share the training nodes.
        world_size: number of processes.
    """

    sampled = False

    def __init__(self, task: Task, split: Split, rank: int = 0, world_size: int = 1) -> None:
        adj = task.adj if task.train_adj is None else task.train_adj
        self._batch = Batch(task.x, adj, task.y, partition(split.train, rank, world_size))

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int) -> Iterator[Batch]:
        """The whole graph, once."""
        yield self._batch


class SampledBatches:
    """The mini-batches that :func:`graphlossy.sampler.make_loader` draws, as the model takes them.

    Args:
        task: the data, with a ``source``.
        split: whose training nodes carry the loss.
        config: the settings.
        seed: of the batches, with the number of the epoch.
        device: where the model is.
        rank: number of this process among ``world_size`` that share every batch.
        world_size: number of processes.

    Raises:
        TrainError: the sampler refuses the settings for this graph.
    """

    sampled = True

    def __init__(
        self,
        task: Task,
        split: Split,
        config: TrainConfig,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        from torch_geometric.data import Data

        from graphlossy.sampler import make_loader

        if task.source is None or config.sampler is None:
            raise TrainError(f"the task was made without sampler {config.sampler}; make it with the same settings")
        source: TrainGraph = task.source
        self._task, self._config, self._device, self._source = task, config, device, source
        self._alone = world_size == 1
        train = split.train.cpu()
        self._train_nodes = len(train)
        data = Data(x=source.x, edge_index=source.edge_index, y=task.y.cpu())
        data.num_nodes = source.x.shape[0]
        if source.edge_weight is not None:
            data.edge_weight = source.edge_weight
        # The mean over neighbours that were drawn alike from an unweighted graph needs no weights.
        alike = config.model == "sage" and config.sampler == "neighbor" and source.edge_weight is None
        self._weighted = not (config.model == "gat" or alike or (config.sparsify is not None and not config.reweighted))
        options: dict[str, Any] = sampling_defaults(config, source.x.shape[0], self._train_nodes)
        if "partition" in source.kept:
            options["partition"] = source.kept["partition"]
            del options["num_parts"]
        if config.sampler in ("neighbor", "degree-neighbor"):
            options["weighted"] = self._weighted
        if world_size > 1:
            options |= {"rank": rank, "world_size": world_size}
        try:
            self._loader = make_loader(
                data, config.sampler, split=train, seed=seed, num_workers=config.num_workers, shuffle=True, **options
            )
        except (ValueError, TypeError, ModuleNotFoundError) as error:
            raise TrainError(f"sampler {config.sampler}: {error}") from None
        if config.sampler == "cluster":
            source.kept["partition"] = self._loader.sampler.partition

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch ``number``, on the device.

        Those without a training node are left out, except where other processes may have one in the same step.
        """
        self._loader.set_epoch(number)
        for drawn in self._loader:
            batch = self._convert(drawn)
            if batch.rows.numel() or not self._alone:
                yield batch

    def _convert(self, drawn: Any) -> Batch:
        config, nodes = self._config, drawn.x.shape[0]
        if "train_mask" in drawn:
            rows = drawn.train_mask.nonzero().squeeze(1)
        else:
            rows = torch.arange(drawn.batch_size)
        weight = drawn.edge_weight if "edge_weight" in drawn and self._weighted else None
        degree = None
        if weight is not None and config.sampler == "cluster":
            # Edges between clusters are left out: the degrees are those inside, as far as the weights tell them.
            degree = torch.zeros(nodes).index_add_(0, drawn.edge_index[1], weight.float())
        elif weight is not None:
            degree = self._source.degree[drawn.n_id]
        outside = config.normalized_outside
        adj = model_graph(config.model, drawn.edge_index, nodes, config.adj, weight, degree, outside)
        factors = None
        if "node_weight" in drawn:
            factors = drawn.node_weight[rows]
        to = self._device
        share = len(rows) / self._train_nodes if factors is None else 1 / len(self)
        return Batch(
            drawn.x.to(to), adj.to(to), drawn.y.to(to), rows.to(to), None if factors is None else factors.to(to), share
        )


def make_batches(
    task: Task, split: Split, config: TrainConfig, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Batches:
    """The batches that ``config`` asks for, or what the process ``rank`` of ``world_size`` has of them."""
    if config.sampler is None:
        return FullBatch(task, split, rank, world_size)
    return SampledBatches(task, split, config, seed, device, rank, world_size)


def sampling_defaults(config: TrainConfig, nodes: int, train_nodes: int) -> dict[str, Any]:
    """The sampler's settings for a graph, with defaults in place of those that were not given.

    Neighbour sampling takes 1,024 training nodes a batch and 15, 10, 5, 5, ... neighbours; clusters hold about 163
    nodes and 32 of them make a batch; a GraphSAINT subgraph begins with an eighth of the nodes, at most 20,000.

    Args:
        config: the settings.
        nodes: nodes of the graph.
        train_nodes: its training nodes.

    Example:
        >>> sampling_defaults(TrainConfig(sampler="neighbor", layers=2), nodes=1000, train_nodes=600)
        {'batch_size': 600, 'num_neighbors': [15, 10]}
    """
    kind, size = config.sampler, config.batch_size
    if kind in ("neighbor", "degree-neighbor"):
        fanouts = config.num_neighbors or [FANOUTS[min(i, len(FANOUTS) - 1)] for i in range(config.layers)]
        return {"batch_size": min(size or 1024, train_nodes), "num_neighbors": list(fanouts)}
    if kind == "cluster":
        parts = config.num_parts or max(1, nodes // NODES_PER_PART)
        return {"num_parts": parts, "batch_size": min(size or CLUSTERS_PER_BATCH, parts)}
    if kind in ("saint-node", "saint-edge", "saint-walk"):
        found: dict[str, Any] = {"batch_size": size or max(1, min(20_000, nodes // 8))}
        return found | ({"walk_length": config.walk_length or 3} if kind == "saint-walk" else {})
    if kind == "sparsify":
        return {"ratio": parse_sparsify(str(config.sparsify))[1]}
    return {}
