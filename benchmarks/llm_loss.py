"""Held-out loss of a language model after equal steps: plain, sampled, rounded and adapted, over seeds."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from benchmarks import _report
from benchmarks._llm import COMPRESS, adapted, in_child, load, parsed

__all__ = ["bars", "main", "summarize", "train"]

EXAMPLES = """\
  python -m benchmarks.llm_loss --model DIR --jobs 2              SmolLM2-135M, 5 seeds; hours on 2 cores
  python -m benchmarks.llm_loss --model DIR --variants plain,4-bit --seeds 1 --length 512 --steps 200 --out F
  python -m benchmarks.llm_loss --tiny --out /tmp/llm_loss.json --folder /tmp/llm_loss

DIR holds a causal language model of transformers, such as `graphlossy datasets prepare smollm2` makes. Each run is one
of `graphlossy.llm.finetune` on Python's own documentation, split by document: AdamW, linear decay after a warm-up of
5 %, the whole gradient clipped at 1. A seed draws the training sequences (each is visited more than once: estimators
weigh rows by the norms of the last visit), their order, adapters, rounding and samples: the same sequences in the same
order for every method. The held-out loss is that of the test documents; learning rates were chosen on the validation
documents, seed 0 (`--part valid`). A stopped run goes on from its last checkpoint. Gradient checkpointing and
save_on_cpu change no number: their losses are the plain model's."""

# Of those of `_llm.VARIANTS`, the ones that change numbers.
SHOWN = ("plain", "4-bit", "pps 0.5 + 4-bit", "wta 0.3", "pps 0.3", "lora", "lora + 4-bit", "bf16", "velora", "2-bit")
RATE, ADAPTER_RATE = 5e-5, 2e-3


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """One run: held-out losses [step, loss], mean training loss of the last tenth of the steps, bytes and seconds."""
    from graphlossy.datasets.text import blocks, documents, split
    from graphlossy.llm.finetune import FinetuneConfig, Finetuning

    torch.set_num_threads(1)
    model: Any = load(spec["model"], 0)
    if spec["model"] is None:
        drawn = torch.Generator().manual_seed(1)
        held, pool = torch.randint(64, (72, spec["length"]), generator=drawn).split((8, 64))  # of 64 known tokens
    else:
        from transformers import AutoTokenizer

        parts, words = split(documents()), AutoTokenizer.from_pretrained(spec["model"])
        held, pool = (blocks(getattr(parts, part), words, spec["length"]) for part in (spec["part"], "train"))
    draw = torch.Generator().manual_seed(spec["seed"])
    data = pool[torch.randperm(len(pool), generator=draw)[: spec["sequences"]]]
    variant, folder = spec["variant"], Path(spec["folder"])
    torch.manual_seed(spec["seed"])
    if "lora" in variant:
        model = adapted(model, variant)
    lossy = {"bits": None, "budget": None, "estimator": None, "recompute": variant in COMPRESS}
    config = FinetuneConfig(
        lr=spec["adapter_rate" if "lora" in variant else "rate"], steps=spec["steps"], batch_size=spec["batch"],
        seed=spec["seed"], dtype="bf16" if variant.startswith("bf16") else "float32", device="cpu", threads=1,
        eval_every=0, eval_sequences=spec["held_out"], **{**lossy, **COMPRESS.get(variant, {})},
    )  # fmt: skip
    if (folder / "config.json").exists():  # a run that was stopped
        run = Finetuning.resume(folder, model, data, held)
    else:
        run = Finetuning(model, data, held, config, folder)
    result = run.run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "valid": [[line["step"], line["valid_loss"]] for line in lines if "valid_loss" in line],
        **{key: result[key] for key in ("train_loss", "saved_bytes", "plain_bytes", "seconds_per_step")},
    }


