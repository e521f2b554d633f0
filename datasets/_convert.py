"""A GGUF file's weights and tokenizer as a plain model folder, and whether such a folder can be used."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._models import Model

__all__ = ["check_model", "convert", "need"]

_TEXT = "Rows and columns: 1 + 1 = 2."


def need(model: Model, *packages: str) -> None:
    """Checks that packages are installed, without importing them.

    Raises:
        DatasetError: one is not; the text says what to install.
    """
    absent = [name for name in packages if not _is_there(name)]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        raise DatasetError(
            f"{model.name}: needs {' and '.join(absent)}, which {are} not installed: pip install {' '.join(absent)}"
        )


def convert(model: Model, file: Path, folder: Path, say: Callable[[str], object]) -> None:
    """Writes ``model.safetensors`` (float32), ``config.json`` and the tokenizer's files of a GGUF file.

    The weights are dequantised by transformers' own reader. Nothing is asked of the network.

    Args:
        model: that is converted.
        file: in a folder of its own.
        folder: to write to, empty.
        say: is told what is done.

    Raises:
        DatasetError: transformers cannot read the file, or cannot write.
    """
    need(model, "transformers", "gguf", "accelerate")
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    new = int(transformers.__version__.partition(".")[0]) >= 5
    weights = {**options, "dtype" if new else "torch_dtype": torch.float32}
    if new and hasattr(transformers, "GgufConfig"):  # says that no weight stays in its blocks
        weights["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _quiet():
        try:
            say("reading the tokenizer")
            transformers.AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)
            say("reading the weights")
            network, found = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, output_loading_info=True, **weights
            )
            if absent := sorted(set(found["missing_keys"]) - {"lm_head.weight"}):  # else drawn; the head is tied
                raise ValueError(f"the file has no {absent[0]}")
            say("writing safetensors")
            network.save_pretrained(folder)
        except Exception as error:  # of another version, damaged, no space: whatever the libraries stumble over
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DatasetError(f"{model.name}: transformers {transformers.__version__} fails ({reason})") from None
    _make_plain(folder / "config.json")


def check_model(model: Model, folder: Path) -> str:
    """Reads a plain model folder back and runs it on one short text.

    Returns:
        What was found, in words.

    Raises:
        DatasetError: it cannot be read, its size is another, a weight or a result is not finite, the embeddings are not
            tied, or it does not know what the model must know.
    """
    need(model, "transformers")
    import torch
    import transformers

    again = "remove the folder and prepare it again"
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DatasetError(f"{folder}: transformers cannot read it ({reason}); {again}") from None
    size = sum(weight.numel() for weight in network.parameters())
    if size != model.parameters:
        raise DatasetError(f"{folder}: has {size:,} parameters, expected {model.parameters:,}; {again}")
    if network.get_output_embeddings().weight is not network.get_input_embeddings().weight:
        raise DatasetError(f"{folder}: input and output embeddings are not tied; {again}")
    wrong = [name for name, weight in network.named_parameters() if not weight.isfinite().all()]
    if wrong:
        raise DatasetError(f"{folder}: {wrong[0]} has values that are NaN or infinite; {again}")
    text, goes_on = model.probe or (_TEXT, None)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if tokenizer.decode(ids[0]) != text:
        raise DatasetError(f"{folder}: the tokenizer makes {tokenizer.decode(ids[0])!r} of {text!r}; {again}")
    with torch.no_grad():
        logits = network(input_ids=ids).logits
    if not logits.isfinite().all():
        raise DatasetError(f"{folder}: its results are NaN or infinite; {again}")
    said = tokenizer.decode(logits[0, -1].argmax().reshape(1))
    if goes_on is not None and said != goes_on:
        raise DatasetError(f"{folder}: goes on with {said!r} after {text!r}, expected {goes_on!r}; {again}")
    return f"{size:,} finite parameters, tied embeddings, after {text!r} comes {said!r}"


def _make_plain(config: Path) -> None:
    """Takes out of ``config.json`` that the weights were once rounded: they are plain numbers now."""
    values = json.loads(config.read_text("utf-8"))
    if values.pop("quantization_config", None) is not None:
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its progress bars and messages, and what it was told before afterwards."""
    from tqdm.std import tqdm
    from transformers.utils import logging

    bars, level, start = logging.is_progress_bar_enabled(), logging.get_verbosity(), vars(tqdm)["__init__"]
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    setattr(tqdm, "__init__", partialmethod(start, disable=True))  # noqa: B010  # the GGUF reader's bar obeys nothing else
    try:
        yield
    finally:
        setattr(tqdm, "__init__", start)  # noqa: B010
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def readable(folder: Path) -> None:
    """Gives files the permissions of new ones; safetensors gives its own to the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
    folder.chmod(0o777 & ~mask)
