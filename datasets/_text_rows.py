"""Tokens of documents as rows of one length: packed, or one document a row; for language models and classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._text_documents import Document

__all__ = ["blocks", "classes", "examples", "rows"]

IGNORED = -100  # a label that has no part in the loss
_BATCH = 256  # documents that are handed to the tokenizer at once


def blocks(
    documents: Iterable[Document | str],
    tokenizer: Any,
    length: int,
    *,
    limit: int | None = None,
    end: int | None = None,
) -> Tensor:
    """Packs documents into rows without padding: their tokens one after the other, the end token behind each document.

    A block may begin and end within a document and hold several. What is left after the last whole block, fewer than
    ``length`` tokens, is left out; no other token is lost. Each part of a split is packed for itself, so no block holds
    tokens of two parts.

    Args:
        documents: of one part.
        tokenizer: of transformers; called without its special tokens.
        length: tokens of a block, at least 2.
        limit: most tokens that the model takes (``config.max_position_embeddings``), to be compared with ``length``.
        end: number of the token behind each document; None is the tokenizer's ``eos_token_id``.

    Returns:
        int64 [blocks, length]: ``input_ids`` and, as causal language models shift them, ``labels``.

    Raises:
        DatasetError: the text is empty or shorter than one block.
        ValueError, TypeError: ``length`` is not allowed or more than ``limit``, or there is no end token.

    Example:
        >>> class Letters:
        ...     eos_token_id = 0
        ...     def __call__(self, texts, **options):
        ...         return {"input_ids": [[ord(letter) - 96 for letter in text] for text in texts]}
        >>> blocks(["abc", "de", "f"], Letters(), 4)
        tensor([[1, 2, 3, 0],
                [4, 5, 0, 6]])
    """
    _check_length(length, limit, 2)
    end = _end(tokenizer, end)
    pieces = [piece for ids in _tokens(documents, tokenizer) for piece in (ids, np.array([end]))]
    stream = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    if len(stream) <= len(pieces) // 2:  # end tokens alone
        raise DatasetError("the text is empty: the tokenizer makes no token of it")
    count = len(stream) // length
    if not count:
        raise DatasetError(
            f"the text has {len(stream):,} tokens, fewer than one block of {length:,}; give more text, a larger share "
            "for this part or a smaller length"
        )
    return torch.from_numpy(stream[: count * length].reshape(count, length))


def rows(
    documents: Iterable[Document | str],
    tokenizer: Any,
    length: int,
    *,
    limit: int | None = None,
    end: int | None = None,
    pad: int | None = None,
) -> dict[str, Tensor]:
    """One document a row, padded on the right; padding has no part in the loss. For causal language models.

    A document of more than ``length`` tokens, its end token included, goes on in the next row: no token is lost.

    Args:
        documents: of one part.
        tokenizer: of transformers; called without its special tokens.
        length: most tokens of a row, at least 2.
        limit: most tokens that the model takes, to be compared with ``length``.
        end: number of the token behind each document; None is the tokenizer's ``eos_token_id``.
        pad: number of the padding; None is the tokenizer's ``pad_token_id`` or, without one, ``end``.

    Returns:
        ``input_ids``, ``attention_mask`` (0 at padding) and ``labels`` (-100 at padding), int64 [rows, width] each;
        ``width`` is that of the longest row.

    Raises:
        DatasetError, ValueError, TypeError: as :func:`blocks`.
    """
    _check_length(length, limit, 2)
    end = _end(tokenizer, end)
    found = []
    some = False
    for ids in _tokens(documents, tokenizer):
        some = some or len(ids) > 0
        ids = np.append(ids, end)
        found += [ids[start : start + length] for start in range(0, len(ids), length)]
    if not some:
        raise DatasetError("the text is empty: the tokenizer makes no token of it")
    ids, mask = _padded(found, _pad(tokenizer, pad, end))
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def classes(documents: Iterable[Document]) -> list[int] | list[str]:
    """The labels that documents have, each once, sorted: give those of the training part to :func:`examples`.

    Raises:
        DatasetError: a document has no label, some labels are numbers and others texts, or all are one.

    Example:
        >>> from graphlossy.datasets import text
        >>> text.classes([text.Document("a", "Dear all", "ham"), text.Document("b", "Buy now", "spam")])
        ['ham', 'spam']
    """
    labels = {_label(document) for document in documents}
    numbers = [label for label in labels if isinstance(label, int)]
    words = [label for label in labels if isinstance(label, str)]
    if numbers and words:
        raise DatasetError(f"some labels are numbers, such as {numbers[0]}, others texts, such as {words[0]!r}")
    if len(labels) < 2:
        what = f"all labels are {labels.pop()!r}" if labels else "there is no document"
        raise DatasetError(f"{what}; a classifier needs two classes or more")
    return sorted(numbers) if numbers else sorted(words)


def examples(
    documents: Iterable[Document],
    tokenizer: Any,
    length: int,
    classes: Sequence[int] | Sequence[str],
    *,
    limit: int | None = None,
    pad: int | None = None,
) -> dict[str, Tensor]:
    """One document a row with the number of its class, for classification; longer documents are cut off.

    The tokenizer adds its special tokens, such as BERT's, and cuts so that they stay.

    Args:
        documents: with labels.
        tokenizer: of transformers.
        length: most tokens of a row, at least 1.
        classes: of :func:`classes`; a label's place in it is the number of its class.
        limit: most tokens that the model takes, to be compared with ``length``.
        pad: number of the padding; None is the tokenizer's ``pad_token_id`` or, without one, its ``eos_token_id``.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 [documents, width], and ``labels``, int64 [documents].

    Raises:
        DatasetError: there is no document, or one has no label, one that is not in ``classes``, or no token.
        ValueError, TypeError: ``length`` is not allowed or more than ``limit``, or there is no padding.
    """
    _check_length(length, limit, 1)
    given = list(documents)
    if not given:
        raise DatasetError("there is no document")
    numbers = {label: number for number, label in enumerate(classes)}
    labels = []
    for document in given:
        if (label := _label(document)) not in numbers:
            raise DatasetError(
                f"label {label!r} of {_short(document)} is none of the {len(numbers)} classes "
                f"({', '.join(map(repr, classes[:8]))}{', ...' if len(classes) > 8 else ''})"
            )
        labels.append(numbers[label])
    found = list(_tokens(given, tokenizer, add_special_tokens=True, truncation=True, max_length=length))
    empty = next((document for document, ids in zip(given, found, strict=True) if not len(ids)), None)
    if empty is not None:
        raise DatasetError(f"the tokenizer makes no token of {_short(empty)}; leave it out")
    ids, mask = _padded(found, _pad(tokenizer, pad, None))
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


def _tokens(documents: Iterable[Document | str], tokenizer: Any, **options: Any) -> Iterator[np.ndarray]:
    """int64 [tokens] of each document."""
    options = {"add_special_tokens": False, "verbose": False} | options
    texts = [document if isinstance(document, str) else document.text for document in documents]
    for start in range(0, len(texts), _BATCH):
        for ids in tokenizer(texts[start : start + _BATCH], **options)["input_ids"]:
            yield np.asarray(ids, dtype=np.int64)


def _padded(found: list[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Rows filled up on the right, and a mask that says where they were not; padding goes by place, not by number."""
    sizes = np.array([len(ids) for ids in found])
    mask = np.arange(sizes.max()) < sizes[:, None]
    filled = np.full(mask.shape, pad, np.int64)
    filled[mask] = np.concatenate(found)
    return torch.from_numpy(filled), torch.from_numpy(mask.astype(np.int64))


