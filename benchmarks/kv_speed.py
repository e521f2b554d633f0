"""Time of a written token and peak memory of a language model with a lossy cache of keys and values."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import _report
from benchmarks._kv_peers import PEERS, installed
from benchmarks._llm import load

__all__ = ["bars", "main", "source", "summarize"]

EXAMPLES = """\
  python -m benchmarks.kv_speed --model DIR                   SmolLM2-135M; 40 minutes on a quiet machine
  python -m benchmarks.kv_speed --model DIR --lengths 1024 --caches 4bit,2bit --memory-length 0 --out F
  python -m benchmarks.kv_speed --tiny --out /tmp/kv_speed.json

Decoding: every cache reads the same prompt of random tokens, then all of them write a few tokens in turn, round after
round, so that what else the machine does meets all; a figure is the mean over the tokens of a round, beside that of
the plain float32 cache in the same round, both with torch's own attention or ours as the cache needs. Memory: every
cache in a process of its own reads the prompts of a batch at once and writes 4 tokens each; the peak is that of the
resident set, also above what the loaded model takes. A stopped run goes on with the lengths and caches that are
missing, unless the code of the caches is another one now."""

CACHES = ("plain", "8bit", "4bit", "k4v2-r", "2bit", "h2o:0.1:0.1", "h2o:0.25:0.25+4bit", "transformers fp8",
          "transformers quanto int4")  # fmt: skip
MEMORY = ("plain", "4bit", "2bit", "h2o:0.1:0.1", "h2o:0.25:0.25+4bit")
NEW = 4  # tokens that are written where memory is measured


@torch.inference_mode()
def decode(model: Any, ids: Tensor, schemes: Sequence[Any], rounds: int, tokens: int) -> dict[str, list[float]]:
    """Seconds of a token, for every cache and round.

    Args:
        model: in evaluation.
        ids: int64 [1, T], the prompt.
        schemes: with a ``name`` and ``make(config)``.
        rounds: that count; one before them does not.
        tokens: of a round.
    """
    from graphlossy.llm.kv._quality import with_attention

    caches = {scheme.name: scheme.make(model.config) for scheme in schemes}
    last = {}
    for name, cache in caches.items():
        with with_attention(model, cache):
            last[name] = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
    found: dict[str, list[float]] = {name: [] for name in caches}
    for number in range(rounds + 1):
        for name, cache in caches.items():
            with with_attention(model, cache):
                begin = time.perf_counter()
                for _ in range(tokens):
                    last[name] = model(last[name], past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
                if number:
                    found[name].append((time.perf_counter() - begin) / tokens)
    return found


def source() -> str:
    """Tells apart the code that the figures are of: the caches' and the packed attention's."""
    import graphlossy.core
    from graphlossy.llm import kv

    caches, core = Path(kv.__file__).parent, Path(graphlossy.core.__file__).parent
    kernels = (file for pattern in ("packed_attention*", "*.h") for file in (core / "csrc").glob(pattern))
    return _report.digest([*caches.glob("*.py"), *core.glob("*packed_attention.py"), *kernels])


def summarize(data: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds and ratios to the plain cache: of time round by round, of peaks above the model.

    Args:
        data: with ``decode`` by length and ``memory`` by cache.
    """
    times: dict[str, Any] = {}
    for length, rows in data["decode"].items():
        times[length] = {
            name: {
                "milliseconds": _report.spread([1000 * s for s in found]),
                "ratio": _report.spread([a / b for a, b in zip(found, rows["plain"], strict=True)]),
            }
            for name, found in rows.items()
        }
    peaks = {name: dict(row) for name, row in data["memory"].items()}
    plain = peaks.get("plain")
    for row in peaks.values():
        if plain and row["status"] == plain["status"] == "done":
            row["less"] = {kind: plain[kind] / row[kind] for kind in ("peak_bytes", "beyond_bytes", "cache_bytes")}
    return {"decode": times, "memory": peaks}


