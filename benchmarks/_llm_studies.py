"""The tables of docs/studies.md on language models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks._llm import VARIANTS
from benchmarks.table import markdown

__all__ = ["caches", "gradients", "greedy", "loss", "memory", "speed"]

_LARGEST = 14  # operations that are shown


def gradients(data: dict[str, Any]) -> Iterator[str]:
    """Relative errors of sampled and of rounded weight gradients."""
    rows = data["rows"]
    shares = sorted({name.split(" ")[1] for name in rows if " " in name}, reverse=True)
    methods = list(dict.fromkeys(name.split(" ")[0] for name in rows if " " in name))
    head = ["rows sampled", *(f"k/n = {share}" for share in shares)]
    yield markdown(head, [[f"`{m}`", *(_error(rows[f"{m} {share}"]) for share in shares)] for m in methods])
    widths, groups = (list(dict.fromkeys(name.split("/")[i] for name in rows if "/" in name)) for i in (0, 1))
    body = [[f"in groups of {group}", *(_error(rows[f"{width}/{group}"]) for width in widths)] for group in groups]
    yield markdown(["all rows rounded", *widths], body)
    yield f"{len(data['layers'])} layers, {data['tokens']:,} tokens, {data['settings']['repeats']} repeats."


def _error(row: dict[str, Any]) -> str:
    return f"{row['mean']:.3f} ± {row['std']:.3f}"


def loss(data: dict[str, Any]) -> Iterator[str]:
    """Held-out loss of every variant, and its distance from the plain model's over equal seeds."""
    body, first = [], None
    for name, row in data["summary"].items():
        title = f"`{name}`: {VARIANTS[name]}"
        if "error" in row:
            body.append([title, row["error"].replace("|", "/"), "", ""])
            continue
        first = row["first"] if name == "plain" else first
        paired = row.get("paired")
        distance = "" if paired is None or name == "plain" else f"{paired['mean']:+.4f} ± {paired['std']:.4f}"
        body.append([title, _loss(row["valid"]), distance, _loss(row["train"])])
    size = data["settings"]
    tokens = f"{size['batch']} x {size['length']} tokens of {size['sequences']} sequences"
    seeds = len(data["summary"]["plain"]["valid"]["raw"])
    yield (
        f"{size['model']}, {size['steps']} steps of {tokens}, {seeds} seed{'s' * (seeds > 1)}; before them the "
        f"held-out loss is {first:.4f}:\n\n"
        + markdown(["", "held-out loss", "distance from plain, equal seeds", "training loss"], body)
    )


def _loss(values: dict[str, Any]) -> str:
    return f"{values['mean']:.4f}" + (f" ± {values['std']:.4f}" if len(values["raw"]) > 1 else "")


def memory(data: dict[str, Any]) -> Iterator[str]:
    """Saved bytes, peak and time of every variant; and bytes by operation, plain and in four bits."""
    body = []
    for name, row in data["summary"].items():
        if "error" in row:
            body.append([f"`{name}`: {data['variants'].get(name, '')}", row["error"].replace("|", "/"), *[""] * 5])
            continue
        seconds = row["seconds"]
        body.append([
            f"`{name}`: {data['variants'].get(name, '')}", f"{row['held_bytes'] / 1e6:,.0f} MB", _ratio(row, "saved"),
            f"{row['peak_bytes']['median'] / 1e6:,.0f} MB", _ratio(row, "peak"),
            f"{seconds['median']:.2f} ± {seconds['std']:.2f}", _ratio(row, "time"),
        ])  # fmt: skip
    size = data["settings"]
    yield f"{size['model']}, {size['batch']} x {size['length']} tokens, float32 weights:\n\n" + markdown(
        ["", "saved", "x less", "peak", "x less", "s / step", "x time"], body
    )
    plain, low = (data["runs"].get(name, [{}])[0].get("by_op") for name in ("plain", "4-bit"))
    if plain and low:
        rows = [
            [name, f"{100 * bytes_[0] / sum(b for b, _ in plain.values()):.1f} %", f"{bytes_[0] / 1e6:,.1f} MB",
             f"{low.get(name, [0, 0])[1] / 1e6:,.2f} MB"]
            for name, bytes_ in list(plain.items())[:_LARGEST]
        ]  # fmt: skip
        yield markdown(["saved by", "share", "plain", "4-bit"], rows)