def _end(tokenizer: Any, end: int | None) -> int:
    found = end if end is not None else getattr(tokenizer, "eos_token_id", None)
    if found is None:
        raise ValueError("the tokenizer has no end token; give the number of one as end, such as its sep_token_id")
    return int(found)


def _pad(tokenizer: Any, pad: int | None, end: int | None) -> int:
    choices = (pad, getattr(tokenizer, "pad_token_id", None), end, getattr(tokenizer, "eos_token_id", None))
    found = next((choice for choice in choices if choice is not None), None)
    if found is None:
        raise ValueError("the tokenizer has no padding token; give the number of one as pad")
    return int(found)


def _check_length(length: int, limit: int | None, least: int) -> None:
    for name, value in (("length", length), ("limit", limit)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} must be a number of tokens, got {value!r}")
    if length < least:
        raise ValueError(f"length must be at least {least} tokens, got {length}")
    if limit is not None and length > limit:
        raise ValueError(f"length must be at most {limit:,} tokens, which is the model's limit, got {length:,}")


def _label(document: Document) -> int | str:
    label = document.label
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        what = "has no label" if label is None else f"has the label {label!r}, which is no whole number and no text"
        raise DatasetError(f"{_short(document)} {what}; read it with label_field from a .jsonl file")
    return label


def _short(document: Document) -> str:
    text = " ".join(document.text.split())
    return f"document {text if len(text) <= 40 else text[:37] + '...'!r}"
