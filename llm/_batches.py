"""Numbers for samples: what tells an estimator whose gradient norms it has seen before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

__all__ = ["SampleIds", "with_sample_ids"]

_KEY = "sample_ids"


class SampleIds(Dataset[dict[str, Any]]):
    """A map-style dataset whose items also carry their index, under ``"sample_ids"``.

    Args:
        dataset: items are mappings, as for transformers' collators.

    Example:
        >>> SampleIds([{"input_ids": [1, 2]}, {"input_ids": [3]}])[1]
        {'input_ids': [3], 'sample_ids': 1}
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(f"dataset must have a length and items by index, got {type(dataset).__name__}")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        if not isinstance(item, Mapping):
            raise TypeError(
                f"items must be mappings such as {{'input_ids': ...}}, item {index} is {type(item).__name__}"
            )
        return {**item, _KEY: int(index) % len(self)}


def with_sample_ids(collator: Callable[[Sequence[dict[str, Any]]], Any]) -> Callable[[Sequence[dict[str, Any]]], Any]:
    """A collator that hands ``"sample_ids"`` past ``collator`` and adds them to its batch as an int64 tensor [B].

    With transformers' ``Trainer`` set ``remove_unused_columns=False``: it would drop them.

    Args:
        collator: takes a list of features and returns a mapping, as transformers' data collators do.

    Raises:
        KeyError: (when called) a feature has no ``"sample_ids"``.

    Example:
        >>> collate = with_sample_ids(lambda items: {"n": len(items)})
        >>> collate([{"sample_ids": 4}, {"sample_ids": 7}])
        {'n': 2, 'sample_ids': tensor([4, 7])}
    """
    return _Collator(collator)


class _Collator:
    """A class, so that worker processes can be sent it."""

    def __init__(self, collator: Callable[[Sequence[dict[str, Any]]], Any]) -> None:
        self._collator = collator

    def __call__(self, features: Sequence[dict[str, Any]]) -> Any:
        missing = next((f for f in features if _KEY not in f), None)
        if missing is not None:
            there = ", ".join(missing) or "nothing"
            raise KeyError(f"a feature has no {_KEY!r}, it has {there}; wrap the dataset in SampleIds")
        ids = [int(feature[_KEY]) for feature in features]
        batch = self._collator([{k: v for k, v in feature.items() if k != _KEY} for feature in features])
        batch[_KEY] = torch.tensor(ids, dtype=torch.int64)
        return batch
