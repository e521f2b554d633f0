"""``graphlossy outliers score``: a score for every node of a user's graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphlossy.cli._errors import user_errors
from graphlossy.cli._options import path_of, with_root
from graphlossy.cli._outliers_options import options_of

__all__ = ["score_command"]


@click.command(name="score", short_help="Score the nodes of a graph of your own.")
@click.argument("data", metavar="NAME|FILE|FOLDER")
@click.option("--method", default="dominant", show_default=True, metavar="NAME", help="Which detector.")
@click.option("--out", callback=path_of, required=True, metavar="FILE", help="Scores: .csv, .npy or .json.")
@click.option("--set", "options", multiple=True, callback=options_of, metavar="NAME=VALUE",
              help="A constructor argument of the method, such as epoch=200; may be repeated.")  # fmt: skip
@click.option("--contamination", type=float, metavar="SHARE", help="Expected share of outliers, for the labels.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31),
    default=0,
    show_default=True,
    help="Of the method, and of a graph that is generated or injected by name.",
)
@click.option("--engine", default="native", show_default=True, metavar="NAME", help="native, pygod or pyod.")
@with_root
def score_command(data: str, method: str, out: Path, options: dict[str, Any], contamination: float | None, seed: int,
                  engine: str, root: Path | None) -> None:  # fmt: skip
    """Fit a detector to a graph and write a score for every node, higher for what is more outlying.

    \b
    Examples:
      graphlossy outliers score mine.npz --out scores.csv
      graphlossy outliers score mine.pt --method gcnae --set epoch=200 --set hid_dim=32 --out scores.npy
      graphlossy outliers score books --method lof --contamination 0.02 --out scores.json
    """
    from graphlossy.core._memory import is_out_of_memory
    from graphlossy.outliers.runner import BenchmarkError
    from graphlossy.outliers.runner.errors import one_line
    from graphlossy.outliers.runner.methods import own_name
    from graphlossy.outliers.score import check_ending, score, write_scores

    options = {name if name == "*" else own_name(name): values for name, values in options.items()}
    others = [name for name in options if name not in ("*", own_name(method))]
    if others:
        raise click.BadParameter(f"there is one method, {method}; got {others[0]}.NAME=VALUE", param_hint="--set")
    params = {**options.get("*", {}), **options.get(own_name(method), {})}
    if contamination is not None:
        params["contamination"] = contamination
    kinds = (BenchmarkError, ValueError, TypeError, OSError, ImportError, FloatingPointError)
    with user_errors(*kinds):
        check_ending(out)
        try:
            detector = score(data, method, params, seed, engine, root)
        except kinds:
            raise
        except Exception as error:  # another library's may be of any kind
            told = "needs more memory than there is" if is_out_of_memory(error) else f"failed: {one_line(error)}"
            raise BenchmarkError(f"{method} on {data} {told}") from error
        about = {"data": data, "method": method, "engine": engine, "seed": seed, "params": params}
        write_scores(out, detector, about)
    flagged = int((detector.label_ != 0).sum())
    highest = detector.decision_score_.argsort(descending=True)[:10].tolist()
    click.echo(
        f"{out}: {len(detector.decision_score_):,} nodes, {flagged:,} above the threshold {detector.threshold_:.6g}; "
        f"highest: {', '.join(map(str, highest))}"
    )