def bars(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Decoding in four bits beside the plain cache."""

    def ratio(length: str) -> float | None:
        row = summary["decode"].get(length, {}).get("4bit")
        return None if row is None else statistics.median(row["ratio"]["raw"])

    return [
        *(_report.bar(f"4 bits at {n} tokens: time over plain", ratio(n), "at most", 1.3) for n in ("1024", "2048")),
        _report.bar("4 bits at 8000 tokens: time over plain", ratio("8000"), "below", 1),
    ]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "kv_speed.json")
    made.add_argument("--model", metavar="DIR", help="folder of the model (needed but for --tiny)")
    made.add_argument("--caches", help="names with commas between them (default: those of the table)")
    made.add_argument("--lengths", help="tokens of a prompt (default: 1024,2048,8000; 64 if --tiny)")
    made.add_argument("--rounds", type=int, help="(default: 10; 2 if --tiny)")
    made.add_argument("--memory-length", type=int, help="tokens of a prompt; 0: none (default: 8000; 0 if --tiny)")
    made.add_argument("--memory-batch", type=int, default=4, help="prompts (default: 4)")
    args = made.parse_args(argv)
    if args.model is None and not args.tiny:
        made.error("--model: give the folder of a model; `graphlossy datasets prepare smollm2` makes one")
    from graphlossy.cli._llm_bench_child import measure_apart
    from graphlossy.llm.kv.schemes import parse_cache

    names = args.caches.split(",") if args.caches else CACHES
    try:
        schemes: list[Any] = [PEERS.get(name) or parse_cache(name) for name in dict.fromkeys(["plain", *names])]
    except ValueError as error:
        made.error(f"--caches: {error}")
    lengths = [int(word) for word in (args.lengths or ("64" if args.tiny else "1024,2048,8000")).split(",")]
    rounds = args.rounds or (2 if args.tiny else 10)
    apart = (0 if args.tiny else 8000) if args.memory_length is None else args.memory_length
    if args.model is None and apart:
        made.error("--memory-length: processes of their own need --model DIR")
    settings = {
        "model": None if args.model is None else Path(args.model).name, "rounds": rounds, "tokens": 4,
        "threads": torch.get_num_threads(), "memory_length": apart, "memory_batch": args.memory_batch,
        "source": source(),
    }  # fmt: skip
    data = _report.header("kv_speed", settings)
    before = _report.earlier(args.out, data, args.fresh)
    data |= {"decode": before.get("decode", {}), "memory": before.get("memory", {})}

    def write() -> None:
        data["summary"] = summarize(data)
        data["bars"] = [] if args.tiny else bars(data["summary"])
        _report.write_json(args.out, data)

    model: Any = load(args.model, 0).eval()
    schemes = installed(schemes, model.config, data)
    for length in lengths:
        if all(scheme.name in data["decode"].get(str(length), {}) for scheme in schemes):
            continue
        draw = torch.Generator().manual_seed(length)
        ids = torch.randint(model.config.vocab_size, (1, length), generator=draw)
        data["decode"][str(length)] = decode(model, ids, schemes, rounds, settings["tokens"])
        write()
    del model
    for name in MEMORY if apart else ():
        if name not in data["memory"]:
            task = {"model": args.model, "cache": name, "length": apart, "batch_size": args.memory_batch,
                    "new_tokens": NEW, "seed": 0, "device": "cpu", "dtype": "float32",
                    "threads": torch.get_num_threads()}  # fmt: skip
            data["memory"][name] = measure_apart(task)
            write()
    write()
    for length, rows in data["summary"]["decode"].items():
        for name, row in rows.items():
            print(f"{length:>6} {name:30} {row['milliseconds']['mean']:8.1f} ms  {row['ratio']['mean']:.2f}x plain")
    for name, row in data["summary"]["memory"].items():
        print(f"memory {name:30} {row}")
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
