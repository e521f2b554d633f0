"""Fine-tuning of transformers models: a plain loop with a run folder, that goes on bit for bit where it stopped.

>>> from graphlossy.llm.finetune import METHODS, FinetuneConfig
>>> FinetuneConfig.from_method("lora+4bit").lora_rank
8
"""

from graphlossy.llm.finetune._config import BITS, ESTIMATORS, FinetuneConfig
from graphlossy.llm.finetune._data import TokenDataset
from graphlossy.llm.finetune._errors import FinetuneError, Interrupted
from graphlossy.llm.finetune._evaluation import evaluate
from graphlossy.llm.finetune._folder import RunFolder
from graphlossy.llm.finetune._methods import METHODS, method_settings
from graphlossy.llm.finetune._model import load_model, load_settings, load_tokenizer, position_limit
from graphlossy.llm.finetune._run import Finetuning, Observer
from graphlossy.llm.finetune._schedule import SCHEDULES, learning_rate

__all__ = [
    "BITS",
    "ESTIMATORS",
    "FinetuneConfig",
    "FinetuneError",
    "Finetuning",
    "Interrupted",
    "METHODS",
    "Observer",
    "RunFolder",
    "SCHEDULES",
    "TokenDataset",
    "evaluate",
    "learning_rate",
    "load_model",
    "load_settings",
    "load_tokenizer",
    "method_settings",
    "position_limit",
]
