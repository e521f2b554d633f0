"""``graphlossy llm generate`` and ``plan-kv``: text with a cache in few bits, and its bytes before anything runs."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import click
import torch

from graphlossy.cli._errors import user_errors
from graphlossy.cli._llm_data import model_place
from graphlossy.cli._options import finite, path_of, with_json, with_root
from graphlossy.cli._outliers_options import names_of
from graphlossy.core._memory import is_out_of_memory
from graphlossy.core.budget import format_bytes
from graphlossy.datasets import DatasetError
from graphlossy.llm._cache_names import GRAMMAR, PLANNED
from graphlossy.llm._versions import check_transformers
from graphlossy.llm.finetune import FinetuneError, load_model, load_settings, load_tokenizer, position_limit
from graphlossy.llm.finetune._errors import need
from graphlossy.train._device import resolve_device

__all__ = ["DTYPE", "DTYPES", "MODEL", "generate_command", "need_caches", "plan_command"]

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODEL = click.option(
    "--model", metavar="FOLDER|NAME", help="A folder that save_pretrained wrote, a name of `graphlossy datasets` such "
    "as smollm2, or a name on the Hugging Face hub.",
)  # fmt: skip
DTYPE = click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)


HELP = f"""
    Continue a prompt; keys and values are kept in few bits, or those of the tokens that matter.

    \b
    Caches:
{textwrap.indent(GRAMMAR, "      ")}
    \b
    Examples:
      graphlossy llm generate --model smollm2 "What is the capital of France?"
      graphlossy llm generate --model smollm2 --prompt-file notes.txt --cache 2bit --new-tokens 64
      graphlossy llm generate --model smollm2 --prompt-file long.txt --cache h2o:0.2:0.1+4bit --json
