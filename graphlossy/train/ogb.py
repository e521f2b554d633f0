"""What a script that trains on an OGB graph needs: its switches, the settings they stand for, and a line per epoch."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphlossy.datasets import DatasetError
from graphlossy.train._checks import SAMPLERS, SPARSIFIERS
from graphlossy.train._ddp_group import is_main
from graphlossy.train._ddp_launch import speaks
from graphlossy.train._errors import TrainError
from graphlossy.train._experiment import Experiment, Interrupted, Observer
from graphlossy.train._format import comparison_notes, comparison_rows, format_size
from graphlossy.train._models import MODELS
from graphlossy.train._task import Task

__all__ = ["PrintEpochs", "ogb_parser", "ogb_settings", "print_summary", "run_script"]

GRACE = 1.0  # seconds


def ogb_parser(
    dataset: str, description: str | None = None, models: Sequence[str] = tuple(MODELS)
) -> argparse.ArgumentParser:
    """The switches of a script for one OGB data set; what is not given keeps OGB's reference configuration.

    Args:
        dataset: such as ``"ogbn-arxiv"``.
        description: shown by ``--help``.
        models: names that ``--model`` takes; the first is the default.

    Returns:
        A parser to which a script may add switches of its own.

    Example:
        >>> from graphlossy.train import TrainConfig
        >>> args = ogb_parser("ogbn-arxiv").parse_args(["--model", "sage", "--synthetic", "0.01", "--runs", "1"])
        >>> config = TrainConfig.from_preset("ogb", **ogb_settings(args))
        >>> config.dataset, config.scale, config.model, config.seeds, config.epochs
        ('synth-arxiv', 0.01, 'sage', 1, 500)
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given is left to the preset
    )
    parser.set_defaults(dataset=dataset)
    add = parser.add_argument
    add("--model", choices=models, default=models[0], help="graph network (default: %(default)s)")
    add("--bits", type=_numbers, metavar="N[,N...]", help="bits per stored number: 1, 2, 3, 4 or 8 (default: 2)")
    add("--budget", metavar="SIZE", help="bytes for all saved tensors, such as 800MiB, instead of --bits")
    add("--schemes", type=_names, metavar="NAME[,NAME]", help="baseline, compressed or both (default: both)")
    add("--sparsify", metavar="METHOD:SHARE", help=f"thin the training graph; methods: {', '.join(SPARSIFIERS)}")
    add("--sampler", choices=tuple(SAMPLERS), help="mini-batches (default: full batch)")
    add("--batch-size", type=int, help="nodes, edges, walks or clusters of a mini-batch")
    add("--num-workers", type=int, help="processes that prepare the batches")
    add("--amp", action="store_true", help="bfloat16 autocast in the forward pass")
    add("--runs", type=int, dest="seeds", help="runs with different seeds (default: 10)")
    add("--epochs", type=int, help="passes over the training nodes")
    add("--eval-batch", type=int, help="evaluate layer by layer, so many nodes at a time")
    add("--root", help="folder of the data (default: $GRAPHLOSSY_DATA or ~/.cache/graphlossy)")
    add("--synthetic", nargs="?", type=float, const=1.0, dest="scale", metavar="SCALE",
        help="a generated stand-in of that share of the size instead of the real data")  # fmt: skip
    add("--gradient-bits", type=int, metavar="N", help="under torchrun: gradients travel in 1, 2, 3, 4 or 8 bits")
    add("--gradient-feedback", action="store_true", help="add what rounding a gradient lost to the next one")
    add("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--out", type=Path, default=None, help="run folder (default: runs/<dataset>-<model>-<time>)")
    return parser


def ogb_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of :class:`~graphlossy.train.TrainConfig` that the switches of :func:`ogb_parser` stand for."""
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    if "scale" in settings:
        settings["dataset"] = settings["dataset"].replace("ogbn-", "synth-")
    return settings


class PrintEpochs(Observer):
    """Prints a line for each evaluated epoch."""

    def started(self, experiment: Experiment, task: Task) -> None:
        """Says what is trained on."""
        size = task.describe()
        kept = "" if size["train_edges"] == size["edges"] else f" ({size['train_edges']:,} of them to train on)"
        print(f"{size['name']}: {size['nodes']:,} nodes, {size['edges']:,} edges{kept}, on {experiment.device}")

    def epoch(self, line: dict[str, Any]) -> None:
        """Prints what ``metrics.jsonl`` got, if it was evaluated."""
        head = f"{line['run']:>10s}  run {line['seed']:2d}  epoch {line['epoch']:4d}"
        if "loss" not in line:
            print(f"{head}  {line['status']}")
        elif line["valid"] is not None:
            scores = "  ".join(f"{name} {100 * line[name]:6.2f}" for name in ("train", "valid", "test"))
            print(f"{head}  loss {line['loss']:7.4f}  {scores}  saved {format_size(line['saved_bytes'])}")


def print_summary(summary: dict[str, Any]) -> None:
    """Prints the closing table, what must be read with it, and where the report lies; under torchrun once."""
    if not is_main():
        return
    rows = comparison_rows(summary)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for name, *cells in rows:
        print("  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))]))
    for note in comparison_notes(summary):
        print(note)
    print(f"report: {Path(summary['folder']) / 'report.html'}")


def run_script(main: Callable[[], None], without_data: str = "") -> None:
    """Runs a script's ``main``; a mistake ends the process with one line, under torchrun with one on each machine.

    Args:
        main: the script; raises what :meth:`graphlossy.train.Experiment.run` raises.
        without_data: what to try where the data are not there.

    Raises:
        SystemExit: with the line, if ``main`` fails or is interrupted.

    Example:
        >>> run_script(lambda: print("done"))
        done
    """
    try:
        main()
    except (TrainError, DatasetError) as error:
        if not speaks():
            time.sleep(GRACE)  # torchrun ends the others as soon as one has ended: the one that speaks goes first
        hint = f"\n{without_data}" if without_data and isinstance(error, DatasetError) else ""
        raise SystemExit(f"error: {error}{hint}" if speaks() else 1) from None
    except Interrupted as stop:
        if is_main():
            print(stop, file=sys.stderr)
        raise SystemExit(128 + stop.signal_number) from None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
