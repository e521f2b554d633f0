"""Models and tokenizers from a folder, adapters, and whether a model can take the data."""

from __future__ import annotations

import difflib
import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphlossy.llm.finetune._config import FinetuneConfig
from graphlossy.llm.finetune._data import IGNORED, TokenDataset
from graphlossy.llm.finetune._errors import FinetuneError, need, one_line, quiet, user_errors

__all__ = [
    "add_adapters",
    "check_fits",
    "frozen_fingerprint",
    "load_model",
    "load_settings",
    "load_tokenizer",
    "position_limit",
]


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer in a folder, or of a name on the Hugging Face hub; without a padding token it pads with the last.

    Raises:
        FinetuneError: there is none, or transformers is not installed.
    """
    place = _place(name)
    tokenizer = _load(need("transformers").AutoTokenizer, place, "tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(
    name: str | Path,
    task: str = "causal",
    num_labels: int | None = None,
    pad_token_id: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """A model in float32, from a local folder or by its name on the Hugging Face hub.

    Args:
        name: the folder, or the name.
        task: ``"causal"`` or ``"classify"``, whose new weights are drawn with ``seed``.
        num_labels: classes.
        pad_token_id: of the tokenizer, where the model has none; a decoder that classifies needs it.
        seed: of new weights; torch's generator is left alone.

    Raises:
        FinetuneError: there is no such model, or transformers is not installed.
    """
    place = _place(name)
    transformers = need("transformers")
    kind = transformers.AutoModelForCausalLM if task == "causal" else transformers.AutoModelForSequenceClassification
    old = tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (4, 56)
    options: dict[str, Any] = {"torch_dtype" if old else "dtype": torch.float32}
    if task == "classify":
        options["num_labels"] = num_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load(kind, place, "model", **options)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = pad_token_id
    return model


def load_settings(name: str | Path) -> Any:
    """The configuration of a model in a folder, or of a name on the Hugging Face hub; no weight is read.

    Raises:
        FinetuneError: there is none, or a wrong one, or transformers is not installed.
    """
    place = _place(name)
    return _load(need("transformers").AutoConfig, place, "settings")


def _place(name: str | Path) -> str:
    """A folder of a model, or a name that may be on the hub."""
    text = str(name)
    path = Path(text).expanduser()
    if not text or "\0" in text:
        raise FinetuneError(f"model must be a folder or a name on the Hugging Face hub, got {text!r}")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FinetuneError(f"{path} is no folder of a model: it has no config.json")
        return str(path)
    if path.exists() or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise FinetuneError(f"no model folder at {path}; give a folder that save_pretrained wrote, or a hub name")
    return text


def _load(kind: Any, place: str, what: str, **options: Any) -> Any:
    try:
        with quiet():
            return kind.from_pretrained(place, **options)
    except Exception as error:  # the hub's client raises errors of its own kinds
        if Path(place).is_dir():
            if not isinstance(error, _faults_of_a_folder()):
                raise
            raise FinetuneError(f"cannot load the {what} in {place}: {_short(error)}") from error
        raise FinetuneError(
            f"cannot load the {what} {place}: there is no such folder here, and the Hugging Face hub does not give it "
            f"({_short(error)})"
        ) from error


def _faults_of_a_folder() -> tuple[type[Exception], ...]:
    """What transformers raises for files that are damaged, or that say what cannot be."""
    import huggingface_hub.errors
    from safetensors import SafetensorError

    usual = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
    # A setting of the wrong type or size, found by a check or by the code that meets it.
    wrong = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)  # old ones do not check
    return (*usual, wrong, TypeError, AttributeError, ArithmeticError)


def _short(error: BaseException) -> str:
    text = one_line(error)
    return text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " ..."


def add_adapters(model: nn.Module, config: FinetuneConfig) -> nn.Module:
    """A PEFT model around ``model``, whose own weights are frozen; what is random follows torch's generator.

    Raises:
        FinetuneError: PEFT is not installed, or a module is not there.
    """
    peft = need("peft")
    modules = config.lora_modules
    if isinstance(modules, tuple):
        _check_modules(model, modules)
        modules = list(modules)
    settings = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM if config.task == "causal" else peft.TaskType.SEQ_CLS,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha if config.lora_alpha is not None else 2 * (config.lora_rank or 0),
        lora_dropout=config.lora_dropout,
        target_modules=modules,
    )
    with user_errors("LoRA: "), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names of transformers that PEFT still uses
        return peft.get_peft_model(model, settings)


def _check_modules(model: nn.Module, names: tuple[str, ...]) -> None:
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        if not any(path == name or path.endswith("." + name) for path in linears):
            endings = sorted({path.rpartition(".")[2] for path in linears})
            near = difflib.get_close_matches(name, endings, 3) or endings[:12]
            raise FinetuneError(f"lora_modules: no linear layer {name!r} in the model; near: {', '.join(near)}")


def position_limit(model: Any) -> int | None:
    """The most tokens that a model takes at once; None where it has no such limit.

    Args:
        model: a folder or a name, as `load_model` takes it, of which the settings alone are read; or the settings.
    """
    settings = load_settings(model) if isinstance(model, (str, Path)) else model
    for name in ("max_position_embeddings", "n_positions"):
        limit = getattr(settings, name, None)
        if isinstance(limit, int) and limit > 0:
            # These count positions from behind the padding token's number.
            shifted = any(kind in str(getattr(settings, "model_type", "")) for kind in ("roberta", "camembert"))
            return limit - (settings.pad_token_id or 0) - 1 if shifted else limit
    return None


def check_fits(model: Any, data: TokenDataset, task: str, name: str = "train") -> None:
    """Refuses data that the model cannot take: long sequences, unknown tokens, classes that it has not.

    Raises:
        FinetuneError: says which.
    """
    settings = getattr(model, "config", None)
    if settings is None or not hasattr(model, "get_input_embeddings"):
        raise FinetuneError(f"model must be a transformers model, got {type(model).__name__}")
    limit = position_limit(settings)
    if limit is not None and data.length > limit:
        raise FinetuneError(f"{name} has sequences of {data.length} tokens, more than the model's limit of {limit}")
    rows = model.get_input_embeddings().weight.shape[0]
    low, high = int(data.input_ids.min()), int(data.input_ids.max())
    if low < 0 or high >= rows:
        wrong = low if low < 0 else high
        raise FinetuneError(f"{name} has token {wrong}, the model knows 0 to {rows - 1}; use its own tokenizer")
    if data.classifies != (task == "classify"):
        kind = "[sequences] classes" if task == "classify" else "[sequences, length] tokens"
        raise FinetuneError(f"{name}: task {task} needs labels of the shape {kind}, got {tuple(data.labels.shape)}")
    if task == "classify":
        known = data.labels[data.labels != IGNORED]
        if len(known) and (int(known.min()) < 0 or int(known.max()) >= settings.num_labels):
            raise FinetuneError(f"{name} has class {int(known.max())}, the model has {settings.num_labels} classes")
        if data.attention_mask is not None and settings.pad_token_id is None and not _encodes(settings):
            raise FinetuneError("a decoder that classifies padded sequences needs model.config.pad_token_id")


def _encodes(settings: Any) -> bool:
    return "position_embedding_type" in settings.to_dict() or getattr(settings, "is_encoder_decoder", False)


def frozen_fingerprint(model: nn.Module) -> str:
    """Of the weights that are not trained, from some of their numbers: a checkpoint does not hold them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)].float().cpu().contiguous()
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
