"""Bytes kept for the backward pass, peak memory and time of a language model's fine-tuning step, method by method."""

from __future__ import annotations

import gc
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import _report
from benchmarks._live import LiveBytes
from benchmarks._llm import VARIANTS, LLMRunner, in_child, parsed
from benchmarks._meter import meter_for

__all__ = ["bars", "main", "measure"]

EXAMPLES = """\
  python -m benchmarks.llm_memory --model DIR                       SmolLM2-135M, 2 x 512 tokens; half an hour, 8 GB
  python -m benchmarks.llm_memory --model DIR --variants plain,4-bit --rounds 5
  python -m benchmarks.llm_memory --tiny --out /tmp/llm_memory.json

DIR holds a causal language model of transformers, such as `graphlossy datasets prepare smollm2` makes. Every variant is
a process of its own. Saved bytes are the tensors alive between forward and backward, counted in the same way for all;
the peak is that of the resident set during a step beyond weights, gradients and optimizer state, which are there
before. Times are taken round after round through all variants."""

# Methods of this project, whose figures are held against the plain model's.
_MAIN = "4-bit"


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """One variant: seconds and peak of its steps, bytes held between forward and backward, and those by operation."""
    torch.set_num_threads(spec["threads"])
    runner = LLMRunner(spec["variant"], spec["model"], spec["seed"])
    vocabulary = runner.model.config.vocab_size
    draw = torch.Generator().manual_seed(spec["seed"])
    tokens = torch.randint(vocabulary, (spec["batch"], spec["length"]), generator=draw)
    ids = torch.arange(spec["batch"])
    optimizer = torch.optim.AdamW(runner.parameters(), lr=1e-5)
    runner.loss(tokens[:, :32], ids).backward()  # kernels are loaded, and gradients and the optimizer's state made
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    meter, steps = meter_for(torch.device("cpu")), []
    for _ in range(1 + spec["steps"]):
        meter.start()
        begin = meter.clock()
        loss = runner.loss(tokens, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        steps.append({"seconds": meter.clock() - begin, "peak_bytes": meter.peak(), "loss": loss.item()})
        del loss
    live = LiveBytes()
    with live:
        loss = runner.loss(tokens, ids)
        gc.collect()
        held = live.bytes
        loss.backward()
    return {
        "seconds": [step["seconds"] for step in steps[1:]],
        "peak_bytes": [step["peak_bytes"] for step in steps[1:]],
        "losses": [step["loss"] for step in steps],
        "held_bytes": held,
        "peak_tensor_bytes": live.peak,
        "by_op": _by_operation(runner, tokens, ids),
    }


def _by_operation(runner: LLMRunner, tokens: torch.Tensor, ids: torch.Tensor) -> dict[str, list[int]] | None:
    """Plain and saved bytes of each module and operation, all blocks taken together."""
    import graphlossy

    ledger = runner.ledger
    if ledger is None:
        if runner.variant not in ("plain", "lora"):
            return None
        with graphlossy.compress(bits=None) as ledger:
            loss = runner.loss(tokens, ids)
        del loss
    plain: Counter[str] = Counter()
    saved: Counter[str] = Counter()
    for record in ledger.records:
        name = f"{re.sub(r'.*layers[.][0-9]+[.]', 'block.', record.module) or '(loss)'} {record.op}"
        plain[name] += record.plain_bytes
        saved[name] += record.saved_bytes
    return {name: [plain[name], saved[name]] for name, _ in plain.most_common() if plain[name] or saved[name]}


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """For every variant, its figures and their ratios to the plain model's."""
    rows: dict[str, dict[str, Any]] = {}
    for name, rounds in runs.items():
        if errors := [found["error"] for found in rounds if "error" in found]:
            rows[name] = {"error": errors[0]}
            continue
        rows[name] = {
            "held_bytes": rounds[0]["held_bytes"],
            "peak_tensor_bytes": rounds[0]["peak_tensor_bytes"],
            **{key: _report.spread([v for found in rounds for v in found[key]]) for key in ("peak_bytes", "seconds")},
        }
    base = rows.get("plain", {"error": ""})
    for row in rows.values():
        if "error" not in row and "error" not in base:
            row["saved"] = base["held_bytes"] / row["held_bytes"]
            row["peak"] = base["peak_bytes"]["median"] / row["peak_bytes"]["median"]
            row["time"] = row["seconds"]["median"] / base["seconds"]["median"]
    return rows


def bars(summary: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Saved bytes, peak and time of the default against the plain model."""
    row = summary.get(_MAIN, {})
    return [
        _report.bar(f"{_MAIN}: bytes saved for the backward pass, times less", row.get("saved"), "at least", 4),
        _report.bar(f"{_MAIN}: peak beyond weights, gradients and optimizer, times less", row.get("peak"), "at least",
                    2.5),
        _report.bar(f"{_MAIN}: time of a step, times the plain model's", row.get("time"), "at most", 1.3),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "llm_memory.json")
    made.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated (default: all)")
    made.add_argument("--batch", type=int, default=2, help="samples of a step (default: %(default)s)")
    made.add_argument("--length", type=int, help="tokens of a sample (default: 512; 64 if --tiny)")
    made.add_argument("--steps", type=int, help="measured steps of a round (default: 3; 1 if --tiny)")
    made.add_argument("--rounds", type=int, default=1, help="passes over all variants (default: %(default)s)")
    made.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    args = parsed(made, argv, measure)
    if args is None:
        return
    settings = {
        "model": None if args.model is None else Path(args.model).name, "batch": args.batch, "seed": 0,
        "length": args.length or (64 if args.tiny else 512), "steps": args.steps or (1 if args.tiny else 3),
        "threads": args.threads,
    }  # fmt: skip
    data = _report.header("llm_memory", settings)
    runs: dict[str, list[dict[str, Any]]] = _report.earlier(args.out, data, args.fresh).get("runs", {})
    data["variants"], data["runs"] = {name: VARIANTS[name] for name in args.variants}, runs
    for number in range(args.rounds):
        for name in args.variants:
            rounds = runs.setdefault(name, [])
            if len(rounds) > number and "error" not in rounds[number]:
                continue
            found = in_child("llm_memory", {**settings, "model": args.model, "variant": name})
            rounds[number : number + 1] = [found]
            shown = found.get("error") or (
                f"saved {found['held_bytes'] / 1e6:8.1f} MB, peak {max(found['peak_bytes']) / 1e6:8.1f} MB, "
                f"{min(found['seconds']):6.2f} s"
            )
            print(f"{name:18} round {number + 1}: {shown}", flush=True)
            data["summary"] = summarize(runs)
            data["bars"] = [] if args.tiny else bars(data["summary"])
            _report.write_json(args.out, data)
    _report.print_bars(data.get("bars", []))


if __name__ == "__main__":
    main()
