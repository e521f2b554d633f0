"""The trainer behind ``graphlossy train``: a baseline and compressed runs side by side, resumable, with a report."""

from graphlossy.train._batches import sampling_defaults
from graphlossy.train._checks import SAMPLERS, SPARSIFIERS
from graphlossy.train._config import BITS, Scheme, TrainConfig
from graphlossy.train._device import resolve_device
from graphlossy.train._errors import TrainError
from graphlossy.train._experiment import Experiment, Interrupted, Observer
from graphlossy.train._format import comparison_notes, comparison_rows, format_size
from graphlossy.train._metrics import accuracy, roc_auc
from graphlossy.train._models import MODELS, build_model
from graphlossy.train._presets import PRESETS, REFERENCES, Reference
from graphlossy.train._task import Split, Task, load_task, make_task

__all__ = [
    "BITS",
    "MODELS",
    "PRESETS",
    "REFERENCES",
    "SAMPLERS",
    "SPARSIFIERS",
    "Experiment",
    "Interrupted",
    "Observer",
    "Reference",
    "Scheme",
    "Split",
    "Task",
    "TrainConfig",
    "TrainError",
    "accuracy",
    "build_model",
    "comparison_notes",
    "comparison_rows",
    "format_size",
    "load_task",
    "make_task",
    "resolve_device",
    "roc_auc",
    "sampling_defaults",
]
