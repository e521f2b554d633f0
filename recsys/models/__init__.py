"""Models of click-through rates: plain torch modules whose tables any method may compress.

>>> from types import SimpleNamespace as Field
>>> model = make_model("deepfm", [Field(name=n, kind="token", num_tokens=9) for n in ("user", "item")], embedding_dim=4)
>>> [name for name, _ in model.named_parameters() if "embeddings" in name]
['embeddings.user.weight', 'embeddings.item.weight']
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from graphlossy.recsys.models._base import Bias, CTRModel, table_keys
from graphlossy.recsys.models.deepfm import DeepFM
from graphlossy.recsys.models.dlrm import DLRM
from graphlossy.recsys.models.fm import FM
from graphlossy.recsys.models.ncf import NCF
from graphlossy.recsys.models.wide_deep import WideDeep

__all__ = [
    "Bias",
    "CTRModel",
    "DLRM",
    "DeepFM",
    "FM",
    "MODELS",
    "NCF",
    "WideDeep",
    "make_model",
    "options_of",
    "table_keys",
]

MODELS: dict[str, type[CTRModel]] = {
    "fm": FM,
    "deepfm": DeepFM,
    "dlrm": DLRM,
    "ncf": NCF,
    "wide_deep": WideDeep,
    "bias": Bias,
}


def make_model(name: str, fields: Iterable[Any], embedding_dim: int = 16, **options: Any) -> CTRModel:
    """A new model with random weights from torch's global generator.

    Args:
        name: a key of `MODELS`.
        fields: of the data, see `CTRModel`.
        embedding_dim: width d of every embedding.
        options: the other arguments of the model's constructor.

    Raises:
        ValueError: the name or an option is unknown; the text says which there are.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(f"model {name} has no option {option!r}; it has {', '.join(known)}")
    return MODELS[name](fields, embedding_dim, **options)


def options_of(name: str) -> tuple[str, ...]:
    """The options that `make_model` takes for a model."""
    parameters = inspect.signature(MODELS[name]).parameters
    return tuple(option for option in parameters if option not in ("fields", "embedding_dim"))
