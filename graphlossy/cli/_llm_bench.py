"""``graphlossy llm bench-kv``: what a lossy cache of keys and values costs in quality, and saves in bytes and time."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from graphlossy.cli._bars import bars_with_news
from graphlossy.cli._errors import user_errors
from graphlossy.cli._llm_bench_summary import PARTS, summarize, tables
from graphlossy.cli._llm_data import absolute, model_place, read_blocks
from graphlossy.cli._llm_generate import DTYPE, DTYPES, MODEL, need_caches
from graphlossy.cli._options import path_of, with_root
from graphlossy.cli._outliers_options import names_of
from graphlossy.datasets import DatasetError
from graphlossy.llm.finetune import FinetuneError, load_settings, load_tokenizer, position_limit
from graphlossy.train._device import resolve_device

__all__ = ["bench_command"]

CACHES = "8bit,4bit,4bit-w32,k4v2-r,2bit,h2o:0.1:0.1,h2o:0.25:0.25+4bit,streaming"


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(word) for word in value.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"expected whole numbers with commas between them, got {value!r}")
    return found


def _parts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = names_of(ctx, param, value) or []
    wrong = [name for name in names if name not in PARTS]
    if wrong:
        raise click.BadParameter(f"there is no part {wrong[0]!r}; there are {', '.join(PARTS)}")
    return tuple(names)


@click.command(name="bench-kv", short_help="Quality, bytes and speed of caches, on a model and text of yours.")
@MODEL
@with_root
@click.option("--caches", callback=names_of, default=CACHES, show_default=True, metavar="NAME[,...]",
              help="See `graphlossy llm generate --help`; the full one comes of its own.")  # fmt: skip
@click.option("--parts", callback=_parts, default=",".join(PARTS), show_default=True, metavar="NAME[,...]",
              help="What is measured, see above.")  # fmt: skip
@click.option("--data", metavar="pydoc|FILE|FOLDER", default="pydoc", show_default=True, help="Text: a .txt file, a "
              "folder of text files, a .jsonl file; pydoc: Python's own documentation.")  # fmt: skip
@click.option("--text-field", default="text", show_default=True, metavar="NAME", help="Of a .jsonl file.")
@click.option("--texts", type=click.IntRange(1), default=4, show_default=True, help="How many, drawn from the data.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=1028, show_default=True, help="Read at once.")
@click.option("--scored-tokens", type=click.IntRange(1), default=256, show_default=True, help="Behind the prompt.")
@click.option("--lengths", callback=_numbers, default="1024,4096", show_default=True, metavar="N[,...]",
              help="Of the speed: tokens of a prompt.")  # fmt: skip
@click.option("--batch-sizes", callback=_numbers, default="1,4", show_default=True, metavar="N[,...]",
              help="Of the speed: texts at once.")  # fmt: skip
@click.option("--speed-tokens", type=click.IntRange(1), default=16, show_default=True, help="Written behind a prompt.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Draws texts and lines.")
@DTYPE
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N", help="Where to measure.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the CPU.  [default: torch's choice]")
@click.option("--out", callback=path_of, metavar="DIR", help="Results; what is there already is not measured again.  "
              "[default: runs/kv-MODEL]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON and nothing else on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
@click.pass_context
def bench_command(ctx: click.Context, **options: Any) -> None:
    """Measure caches of keys and values: what they cost in quality, and what they save in bytes and time.

    \b
    Parts:
      quality   perplexity, KL and most likely words against the full cache, and bytes, on text that follows a prompt
      needle    lines of the prompt, asked for by their first words: how many of the next tokens come back
      speed     seconds for a prompt, tokens/s and peak memory, each in a process of its own

    DIR has results.json, written after every cell, and report.html with tables and curves. A stopped run goes on with
    what is missing; the same DIR takes more caches, texts, parts, lengths and batch sizes later.

    \b
    Examples:
      graphlossy llm bench-kv --model smollm2
      graphlossy llm bench-kv --model smollm2 --caches 4bit,k4v2-r,h2o:0.25:0.25+4bit --parts quality --texts 16
      graphlossy llm bench-kv --model my-model --data notes.txt --prompt-tokens 4000 --out study
      graphlossy llm bench-kv --model big-model --dtype bf16 --device cuda --parts speed --lengths 8192,32768
      graphlossy llm bench-kv --model smollm2 --json > caches.json
    """
    errors = Console(stderr=True)
    with user_errors(FinetuneError, DatasetError, ValueError):
        need_caches()
        from graphlossy.cli._llm_bench_folder import BenchFolder
        from graphlossy.cli._llm_bench_report import write_report
        from graphlossy.recsys.train._files import alone_in

        bench, settings = _prepare(options)
        path = options["out"] or Path("runs") / f"kv-{Path(bench.model).name}"
        try:
            with alone_in(path):
                folder = BenchFolder(path, settings)
                _run(bench, folder, None if options["quiet"] or options["as_json"] else errors)
                report = write_report(folder.content(), path / "report.html")
        except KeyboardInterrupt:
            _say(errors, f"stopped; what is done is in {path}; the same command goes on from there")
            ctx.exit(130)
        except OSError as error:
            raise FinetuneError(f"cannot write {path}: {error.strerror or error}") from None
    if options["as_json"]:
        click.echo(json.dumps(folder.content(), indent=2, allow_nan=False))
        return
    _show(folder.cells)
    click.echo(f"results: {folder.file}\nreport: {report}")


def _prepare(options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What is measured, and the settings that a folder has one of; what is wrong shows as early as it can."""
    from graphlossy.cli._llm_bench_cells import Bench, needles_of
    from graphlossy.llm.kv.schemes import parse_cache

    schemes = {scheme.name: scheme for scheme in map(parse_cache, options["caches"]) if scheme.name != "plain"}
    place = absolute(model_place(options["model"], options["root"]))
    device = resolve_device(options["device"])
    limit = position_limit(place)
    _check_caches(place, list(schemes.values()))
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    parts, prompt = options["parts"], options["prompt_tokens"]
    settings = {"model": place, **{name: options[name] for name in ("seed", "dtype")}}
    settings |= {"device": str(device), "threads": torch.get_num_threads()}
    texts, needles = torch.empty(0, 0, dtype=torch.long), tuple[list[Any], ...]()
    if set(parts) & {"quality", "needle"}:
        texts, tokens = _texts(place, limit, options)
        settings |= {name: options[name] for name in ("text_field", "prompt_tokens", "scored_tokens")}
        settings |= {"data": absolute(options["data"]), "text": tokens}
        if "needle" in parts:
            needles = needles_of(load_tokenizer(place), texts[:, :prompt], options["seed"])
    if "speed" in parts:
        settings["speed_tokens"] = options["speed_tokens"]
    bench = Bench(
        place, texts, needles, prompt, tuple(schemes.values()), parts, options["lengths"], options["batch_sizes"],
        options["speed_tokens"], options["seed"], device, DTYPES[options["dtype"]], torch.get_num_threads(),
    )  # fmt: skip
    return bench, settings