"""


@click.command(name="generate", help=HELP, short_help="Write text with a cache in few bits.")
@click.argument("prompt", required=False)
@MODEL
@with_root
@click.option("--prompt-file", callback=path_of, metavar="FILE", help="Text of the prompt; - is standard input.")
@click.option("--cache", default="4bit", show_default=True, metavar="NAME", help="See above.")
@click.option("--new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Most to write.")
@click.option("--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True, callback=finite,
              help="0, and below 0.001: the likeliest word.")  # fmt: skip
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, callback=finite,
              help="Share of the likeliest words that one is drawn from.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Draws words.")
@click.option("--chat/--no-chat", default=None, help="Put the prompt into the model's chat template.  [default: if it "
              "has one]")  # fmt: skip
@DTYPE
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N", help="Where to write.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the CPU.")
@with_json
def generate_command(**options: Any) -> None:
    with user_errors(FinetuneError, DatasetError, ValueError):
        found = _generate(options)
    if options["as_json"]:
        click.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    less = f"{found['plain_bytes'] / found['cache_bytes']:.2f} times less than the model's own"
    lines = (
        f"{found['prompt_tokens']} + {found['new_tokens']} tokens, prompt {found['prompt_seconds']:.1f} s, then "
        f"{found['tokens_per_second']:.1f} tokens/s",
        f"cache {options['cache']}: {format_bytes(found['cache_bytes'])}, {less}",
    )
    click.echo("\n".join(lines), err=True)


def need_caches() -> None:
    """Ends the command where transformers is missing, or too old for our caches."""
    need("transformers")
    with user_errors(ImportError):
        check_transformers()


def _generate(options: dict[str, Any]) -> dict[str, Any]:
    need_caches()
    from graphlossy.llm.kv._quality import cache_bytes, with_attention
    from graphlossy.llm.kv.schemes import parse_cache

    scheme, text = parse_cache(options["cache"]), _text(options)
    place = model_place(options["model"], options["root"])
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    device = resolve_device(options["device"])
    words = load_tokenizer(place)
    chat = bool(words.chat_template) if options["chat"] is None else options["chat"]
    if chat:
        if not words.chat_template:
            raise FinetuneError(f"{options['model']} has no chat template; leave out --chat")
        message = [{"role": "user", "content": text}]
        text = words.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = words(text, return_tensors="pt", add_special_tokens=not chat)["input_ids"]
    limit = position_limit(place)
    if limit is not None and ids.shape[1] + options["new_tokens"] > limit:
        raise FinetuneError(
            f"{ids.shape[1]} tokens of the prompt and --new-tokens {options['new_tokens']} are more than the model's "
            f"limit of {limit}"
        )
    model: Any = load_model(place, pad_token_id=words.pad_token_id).to(device, DTYPES[options["dtype"]]).eval()
    cache = scheme.make(model.config)
    torch.manual_seed(options["seed"])
    sampled = options["temperature"] >= 1e-3  # far below, logits divided by it are infinite
    drawn = {"temperature": options["temperature"], "top_p": options["top_p"], "top_k": 0} if sampled else {}
    watch = _Watch(words, show=not options["as_json"])
    try:
        with with_attention(model, cache):
            out = model.generate(
                ids.to(device), attention_mask=torch.ones_like(ids, device=device), past_key_values=cache,
                max_new_tokens=options["new_tokens"], do_sample=sampled, pad_token_id=words.pad_token_id,
                streamer=watch, **drawn,
            )  # fmt: skip
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise FinetuneError("not enough memory for the model and its cache") from None
    new = out[0, ids.shape[1] :]
    held = cache_bytes(cache)
    return {
        "cache": scheme.name,
        "text": words.decode(new, skip_special_tokens=True),
        "prompt_tokens": ids.shape[1],
        "new_tokens": len(new),
        "prompt_seconds": watch.first - watch.start,
        "tokens_per_second": (len(new) - 1) / max(1e-9, watch.last - watch.first),
        "cache_bytes": held[0],
        "plain_bytes": held[2] * torch.finfo(DTYPES[options["dtype"]]).bits // 16,
    }


def _text(options: dict[str, Any]) -> str:
    path: Path | None = options["prompt_file"]
    if (options["prompt"] is None) == (path is None):
        raise FinetuneError("give a prompt, or --prompt-file, and not both")
    try:
        text = options["prompt"] if path is None else sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FinetuneError("the prompt is no text in UTF-8") from None
    if not text.strip():
        raise FinetuneError("the prompt is empty")
    return str(text)


class _Watch:
    """Takes tokens as they are written: shows the text, whole words at a time, and notes when."""

    def __init__(self, words: Any, show: bool) -> None:
        from transformers import TextStreamer

        self._streamer = TextStreamer(words, skip_prompt=True, skip_special_tokens=True) if show else None
        self.start = self.first = self.last = time.perf_counter()
        self._calls = 0

    def put(self, value: Any) -> None:
        """The prompt, then token after token."""
        self._calls += 1
        now = time.perf_counter()
        if self._calls == 2:
            self.first = now
        self.last = now
        if self._streamer is not None:
            self._streamer.put(value)

    def end(self) -> None:
        """The last of the text."""
        if self._streamer is not None:
            self._streamer.end()


@click.command(name="plan-kv", short_help="Bytes of keys and values, before anything runs.")
@MODEL
@with_root
@click.option("--caches", callback=names_of, default=",".join(PLANNED), show_default=True, metavar="NAME[,...]",
              help="See `graphlossy llm generate --help`; the model's own comes of itself.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Texts.")
@click.option("--length", type=click.IntRange(1), default=8192, show_default=True, help="Tokens of each.")
@DTYPE
@with_json
def plan_command(
    model: str | None, root: Path | None, caches: list[str], batch_size: int, length: int, dtype: str, as_json: bool
) -> None:
    """Tell how many bytes the keys and values of a model take, in full precision and in other caches.

    Only the model's config.json is read.

    \b
    Examples:
      graphlossy llm plan-kv --model smollm2 --batch-size 8 --length 8192
      graphlossy llm plan-kv --model smollm2 --caches 4bit,2bit-w32,h2o:0.25:0.25+4bit
      graphlossy llm plan-kv --model my-model --length 32768 --dtype bf16 --json
    """
    from dataclasses import asdict

    with user_errors(FinetuneError, DatasetError, ValueError):
        need_caches()
        from graphlossy.llm.kv import plan_cache

        settings = load_settings(model_place(model, root))
        plan = plan_cache(settings, batch_size, length, DTYPES[dtype], caches)
    click.echo(json.dumps(asdict(plan), indent=2) if as_json else str(plan))
