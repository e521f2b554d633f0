"""Pictures of a plan: the size of tokens against how often they occur."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphlossy.core import format_bytes

if TYPE_CHECKING:
    from graphlossy.recsys.plan import EmbeddingPlan, TablePlan

__all__ = ["draw_sizes"]

_PANELS, _COLUMNS = 9, 3
_MANY_SIZES = 16  # beyond, points instead of boxes
_POINTS = 4000


def draw_sizes(plan: EmbeddingPlan, path: Path, counts: Mapping[str, Tensor]) -> None:
    """Draws a panel for each of the largest tables; see `EmbeddingPlan.picture`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "pictures need matplotlib: pip install matplotlib, or pip install 'graphlossy[plot]'"
        raise ImportError(message) from error
    tables = [table for table in plan.tables if table.sizes is not None]
    if not tables:
        kinds = ", ".join(sorted({table.kind for table in plan.tables})) or "none"
        raise ValueError(f"a picture shows the sizes of tokens, and no table of this plan has any (kinds: {kinds})")
    missing = [table.name for table in tables if table.name not in counts]
    if missing:
        raise ValueError(f"counts are missing for {', '.join(missing)}; give [V] token counts by the table's name")
    largest = sorted(tables, key=lambda t: -t.dense_nbytes)[:_PANELS]
    columns = min(_COLUMNS, len(largest))
    rows = -(-len(largest) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.9 + 2.9 * rows), layout="constrained")
    total = f"{format_bytes(plan.nbytes)}, {plan.ratio:.1f} times smaller than {format_bytes(plan.dense_nbytes)}"
    shown = f" (the {len(largest)} largest of {len(tables)} tables)" if len(tables) > len(largest) else ""
    figure.suptitle(f"{plan.method}: {total}{shown}")
    for at, table in enumerate(largest):
        _panel(figure.add_subplot(rows, columns, at + 1), table, counts[table.name])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _panel(axes: Any, table: TablePlan, counts: Tensor) -> None:
    if table.sizes is None or tuple(counts.shape) != (table.num_embeddings,):
        raise ValueError(f"counts of {table.name!r} must be [{table.num_embeddings}], got {tuple(counts.shape)}")
    sizes, counts = table.sizes.long(), counts.cpu().double()
    kinds = sizes.unique().tolist()
    # A logarithmic axis has no 0: a token that never occurs stands one half to the left of those that occur once.
    shown = counts.clamp(min=0.5)
    if len(kinds) <= _MANY_SIZES:
        groups = [shown[sizes == size].numpy() for size in kinds]
        axes.boxplot(groups, widths=0.6, flierprops={"markersize": 2, "alpha": 0.4})
        labels = [f"{size}\n{len(group):,}" for size, group in zip(kinds, groups, strict=True)]
        axes.set_xticks(range(1, len(kinds) + 1), labels, fontsize="small")
        axes.set_xlabel("size, and how many tokens have it")
    else:
        chosen = torch.linspace(0, len(sizes) - 1, min(_POINTS, len(sizes))).long()
        axes.scatter(sizes[chosen], shown[chosen], s=4, alpha=0.4, linewidths=0)
        axes.set_xlabel("size")
    axes.set_yscale("log")
    axes.set_ylabel("occurrences (0 drawn at 0.5)" if bool((counts == 0).any()) else "occurrences")
    axes.set_title(table.name, fontsize="medium")
