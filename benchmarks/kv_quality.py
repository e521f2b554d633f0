"""How far a language model with a lossy cache of keys and values is from itself with the full one, and the bytes."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import _report
from benchmarks._kv_peers import PEERS, installed
from benchmarks._llm import load

__all__ = ["bars", "main", "summarize"]

EXAMPLES = """\
  python -m benchmarks.kv_quality --model DIR                 SmolLM2-135M, 32 texts of 1284 + 256 tokens; 3 hours
  python -m benchmarks.kv_quality --model DIR --schemes 4bit-w32,h2o:0.1:0.1 --texts 4 --out F
  python -m benchmarks.kv_quality --tiny --out /tmp/kv_quality.json

DIR holds a causal language model of transformers, such as `graphlossy datasets prepare smollm2` makes. Texts are of
Python's own documentation (the test documents of its split by document), evenly spaced. The prompt is read at once, the
words after it eight at a time, and each is scored from a cache that holds all before its pass; the full cache reads the
same. KL, agreement and perplexity are over the same words for every cache, differences from the full one paired by
text. Bytes are counted at 2 bytes a number for what is in full precision, as in a 16-bit model, at the end of a text
(mean over texts), beside 2 bytes for every key and value. A -p in the name of a cache that drops tokens: of the prompt
alone. Rows of transformers need optimum-quanto or hqq; one that is not installed is left out, and said so. A stopped
run goes on with the texts that are missing. Bits of a number of 8,192 tokens are those of graphlossy.llm.plan_cache."""

SCHEMES = (
    "8bit", "4bit", "4bit-w16", "4bit-w16-s0", "k4v3-r-w16", "k4v2-w80", "k4v2-r-w32", "k4v2-r-w80", "3bit-r-w80",
    "2bit", "2bit-w32", "2bit-r-w80",
    "h2o-p:0.25:0.25", "h2o-p:0.25:0.25+4bit-w16", "h2o-p:0.1:0.1", "streaming-p:4:0.197", "streaming-p:0:0.2",
    "tova-p:0.1:0.1", "snapkv:0.1:0.1", "expected:0.1:0.1", "knorm-p:0.1:0.1", "h2o:0.1:0.1", "h2o:0.25:0.25+4bit-w16",
    "streaming:4:0.197", *PEERS,
)  # fmt: skip


LONG = 8192  # tokens, of which the bits of a number are told


def texts(folder: str | None, count: int, length: int, vocabulary: int) -> Tensor:
    """Tokens [count, length] of Python's documentation; without a model random ones."""
    if folder is None:
        return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(0))
    from transformers import AutoTokenizer

    from graphlossy.datasets.text import blocks, documents, split

    held = blocks(split(documents()).test, AutoTokenizer.from_pretrained(folder), length)
    return held[torch.linspace(0, len(held) - 1, count).long()]


