"""The options of ``graphlossy llm finetune``: what is trained on, the settings of the run, and how texts are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from graphlossy.cli._options import path_of, with_root
from graphlossy.llm.finetune import BITS, ESTIMATORS, METHODS, SCHEDULES, FinetuneConfig

__all__ = ["DATA", "SETTINGS", "method_lines", "with_options"]

DEFAULT = FinetuneConfig()


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    if not names:
        raise click.BadParameter(f"expected names with commas between them, got {value!r}")
    return names


def _lora_modules(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | str | None:
    return value if value == "all-linear" else _names(ctx, param, value)


def _number_or(word: str) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
        if value is None or value == word:
            return None
        if not value.isdecimal():
            raise click.BadParameter(f"expected a number or {word}, got {value!r}")
        return int(value)

    return read


def _budget(ctx: click.Context, param: click.Parameter, value: str | None) -> float | str | None:
    if value is None or value == "none":
        return None
    try:
        return float(value)
    except ValueError:
        return value  # a size; the settings say what is none


def _option(*names: str, **options: Any) -> Callable[[Any], Any]:
    """An option whose default is that of the setting of the same name."""
    name = names[0].split("/")[0].removeprefix("--").replace("-", "_")
    options.setdefault("default", getattr(DEFAULT, name))
    return click.option(*names, show_default=options["default"] is not None, **options)


def method_lines() -> str:
    """What the names of ``--method`` mean, a line each, for the help."""
    return "\n".join(f"      {name:<6} {what}" for name, (what, _) in METHODS.items())


_BITS = ("none", *map(str, BITS))
_DATA = [
    click.option("--model", metavar="FOLDER|NAME", help="A folder that save_pretrained wrote, a name of `graphlossy "
                 "datasets` such as smollm2, or a name on the Hugging Face hub."),
    click.option("--data", metavar="pydoc|FILE|FOLDER", default="pydoc", show_default=True, help="Text: a .txt file "
                 "(its paragraphs), a folder of text files, a .jsonl file; pydoc: Python's own documentation."),
    click.option("--valid-data", metavar="FILE|FOLDER", help="Held-out text.  [default: a share of --data]"),
    click.option("--valid-share", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True,
                 help="Of the documents, held out; 0: there is no evaluation."),
    click.option("--text-field", default="text", show_default=True, metavar="NAME", help="Of a .jsonl file."),
    click.option("--label-field", metavar="NAME", help="Of a .jsonl file, the class.  [default: label, to classify]"),
    click.option("--length", type=click.IntRange(2), default=512, show_default=True, help="Tokens of a sequence."),
    click.option("--packing/--no-packing", default=True, show_default=True, help="Documents one after the other in "
                 "sequences without padding, or each in sequences of its own."),
]  # fmt: skip
_SETTINGS = [
    _option("--task", type=click.Choice(["causal", "classify"]), help="Next token, or a class for every document."),
    _option("--lr", type=float, help="Highest learning rate, of AdamW (method lora: 2e-4)."),
    _option("--schedule", type=click.Choice(SCHEDULES), help="Of the learning rate, after the warm-up."),
    _option("--warmup", type=float, metavar="N|SHARE", help="Steps of warm-up; below 1 a share of all steps."),
    _option("--steps", type=int, help="Optimiser steps.  [default: as many as --epochs need]"),
    _option("--epochs", type=int, help="Passes over the training text."),
    _option("--batch-size", type=int, help="Sequences of one forward pass."),
    _option("--accumulate", type=int, help="Forward passes of one step."),
    _option("--seed", type=int, help="Of the data's order, dropout, rounding, draws, and new weights."),
    _option("--dtype", type=click.Choice(["float32", "bf16"]), help="bf16: autocast over float32 weights."),
    _option("--device", metavar="auto|cpu|cuda|cuda:N", help="Where to train."),
    _option("--threads", type=int, help="CPU threads.  [default: torch's choice]"),
    _option("--clip", type=float, help="Highest norm of the gradient; 0: none."),
    _option("--weight-decay", type=float, help="Of AdamW, for matrices."),
    _option("--gradient-checkpointing/--no-gradient-checkpointing", help="The model's own: blocks run again."),
    _option("--lora-rank", default=None, callback=_number_or("none"), metavar="N|none", help="Train adapters of this "
            "rank and no other weight (needs peft)."),
    _option("--lora-alpha", type=float, help="Their scale.  [default: twice the rank]"),
    _option("--lora-dropout", type=float, help="Dropout probability before them."),
    _option("--lora-modules", callback=_lora_modules, metavar="NAME[,...]|all-linear", help="Linear layers that get "
            "them, by name or ending.  [default: PEFT's choice]"),
    _option("--merge", is_flag=True, help="Save the model with its adapters added to its weights."),
    _option("--bits", type=click.Choice(_BITS), callback=lambda c, p, v: None if v in (None, "none") else int(v),
            default="4", help="Width of saved activations."),
    _option("--budget", callback=_budget, metavar="SHARE|SIZE", help="Share of the token rows in weight gradients, "
            "above 0 and at most 1; or most saved bytes, such as 6GiB, for which the bits are chosen."),
    _option("--estimator", type=click.Choice(ESTIMATORS), help="How the rows are drawn (a share).  [default: pps]"),
    _option("--recompute/--no-recompute", help="Compute cheap results again in the backward pass."),
    _option("--target-modules", callback=_names, metavar="NAME[,...]", help="Linear layers whose rows are drawn, by "
            "name or part of it.  [default: all but the output's]"),
    _option("--eval-every", type=int, metavar="STEPS", help="0: at the end only.  [default: ten times in a run]"),
    _option("--eval-sequences", callback=_number_or("all"), default="64", metavar="N|all", help="Most held-out "
            "sequences that an evaluation reads."),
]  # fmt: skip
DATA = ("model", "data", "valid_data", "valid_share", "text_field", "label_field", "length", "packing", "root")
SETTINGS = tuple(DEFAULT.to_dict())


def with_options(command: Any) -> Any:
    """Decorator: gives a command the options of the data and of every setting of a run."""
    rest: list[Any] = [
        click.option("--method", default="4bit", show_default=True, metavar="NAME[+NAME]", help="What is kept for the "
                     "backward pass, see above; fills in options, and options given beside it win."),
        click.option("--out", callback=path_of, metavar="FOLDER", help="Run folder.  [default: runs/llm-MODEL-TIME]"),
        click.option("--resume", callback=path_of, metavar="FOLDER", help="Continue the run in FOLDER, with its own "
                     "settings."),
        click.option("--checkpoint-seconds", type=click.FloatRange(min=0), default=300.0, show_default=True,
                     help="Least time between checkpoints; 0 writes one after every step."),
        with_root,
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else on stdout."),
        click.option("--quiet", "-q", is_flag=True, help="No progress bar."),
    ]  # fmt: skip
    for option in reversed([_DATA[0], _DATA[1], rest[0], *_DATA[2:], *_SETTINGS, *rest[1:]]):
        command = option(command)
    return command
