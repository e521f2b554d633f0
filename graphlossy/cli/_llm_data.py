"""Joins documents of text with a model's tokenizer: the tokens that ``graphlossy llm`` trains on and measures with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from graphlossy.datasets import DatasetError, find_model, models, text
from graphlossy.llm.finetune import FinetuneError, TokenDataset, load_tokenizer, position_limit

__all__ = ["Tokens", "absolute", "model_place", "read_blocks", "read_tokens"]


class Tokens(NamedTuple):
    """What a run is trained on.

    Attributes:
        train, valid: sequences; ``valid`` is None where nothing is held out.
        tokenizer: of the model.
        classes: the labels' own values, to classify.
    """

    train: TokenDataset
    valid: TokenDataset | None
    tokenizer: Any
    classes: list[Any] | None


def model_place(name: str | None, root: Path | None) -> str:
    """The folder of a model: the one that was given, or the one that `graphlossy datasets prepare` made.

    Raises:
        FinetuneError: none was given, or a model of `graphlossy datasets` is not here.
    """
    if name is None:
        known = ", ".join(model.name for model in models())
        raise FinetuneError(f"give --model: a folder of a model, a name on the Hugging Face hub, or one of {known}")
    if name.lower() in {model.name for model in models()} and not Path(name).is_dir():
        found = find_model(name, root)
        if found is None:
            raise FinetuneError(f"model {name} is not here yet: graphlossy datasets prepare {name.lower()}")
        return str(found)
    return name


def absolute(name: str) -> str:
    """A path as it is from every folder; a name stays as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def read_tokens(place: str, about: dict[str, Any], task: str) -> Tokens:
    """Reads and tokenizes what ``about`` describes.

    Args:
        place: of the model.
        about: ``data``, ``valid_data``, ``valid_share``, ``text_field``, ``label_field``, ``length``, ``packing``.
        task: ``"causal"`` or ``"classify"``.

    Raises:
        FinetuneError, DatasetError: no such file, no text, sequences longer than the model's limit, and so on.
    """
    limit = position_limit(place)
    if limit is not None and about["length"] > limit:
        raise FinetuneError(f"--length {about['length']} is more than the model's limit of {limit} tokens")
    label = (about["label_field"] or "label") if task == "classify" else None
    options = {"text_field": about["text_field"], "label_field": label}
    try:
        documents = text.documents(about["data"], **options)
        if about["valid_data"] is not None:
            train, valid = documents, text.documents(about["valid_data"], **options)
        elif about["valid_share"] > 0:
            train, valid, _ = text.split(documents, valid=about["valid_share"], test=0.0)
        else:
            train, valid = documents, []
        tokenizer = load_tokenizer(place)
        classes = list(text.classes(train)) if task == "classify" else None
        sets = [_sequences(part, tokenizer, about, classes) if part else None for part in (train, valid)]
    except (DatasetError, FinetuneError):
        raise
    except (ValueError, TypeError) as error:
        raise FinetuneError(str(error)) from error
    if sets[0] is None:
        raise FinetuneError(f"{about['data']} leaves no document to train on")
    return Tokens(sets[0], sets[1], tokenizer, classes)


def read_blocks(tokenizer: Any, data: str, text_field: str, length: int) -> Tensor:
    """Reads documents and packs their tokens: int64 [blocks, length].

    Raises:
        FinetuneError, DatasetError: no such file, or not enough text.
    """
    try:
        return text.blocks(text.documents(data, text_field=text_field), tokenizer, length, end=_end(tokenizer))
    except (DatasetError, FinetuneError):
        raise
    except (ValueError, TypeError) as error:
        raise FinetuneError(str(error)) from error


def _end(tokenizer: Any) -> int | None:
    return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def _sequences(
    documents: list[text.Document], tokenizer: Any, about: dict[str, Any], classes: list[Any] | None
) -> TokenDataset:
    length = about["length"]
    if classes is not None:
        found = text.examples(documents, tokenizer, length, classes)
    else:
        end = _end(tokenizer)
        if about["packing"]:
            return TokenDataset(text.blocks(documents, tokenizer, length, end=end))
        found = text.rows(documents, tokenizer, length, end=end)
        several = (found["labels"][:, 1:] >= 0).any(1)  # of a row of one token nothing can be predicted
        found = {name: value[several] for name, value in found.items()}
    return TokenDataset(found["input_ids"], found["attention_mask"], found["labels"])
