"""Training on several processes that torchrun started: one GPU each, or a share of the CPU; on one machine or several.

Full-batch training is *replicated*: every process runs the forward pass over the whole graph and takes the loss over
its share of the training nodes, so the result is that of one process and only the loss is divided, neither work nor
memory. Sampled training is *partitioned*: every process takes its share of each batch's seeds, so both are divided.
"""

from __future__ import annotations

from graphlossy.train._ddp_collectives import (
    average_buffers,
    barrier,
    broadcast_object,
    gather_objects,
    on_all,
    on_main,
    reduce_mean,
    reduce_sum,
)
from graphlossy.train._ddp_group import PeerError, Rank, is_main, is_peer_failure, session, setup, shutdown
from graphlossy.train._ddp_model import partition, share_of_loss, unwrap, wrap
from graphlossy.train._ddp_seed import epoch_seed, mix_seed

__all__ = [
    "PeerError",
    "Rank",
    "average_buffers",
    "barrier",
    "broadcast_object",
    "epoch_seed",
    "gather_objects",
    "is_main",
    "is_peer_failure",
    "mix_seed",
    "on_all",
    "on_main",
    "partition",
    "reduce_mean",
    "reduce_sum",
    "session",
    "setup",
    "share_of_loss",
    "shutdown",
    "unwrap",
    "wrap",
]
