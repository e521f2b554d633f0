"""Token sequences with stable ids, and the batches of a step from the number of the step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from graphlossy.llm.finetune._errors import FinetuneError

__all__ = ["IGNORED", "Batches", "TokenDataset", "as_tokens"]

IGNORED = -100  # a label that no loss counts, as in transformers


class TokenDataset(Dataset[dict[str, Tensor]]):
    """N token sequences of the same length; a sample's id is its place.

    Args:
        input_ids: [N, L] integers.
        attention_mask: [N, L]; 0 for padding. None: there is none.
        labels: [N, L] tokens to predict (those of ``input_ids``; -100 is not counted), or [N] classes. None:
            every token that is no padding is predicted.

    Raises:
        FinetuneError: shapes that do not fit, no sequence at all, or one with nothing to predict.

    Example:
        >>> data = TokenDataset(torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
        >>> len(data), data[1]["labels"].tolist(), data[1]["sample_ids"].item()
        (2, [8, 9, -100], 1)
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> None:
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
            what = f"shape {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids).__name__
            raise FinetuneError(f"input_ids must be whole numbers of shape [sequences, length], got {what}")
        if not input_ids.numel():
            raise FinetuneError("there is no sequence of tokens: the text is empty, or shorter than one sequence")
        self.input_ids = input_ids.long().cpu()
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise FinetuneError(
                f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}; "
                f"got {tuple(attention_mask.shape)}"
            )
        self.attention_mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            self.attention_mask = attention_mask.long().cpu()
        if labels is None:
            labels = self.input_ids
            if self.attention_mask is not None:
                labels = labels.masked_fill(self.attention_mask == 0, IGNORED)
        if labels.shape not in (input_ids.shape, input_ids.shape[:1]):
            n, length = input_ids.shape
            raise FinetuneError(f"labels must have the shape [{n}, {length}] or [{n}], got {tuple(labels.shape)}")
        self.labels = labels.long().cpu()
        empty = (self.targets(slice(None)) == 0).nonzero()
        if len(empty):
            raise FinetuneError(f"sequence {int(empty[0])} has no token to predict; leave it out")

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {"input_ids": self.input_ids[index], "labels": self.labels[index]}
        if self.attention_mask is not None:
            item["attention_mask"] = self.attention_mask[index]
        return {**item, "sample_ids": torch.arange(len(self))[index]}

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.input_ids.shape[1]

    @property
    def classifies(self) -> bool:
        """Whether every sequence has one class."""
        return self.labels.dim() == 1

    def targets(self, index: slice | Tensor) -> Tensor:
        """How many predictions the loss of each of these sequences counts: a decoder predicts no first token."""
        if self.classifies:
            return (self.labels[index] != IGNORED).long()
        return (self.labels[index][:, 1:] != IGNORED).sum(1)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The sequences at ``indices``; columns in which all of them have padding are left out."""
        batch = {"input_ids": self.input_ids[indices], "labels": self.labels[indices]}
        if self.attention_mask is not None:
            mask = self.attention_mask[indices]
            used = mask.any(0).nonzero().flatten()
            kept = slice(int(used[0]), int(used[-1]) + 1)
            for name, value in batch.items():
                batch[name] = value[:, kept] if value.dim() == 2 else value
            if not bool(mask[:, kept].all()):  # without a mask attention is cheaper
                batch["attention_mask"] = mask[:, kept]
        return {name: value.contiguous() for name, value in batch.items()} | {"sample_ids": indices}

    def fingerprint(self) -> str:
        """Differs between data that differ."""
        digest = hashlib.sha256()
        for part in (self.input_ids, self.attention_mask, self.labels):
            if part is not None:
                digest.update(str(tuple(part.shape)).encode())
                digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


def as_tokens(data: Any, name: str = "train") -> TokenDataset:
    """What the caller has, as a `TokenDataset`.

    Args:
        data: one; ``input_ids`` [N, L]; a dict of tensors; or a map-style data set or sequence of dicts, whose
            sequences may differ in length (they are padded on the right).
        name: of the argument, for messages.

    Raises:
        FinetuneError: it is something else, or has no sequence.

    Example:
        >>> as_tokens([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}]).labels.tolist()
        [[1, 2, 3], [4, 5, -100]]
    """
    if isinstance(data, TokenDataset):
        return data
    if isinstance(data, Tensor):
        return TokenDataset(data)
    if isinstance(data, Mapping) and "input_ids" in data:
        known = {key: torch.as_tensor(data[key]) for key in ("input_ids", "attention_mask", "labels") if key in data}
        return TokenDataset(**known)
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, (str, Mapping)):
        raise FinetuneError(
            f"{name} must be input_ids of shape [sequences, length], a dict of tensors, or a map-style data set of "
            f"dicts with input_ids; got {type(data).__name__}"
        )
    items = [data[i] for i in range(len(data))]
    if not items:
        raise FinetuneError(f"{name} has no sequence of tokens: the text is empty, or shorter than one sequence")
    if not all(isinstance(item, Mapping) and "input_ids" in item for item in items):
        raise FinetuneError(f"{name} must have dicts with input_ids as items")
    return _stacked(items)


def _stacked(items: Sequence[Mapping[str, Any]]) -> TokenDataset:
    ids = [torch.as_tensor(item["input_ids"]) for item in items]
    masks = [torch.as_tensor(item["attention_mask"]) if "attention_mask" in item else torch.ones_like(i)
             for item, i in zip(items, ids, strict=True)]  # fmt: skip
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad(masks, batch_first=True)
    labels = None
    key = next((key for key in ("labels", "label") if key in items[0]), None)
    if key is not None:
        found = [torch.as_tensor(item[key]) for item in items]
        labels = torch.stack(found) if found[0].dim() == 0 else pad(found, batch_first=True, padding_value=IGNORED)
    return TokenDataset(pad(ids, batch_first=True), mask, labels)


class Batches:
    """The order of the training sequences: shuffled anew in every epoch, and known from the seed and the step alone.

    Args:
        data: the sequences.
        batch_size: of one forward pass.
        accumulate: forward passes of one step. The last step of an epoch may have fewer.
        seed: of the order.

    Example:
        >>> batches = Batches(TokenDataset(torch.arange(10)[:, None].repeat(1, 3)), batch_size=2, accumulate=2, seed=0)
        >>> batches.steps_in_epoch, [len(batch["input_ids"]) for batch in batches.of_step(3)]
        (3, [2])
        >>> seen = [i for step in (1, 2, 3) for batch in batches.of_step(step) for i in batch["sample_ids"].tolist()]
        >>> sorted(seen) == list(range(10))
        True
    """

    def __init__(self, data: TokenDataset, batch_size: int, accumulate: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.step_size = batch_size * accumulate
        self.steps_in_epoch = -(-len(data) // self.step_size)
        self._order: tuple[int, Tensor] | None = None

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that a step, from 1, belongs to."""
        return (step - 1) // self.steps_in_epoch + 1

    def of_step(self, step: int) -> list[dict[str, Tensor]]:
        """The batches of a step, from 1."""
        epoch = self.epoch_of(step)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
            self._order = epoch, torch.randperm(len(self.data), generator=generator)
        start = (step - 1) % self.steps_in_epoch * self.step_size
        return [self.data.batch(part) for part in self._order[1][start : start + self.step_size].split(self.batch_size)]
