"""The options of ``graphlossy train`` that are settings of the experiment, and how their texts are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from graphlossy.train import MODELS, PRESETS, SAMPLERS, SPARSIFIERS, TrainConfig

__all__ = ["folder_name", "setting_options"]

DEFAULT = TrainConfig()


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        return None if value is None else tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 2 or 4,2,1, got {value!r}") from None


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(","))


def _split(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"expected a number or all, got {value!r}")
    return int(value)


def folder_name(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Callback of an option that names a folder."""
    if value is not None and (not value or "\0" in value):
        raise click.BadParameter(f"expected the name of a folder, got {value!r}")
    return None if value is None else Path(value)


def _option(*names: str, **options: Any) -> Callable[[Any], Any]:
    """An option whose default is that of the setting of the same name."""
    name = names[0].split("/")[0].removeprefix("--").replace("-", "_")
    default = getattr(DEFAULT, name)
    options.setdefault("default", default)
    return click.option(*names, show_default=options["default"] is not None, **options)


_OPTIONS = [
    _option("--dataset", metavar="NAME|FILE|FOLDER", help="Embedded, OGB, generated, Planetoid or PyG name, an .npz "
            "file, or a folder."),
    _option("--root", metavar="FOLDER", help="Folder of downloaded and generated data.  [default: $GRAPHLOSSY_DATA]"),
    _option("--scale", type=float, help="Size of a generated graph (synth-...) as a share of the original's."),
    _option("--preset", metavar="|".join(PRESETS), help="Settings to start from: ogb is OGB's reference configuration "
            "of ogbn-arxiv, ogbn-products, ogbn-proteins and their stand-ins synth-...; other options change it."),
    _option("--model", metavar="|".join(MODELS), help="Graph network."),
    _option("--layers", type=int, help="Graph convolutions."),
    _option("--hidden", type=int, help="Width of the hidden layers."),
    _option("--heads", type=int, help="Attention heads (gat)."),
    _option("--dropout", type=float, help="Dropout probability."),
    _option("--norm/--no-norm", help="BatchNorm between the layers."),
    _option("--bits", callback=_numbers, default="2", metavar="N[,N...]",
            help="Bits per stored number: 1, 2, 3, 4 or 8; several make several compressed runs."),
    _option("--budget", metavar="SIZE", help="Bytes for all saved tensors, such as 800MiB, instead of --bits; holds "
            "for every batch."),
    _option("--schemes", callback=_names, default="baseline,compressed", metavar="NAME[,NAME]",
            help="What to train: baseline, compressed or both."),
    _option("--sampler", metavar="KIND", help=f"Mini-batches instead of the full batch: {', '.join(SAMPLERS)}."),
    _option("--batch-size", type=int, help="Training nodes of a neighbour-sampled batch; nodes, edges or walks of a "
            "GraphSAINT subgraph; clusters of a cluster batch."),
    _option("--num-neighbors", callback=_numbers, metavar="N,N,...", help="Neighbours drawn, one number a layer, -1 "
            "for all.  [default: 15,10,5]"),
    _option("--num-parts", type=int, help="Clusters of the graph (sampler cluster)."),
    _option("--walk-length", type=int, help="Steps of a walk (sampler saint-walk)."),
    _option("--num-workers", type=int, help="Processes that prepare the batches; the result does not depend on it."),
    _option("--sparsify", metavar="METHOD:SHARE", help="Thin the graph once before training, such as degree:0.5; "
            f"methods: {', '.join(SPARSIFIERS)}."),
    _option("--sparsify-eval/--no-sparsify-eval", help="Evaluate on the thinned graph too, as DSpar does."),
    _option("--reweight/--no-reweight", help="Weigh the edges that are kept, so that sums over neighbours are right in "
            "expectation.  [default: yes, but for gat]"),
    _option("--epochs", type=int, help="Passes over the training nodes of each run."),
    _option("--eval-every", type=int, help="Epochs from one evaluation to the next."),
    _option("--eval-batch", type=int, help="Evaluate layer by layer, so many nodes at a time: for graphs whose full "
            "forward pass does not fit."),
    _option("--seeds", type=int, help="Runs of each scheme."),
    _option("--seed", type=int, help="The first seed."),
    _option("--split", callback=_split, default="0", metavar="N|all", help="Split; all: one for each seed."),
    _option("--lr", type=float, help="Adam's learning rate."),
    _option("--weight-decay", type=float, help="L2 penalty."),
    _option("--device", metavar="auto|cpu|cuda|cuda:N", help="Where to train; auto takes CUDA where there is one."),
    _option("--amp", is_flag=True, help="bfloat16 autocast in the forward pass of every run."),
    _option("--adj", metavar="edge_index|csr", help="How the model is given the graph: plain edge_index or a sparse "
            "CSR matrix."),
    _option("--gradient-bits", type=int, metavar="N", help="Under torchrun: send gradients in 1, 2, 3, 4 or 8 bits "
            "between the processes instead of float32."),
    _option("--gradient-feedback", is_flag=True, help="Add what rounding a gradient lost to the next one."),
    _option("--threads", type=int, help="CPU threads.  [default: torch's choice]"),
]  # fmt: skip


def setting_options(command: Any) -> Any:
    """Decorator: gives a command one option for every setting of :class:`graphlossy.train.TrainConfig`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