def summarize(runs: dict[str, dict[str, Any]], seeds: int) -> dict[str, dict[str, Any]]:
    """For every variant its last held-out and training losses over seeds, and their distance from the plain model's.

    Args:
        runs: by ``"variant, seed"``.
        seeds: how many there are to be.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(key.rsplit(", ", 1)[0] for key in runs):
        found = {seed: runs[key] for seed in range(seeds) if (key := f"{name}, {seed}") in runs}
        if errors := [run["error"] for run in found.values() if "error" in run]:
            rows[name] = {"error": errors[0]}
            continue
        plain = {seed: runs.get(f"plain, {seed}", {}) for seed in found}
        rows[name] = {
            "valid": _report.spread([run["valid"][-1][1] for run in found.values()]),
            "train": _report.spread([run["train_loss"] for run in found.values()]),
            "first": next(iter(found.values()))["valid"][0][1],
        }
        if all("valid" in run for run in plain.values()):
            distance = [run["valid"][-1][1] - plain[seed]["valid"][-1][1] for seed, run in found.items()]
            rows[name]["paired"] = _report.spread(distance)
    return rows


def bars(rows: dict[str, dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """Held-out loss of 4 bits, and of sampling with 4 bits, within the spread of the plain model's, and within 1 %."""
    plain = rows.get("plain", {}).get("valid")
    found = []
    for name in ("4-bit", "pps 0.5 + 4-bit"):
        row = rows.get(name, {}).get("valid")
        spreads = share = None
        if plain and row and len(plain["raw"]) == len(row["raw"]) == seeds:
            distance = abs(row["mean"] - plain["mean"])
            spreads = distance / plain["std"] if plain["std"] else None
            share = 100 * distance / plain["mean"]
        text = f"{name}: distance of the mean held-out loss from plain's"
        found.append(_report.bar(f"{text}, in % of it", share, "at most", 1))
        if seeds > 1:
            found.append(_report.bar(f"{text}, in standard deviations of plain's over seeds", spreads, "at most", 1))
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "llm_loss.json")
    made.add_argument("--variants", default=",".join(SHOWN), help="comma-separated (default: %(default)s)")
    made.add_argument("--seeds", type=int, help="(default: 5; 2 if --tiny)")
    made.add_argument("--steps", type=int, help="(default: 100; 4 if --tiny)")
    made.add_argument("--batch", type=int, default=2, help="sequences of a step (default: %(default)s)")
    made.add_argument("--length", type=int, default=128, help="tokens of a sequence (default: %(default)s)")
    made.add_argument("--sequences", type=int, default=100, help="that are trained on (default: %(default)s)")
    made.add_argument("--rate", type=float, default=RATE, help="learning rate (default: %(default)s)")
    made.add_argument("--adapter-rate", type=float, default=ADAPTER_RATE, help="of adapters (default: %(default)s)")
    made.add_argument("--part", choices=("test", "valid"), default="test", help="of the documents, whose loss is taken "
                      "(default: %(default)s)")  # fmt: skip
    made.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each (default: %(default)s)")
    made.add_argument("--folder", type=Path, default=Path("runs/llm_loss"), metavar="DIR", help="of runs under way "
                      "(default: %(default)s)")  # fmt: skip
    args = parsed(made, argv, train)
    if args is None:
        return
    seeds = args.seeds or (2 if args.tiny else 5)
    settings = {
        "model": None if args.model is None else Path(args.model).name, "batch": args.batch, "length": args.length,
        "steps": args.steps or (4 if args.tiny else 100), "sequences": args.sequences,
        "held_out": 8 if args.tiny else 64, "rate": args.rate, "adapter_rate": args.adapter_rate, "part": args.part,
        "threads": 1,
    }  # fmt: skip
    data = _report.header("llm_loss", settings)
    data["runs"] = _report.earlier(args.out, data, args.fresh).get("runs", {})
    jobs = [(seed, name) for seed in range(seeds) for name in args.variants]
    # A run that was stopped goes on only under the same settings.
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folders = {job: args.folder / f"{job[1]}-{job[0]}-{digest}".replace(" ", "") for job in jobs}
    if args.fresh:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    def one(job: tuple[int, str]) -> None:
        key = f"{job[1]}, {job[0]}"
        spec = {**settings, "model": args.model, "variant": job[1], "seed": job[0], "folder": str(folders[job])}
        found = in_child("llm_loss", spec)
        shown = (
            found.get("error") or f"held-out loss {found['valid'][-1][1]:.4f}, {found['seconds_per_step']:.2f} s/step"
        )
        print(f"{key:22} {shown}", flush=True)
        with lock:
            data["runs"][key] = found
            data["summary"] = summarize(data["runs"], seeds)
            data["bars"] = [] if args.tiny else bars(data["summary"], seeds)
            _report.write_json(args.out, data)
        if "error" not in found:
            shutil.rmtree(folders[job], ignore_errors=True)

    left = [job for job in jobs if "valid" not in data["runs"].get(f"{job[1]}, {job[0]}", {})]
    lock, pool = Lock(), ThreadPoolExecutor(args.jobs)
    try:
        list(pool.map(one, left))
    finally:
        pool.shutdown(cancel_futures=True)
    _report.print_bars(data.get("bars", []))


if __name__ == "__main__":
    main()