def _check_caches(place: str, schemes: list[Any]) -> None:
    settings = load_settings(place)
    for scheme in schemes:
        try:
            scheme.make(settings)
        except (TypeError, ValueError) as error:
            raise FinetuneError(f"cache {scheme.name}: {error}") from error


def _texts(place: str, limit: int | None, options: dict[str, Any]) -> tuple[torch.Tensor, str]:
    """The texts, drawn by the seed so that more of them are the same ones first; a digest of all there are."""
    from graphlossy.llm.kv._needle import OPENING, WANTED

    length = options["prompt_tokens"] + options["scored_tokens"] + 1
    needed = max(length, options["prompt_tokens"] + OPENING + WANTED)
    if limit is not None and needed > limit:
        raise FinetuneError(
            f"--prompt-tokens {options['prompt_tokens']} and --scored-tokens {options['scored_tokens']} need "
            f"{needed:,} positions, the model's limit is {limit:,}"
        )
    blocks = read_blocks(load_tokenizer(place), options["data"], options["text_field"], length)
    if len(blocks) < options["texts"]:
        raise FinetuneError(
            f"{options['data']} has {len(blocks)} texts of {length:,} tokens, fewer than --texts {options['texts']}"
        )
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(options["seed"]))
    return blocks[order[: options["texts"]]], hashlib.sha256(blocks.numpy().tobytes()).hexdigest()[:16]


def _run(bench: Any, folder: Any, console: Console | None) -> None:
    from graphlossy.cli._llm_bench_folder import key_of

    keys = bench.keys()
    there = {key_of(cell) for cell in folder.cells}
    missing = [key for key in keys if key not in there]
    bars = None if console is None else bars_with_news(console)
    if console is not None:
        _say(console, f"{bench.model} on {bench.device} (CPU threads: {bench.threads})\nfolder: {folder.path}")
    with bars or nullcontext():
        done = len(keys) - len(missing)
        bar = None if bars is None else bars.add_task("cells", total=len(keys), completed=done, news="")
        for cell in bench.measure(missing):
            folder.add(cell)
            if bars is not None and bar is not None:
                where = f"text {cell['text'] + 1}" if "text" in cell else f"{cell['batch_size']} x {cell['length']}"
                bars.update(bar, advance=1, news=f"{cell['part']} {cell['cache']}, {where}")


def _show(cells: list[dict[str, Any]]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file or a pipe has no width to fit into
    for found in tables(summarize(cells)):
        table = Table(title=found.title, title_justify="left")
        for number, name in enumerate(found.head):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in found.rows:
            table.add_row(*row)
        console.print(table)


def _say(console: Console, words: str) -> None:
    console.print(words, markup=False, highlight=False, soft_wrap=True)
