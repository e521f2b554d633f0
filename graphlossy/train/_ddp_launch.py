"""Which launch of torchrun this process belongs to, and what all processes of a launch must have in common."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from graphlossy.train._config import TrainConfig
from graphlossy.train._ddp_collectives import gather_objects, reduce_sum
from graphlossy.train._errors import TrainError
from graphlossy.train._folder import data_name

__all__ = ["agree", "check_alike", "launch_name", "restart_folder", "speaks"]

# What may differ from machine to machine; that the data are the same is checked by themselves.
OWN = ("dataset", "root", "threads")


def launch_name() -> str | None:
    """What tells this launch of torchrun from others and stays the same when it starts its processes anew.

    None where torchrun has not started this process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.getppid()}"


def restart_folder(config: TrainConfig) -> Path | None:
    """The run folder that processes which are started anew find again; None if torchrun will not start them anew.

    Raises:
        TrainError: the launch has no name of its own.
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if "RANK" not in os.environ or restarts == "0":
        return None
    if launch == "none":
        raise TrainError(
            "with --max-restarts, processes that are started anew must find their run folder; give --out, or start "
            "torchrun with --standalone or --rdzv-id"
        )
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in launch)
    return Path("runs") / f"{data_name(config)}-{config.model}-{name}"


def speaks() -> bool:
    """Whether this process is the one of its machine that says what went wrong."""
    return "RANK" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"


def check_alike(settings: dict[str, object]) -> int:
    """The number of threads of rank 0, once it is clear that all processes have the same settings.

    Raises:
        TrainError: in every process, if one was started with others.
    """
    everywhere = gather_objects(settings)
    for rank, other in enumerate(everywhere):
        names = [name for name, value in everywhere[0].items() if name not in OWN and other.get(name) != value]
        if names:
            raise TrainError(
                f"rank {rank} was started with other settings than rank 0 ({', '.join(names)}); give every machine "
                "the same command"
            )
    threads = everywhere[0]["threads"]
    return threads if isinstance(threads, int) else 1


def agree(interrupt: bool, terminate: bool, checkpoint: bool) -> tuple[bool, bool, bool]:
    """What all processes do after an epoch: whether any of them was interrupted or told to end, and a checkpoint.

    Args:
        interrupt: SIGINT came to this process.
        terminate: SIGTERM came to this process.
        checkpoint: it is time for a checkpoint, by the clock of the process that may say so.
    """
    total = reduce_sum(torch.tensor([interrupt, terminate, checkpoint], dtype=torch.int64))
    first, second, third = (bool(number) for number in total)
    return first, second, third