def summarize(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For every cache perplexity, KL in nats, agreement and bytes, over all words and per text.

    Args:
        runs: by ``"scheme, text"``.
    """
    rows: dict[str, dict[str, Any]] = {}
    by_scheme: dict[str, list[dict[str, Any]]] = {}
    for key, run in runs.items():
        by_scheme.setdefault(key.rpartition(", ")[0], []).append(run)
    for name, found in by_scheme.items():
        words = sum(run["tokens"] for run in found)
        rows[name] = {
            "words": words,
            "perplexity": math.exp(sum(run["nll"] for run in found) / words),
            "kl": _report.spread([run["kl"] / run["tokens"] for run in found]),
            "agreement": sum(run["agreement"] for run in found) / words,
            "times_less": _report.spread([run["plain_16"] / run["bytes_16"] for run in found]),
        }
    if plain := rows.get("plain"):
        for row in rows.values():
            row["perplexity_change"] = row["perplexity"] / plain["perplexity"] - 1
    return rows


def bars(rows: dict[str, dict[str, Any]], bits: dict[str, float]) -> list[dict[str, Any]]:
    """KL, perplexity and bytes of the recipes; ``bits`` of a number of a long text, by cache."""

    def of(name: str, *keys: str) -> float | None:
        found: Any = rows.get(name)
        for key in keys:
            found = None if found is None else found[key]
        return found

    streaming, h2o = of("streaming-p:4:0.197", "kl", "mean"), of("h2o-p:0.1:0.1", "kl", "mean")
    return [
        _report.bar("4 bits + sinks: KL", of("4bit-w16", "kl", "mean"), "at most", 0.004),
        _report.bar("4 bits + sinks: times fewer bytes", of("4bit-w16", "times_less", "mean"), "at least", 2.9),
        _report.bar("keys 4, values 2, rotated: KL", of("k4v2-r-w80", "kl", "mean"), "at most", 0.008),
        _report.bar("keys 4, values 2: times fewer bytes", of("k4v2-r-w80", "times_less", "mean"), "at least", 3.5),
        _report.bar("keys 4, values 3, rotated: KL", of("k4v3-r-w16", "kl", "mean"), "at most", 0.008),
        _report.bar("keys 4, values 3: times fewer bytes", of("k4v3-r-w16", "times_less", "mean"), "at least", 3.5),
        *(
            bar
            for what, name in (("2 bits + sinks", "2bit-w32"), ("2 bits + sinks, rotated", "2bit-r-w80"))
            for bar in (
                _report.bar(f"{what}: perplexity", of(name, "perplexity_change"), "at most", 0.16),
                _report.bar(f"{what}: times fewer bytes", of(name, "times_less", "mean"), "at least", 4.4),
                _report.bar(f"{what}: bits of a number of {LONG:,} tokens", bits.get(name), "at most", 3.2),
            )
        ),
        _report.bar("H2O 50 % + 4 bits: KL", of("h2o-p:0.25:0.25+4bit-w16", "kl", "mean"), "at most", 0.015),
        _report.bar(
            "H2O 50 % + 4 bits: times fewer bytes", of("h2o-p:0.25:0.25+4bit-w16", "times_less", "mean"), "at least", 5
        ),
        _report.bar("H2O 20 %: KL", h2o, "at most", 0.04),
        _report.bar(
            "H2O 20 %: KL over that of a window with sinks",
            None if h2o is None or not streaming else h2o / streaming,
            "below",
            1,
        ),
    ]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "kv_quality.json")
    made.add_argument("--model", metavar="DIR", help="folder of the model (needed but for --tiny)")
    made.add_argument("--schemes", help="names of caches with commas between them (default: those of the table)")
    made.add_argument("--texts", type=int, help="(default: 32; 2 if --tiny)")
    made.add_argument("--prompt", type=int, help="tokens that are read at once (default: 1284; 300 if --tiny)")
    made.add_argument("--scored", type=int, help="words after them (default: 256; 20 if --tiny)")
    args = made.parse_args(argv)
    if args.model is None and not args.tiny:
        made.error("--model: give the folder of a model; `graphlossy datasets prepare smollm2` makes one")
    from graphlossy.llm.kv import plan_cache
    from graphlossy.llm.kv._quality import compare_caches
    from graphlossy.llm.kv.schemes import CacheScheme, parse_cache

    try:
        names = args.schemes.split(",") if args.schemes else SCHEMES
        schemes: list[Any] = [PEERS.get(name) or parse_cache(name) for name in names]
    except ValueError as error:
        made.error(f"--schemes: {error}")
    count, prompt, scored = (
        given or (small if args.tiny else usual)
        for given, small, usual in ((args.texts, 2, 32), (args.prompt, 300, 1284), (args.scored, 20, 256))
    )
    settings = {"model": None if args.model is None else Path(args.model).name, "prompt": prompt, "scored": scored,
                "step": 8, "texts": count}  # fmt: skip
    data = _report.header("kv_quality", settings)
    data["runs"] = _report.earlier(args.out, data, args.fresh).get("runs", {})
    model: Any = load(args.model, 0).eval()
    schemes = installed(schemes, model.config, data)
    named = [scheme for scheme in schemes if isinstance(scheme, CacheScheme)]
    plan = plan_cache(model.config, 1, LONG, torch.float16, named)
    data["bits_of_long"] = {row.scheme: row.bits_per_number for row in plan.rows}
    ids = texts(args.model, count, prompt + scored + 1, model.config.vocab_size)
    for number, one in enumerate(ids):
        missing = [scheme for scheme in schemes if f"{scheme.name}, {number}" not in data["runs"]]
        if not missing:
            continue
        for found in compare_caches(model, one[None], missing, prompt):
            data["runs"][f"{found.scheme}, {number}"] = asdict(found)
            print(f"text {number + 1}/{count}  {found.scheme:30} KL {found.kl / found.tokens:.5f}", flush=True)
        data["summary"] = summarize(data["runs"])
        data["bars"] = [] if args.tiny else bars(data["summary"], data["bits_of_long"])
        _report.write_json(args.out, data)
    for name, row in data.get("summary", {}).items():
        print(
            f"{name:30} ppl {row['perplexity']:8.3f}  KL {row['kl']['mean']:.5f} ± {row['kl']['std']:.5f}  top-1 "
            f"{row['agreement']:.3f}  {row['times_less']['mean']:.2f}x"
        )
    _report.print_bars(data.get("bars", []))


if __name__ == "__main__":
    main()