def _ratio(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f}" if name in row else ""


def caches(data: dict[str, Any]) -> Iterator[str]:
    """How far a model with each cache is from itself with the full one, and the bytes."""
    body, bits = [], data["bits_of_long"]
    for name, row in data["summary"].items():
        change = "" if name == "plain" else f"{100 * row['perplexity_change']:+.1f} %"
        body.append([
            f"`{name}`", f"{row['kl']['mean']:.4f} ± {row['kl']['std']:.4f}", f"{100 * row['agreement']:.1f} %",
            f"{row['perplexity']:.3f}", change, f"{row['times_less']['mean']:.2f}",
            f"{bits[name]:.2f}" if name in bits else "",
        ])  # fmt: skip
    size, words = data["settings"], data["summary"]["plain"]["words"]
    texts = f"{size['texts']} texts of {size['prompt']} + {size['scored']} tokens, {words:,} scored words"
    yield f"{size['model']}, {texts}:\n\n" + markdown(
        ["", "KL to the full cache", "top-1 agreement", "perplexity", "change", "x fewer bytes than 16 bits",
         "bits of a number of 8,192 tokens"], body
    )  # fmt: skip


def greedy(data: dict[str, Any]) -> Iterator[str]:
    """How many texts are those of the plain cache, and where and how nearly the others part from them."""
    body = [
        [
            *name.split(", "),
            f"{row['identical']} of {row['prompts']}",
            f"{row['packed']}",
            f"{row['agree']['mean']:.1f}",
        ]
        for name, row in data["summary"].items()
    ]
    yield f"{data['settings']['model']}, texts of {data['settings']['new']} tokens:\n\n" + markdown(
        ["", "case", "identical", "prompts with packed tokens", "tokens up to the first divergence"], body
    )
    parted = [
        [
            f"{key} ({one['prompt']} tokens)", f"{one['agree']}", *(f"`{word!r}`" for word in one["words"]),
            f"{one['gap']:.4f}", "" if one["own_gap"] is None else f"{one['own_gap']:.4f}",
        ]
        for key, one in data["runs"].items() if one["words"]
    ]  # fmt: skip
    if parted:
        head = ["divergence", "before token", "plain", "packed", "plain's gap between the two", "gap of the packed"]
        yield markdown(head, [[cell.replace("|", "\\|") for cell in row] for row in parted])


def speed(data: dict[str, Any]) -> Iterator[str]:
    """Milliseconds of a written token by length of the prompt, and the peak of a batch, for every cache."""
    summary, size = data["summary"], data["settings"]
    lengths = list(summary["decode"])
    body = [
        [f"`{name}`", *(_time(summary["decode"][length].get(name)) for length in lengths)]
        for name in dict.fromkeys(name for rows in summary["decode"].values() for name in rows)
    ]
    yield (
        f"{size['model']}, float32, {size['threads']} threads; milliseconds a token behind so many, and their ratio to "
        "the plain cache's in the same round:\n\n" + markdown(["", *(f"{int(n):,} tokens" for n in lengths)], body)
    )
    rows = []
    for name, row in summary["memory"].items():
        sizes = [row.get(kind) for kind in ("cache_bytes", "beyond_bytes", "peak_bytes")]
        less = row.get("less", {})
        rows.append([
            f"`{name}`", *(row["status"] if held is None else f"{held / 1e6:,.0f} MB" for held in sizes),
            *(f"{less[kind]:.2f}" if less else "" for kind in ("cache_bytes", "beyond_bytes")),
        ])  # fmt: skip
    if rows:
        head = ["", "cache", "peak above the model", "peak", "x less cache", "x less above the model"]
        yield f"{size['memory_batch']} x {size['memory_length']:,} tokens read at once:\n\n" + markdown(head, rows)


def _time(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['milliseconds']['mean']:.1f} ({row['ratio']['mean']:.2f} ± {row['ratio']['std']:.2f})"
