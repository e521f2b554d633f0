"""The switch as a callback of transformers' ``Trainer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from graphlossy.core._files import written
from graphlossy.core.ledger import Ledger
from graphlossy.llm._switch import compress, load_state, restore, state

__all__ = ["LossyCallback"]

_FILE = "graphlossy.pt"


class LossyCallback(TrainerCallback):
    """Trains a ``Trainer``'s model on sampled and low-bit activations: ``Trainer(..., callbacks=[LossyCallback()])``.

    Switches the model on when training begins and off when it ends. Every log has ``saved_mb`` and ``plain_mb``, what
    the last step kept for its backward pass and what it would have kept. The norms of the samples' gradients go into
    every checkpoint (``graphlossy.pt``) and come back with ``resume_from_checkpoint``.

    An estimator other than ``"uniform"`` has to know the samples: wrap the dataset in
    :class:`~graphlossy.llm.SampleIds`, the collator in :func:`~graphlossy.llm.with_sample_ids`, and set
    ``remove_unused_columns=False`` in the training arguments.

    Args:
        *budget: that of :func:`graphlossy.llm.compress`.
        **options: its other arguments.

    Raises:
        ValueError: (when training begins) as :func:`graphlossy.llm.compress`.
    """

    def __init__(self, *budget: Any, **options: Any) -> None:
        self._budget, self._options = budget, options
        self.ledger: Ledger | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.ledger = compress(_inner(model), *self._budget, **self._options)
        # The Trainer has read its own state from the checkpoint by now; the steps say which one it was.
        file = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / _FILE
        if state.global_step and file.exists():
            load_state(_inner(model), torch.load(file, weights_only=True))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is not None and self.ledger is not None and self.ledger.records:
            figures = {"saved_mb": self.ledger.saved_bytes / 1e6, "plain_mb": self.ledger.plain_bytes / 1e6}
            logs.update({name: round(value, 3) for name, value in figures.items()})
            state.log_history[-1].update({name: logs[name] for name in figures})  # a copy was put there before

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            with written(folder / _FILE) as file:
                torch.save(_state(model), file)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        restore(_inner(model))


def _state(model: Any) -> dict[str, Any]:
    return state(_inner(model))


def _inner(model: Any) -> Any:
    """The model itself, where it was wrapped for several processes."""
    inner = getattr(model, "module", None)
    # A model may have a part of that name; a wrapper has nothing else.
    return inner if isinstance(inner, nn.Module) and list(model.children()) == [inner] else model
