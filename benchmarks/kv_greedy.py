"""Whether a language model with a cache of keys and values in few bits says, token for token, what it says without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import _report
from benchmarks._llm import load

__all__ = ["CASES", "bars", "main", "summarize"]

EXAMPLES = """\
  python -m benchmarks.kv_greedy --model DIR          SmolLM2-135M, 50 prompts, 64 tokens each; half an hour
  python -m benchmarks.kv_greedy --model DIR --schemes 4bit,2bit --cases padded,beams --prompts 10 --out F
  python -m benchmarks.kv_greedy --tiny --out /tmp/kv_greedy.json

DIR holds a causal language model of transformers, such as `graphlossy datasets prepare smollm2` makes. Prompts of 16 to
400 tokens are of Python's own documentation (the test documents of its split by document), evenly spaced. The plain
cache is read by the model's usual attention (sdpa), the others by "graphlossy". Every case is run with the first of
--schemes; the case `padded` with the others too. A text that diverges is listed with the token before which both agree
and the gap there: what the plain model's logit of its own token is above that of the other one, and how far the model
with the packed cache has it the other way round. Of beams, whose choices are of whole texts, it is the difference of
their log-probabilities under the plain model. No text ends before its last token. A stopped run goes on with the
prompts that are missing."""

SCHEMES = ("8bit", "8bit-w32", "4bit")
CASES: dict[str, str] = {
    "single": "one prompt at a time",
    "padded": "ten prompts of all lengths, padded on the left",
    "beams": "3 beams, five prompts of similar lengths, padded on the left",
    "crop": "like padded; half way the cache is cropped and given other tokens",
    "lookup": "assisted decoding by prompt lookup",
}
_LONGEST, _OTHER = 400, 8  # tokens of a prompt, and of what follows it in its document, which a cropped cache is given


@dataclass
class Run:
    """What was generated: tokens [B, n], the logits [B, V] of each but for beams, and packed tokens of each row."""

    tokens: Tensor
    logits: list[Tensor] = field(default_factory=list)
    packed: list[int] = field(default_factory=list)


@dataclass
class Found:
    """One prompt under two caches; the last fields are of the first divergence, None if there is none."""

    prompt: int
    tokens: int
    agree: int
    packed: int
    words: tuple[str, str] | None = None
    gap: float | None = None
    own_gap: float | None = None


def groups(case: str, count: int) -> list[list[int]]:
    """Numbers of the prompts that are run together."""
    if case in ("single", "lookup"):  # transformers assists one row at a time
        return [[number] for number in range(count)]
    if case == "beams":
        return [list(range(first, min(first + 5, count))) for first in range(0, count, 5)]
    batches = -(-count // 10)
    return [list(range(first, count, batches)) for first in range(batches)]


def run(model: Any, case: str, cache: Any, prompts: list[Tensor], new: int) -> Run:
    """Generates ``new`` tokens.

    Args:
        model: whose attention suits the cache.
        case: of :data:`CASES`.
        cache: empty.
        prompts: [n + _OTHER] each; the last tokens are for ``crop``.
        new: a multiple of 4.
    """
    lengths = [len(prompt) - _OTHER for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        ids[row, max(lengths) - length :], mask[row, max(lengths) - length :] = prompt[:length], 1

    def further(before: Tensor, count: int, **options: Any) -> Run:
        seen = torch.cat([mask, mask.new_ones(len(before), before.shape[1] - mask.shape[1])], 1)
        out = model.generate(
            before, attention_mask=seen, past_key_values=cache, use_cache=True, do_sample=False, max_new_tokens=count,
            eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, **options,
        )  # fmt: skip
        return Run(out.sequences[:, before.shape[1] :], list(out.logits or ()))

    if case == "beams":
        found = further(ids, new, num_beams=3)
    elif case == "crop":
        found = further(ids, new // 2, output_logits=True)
        gone = new // 2 * 3 // 4  # at full size more than what a packed cache keeps in full precision to be taken back
        cache.crop(-gone)
        kept = torch.cat([ids, found.tokens[:, : new // 2 - 1 - gone]], 1)
        other = torch.stack([prompt[-_OTHER:] for prompt in prompts])
        again = further(torch.cat([kept, other], 1), new // 2, output_logits=True)
        found = Run(torch.cat([found.tokens, again.tokens], 1), found.logits + again.logits)
    else:
        found = further(ids, new, output_logits=True, **({"prompt_lookup_num_tokens": 4} if case == "lookup" else {}))
    layers = getattr(cache, "packed_layers", None)
    if layers:
        packed = [count * layers[0].split.chunk for count in layers[0].packed]
        found.packed = packed[:: len(packed) // len(prompts)]
    return found


def compared(model: Any, tokenizer: Any, prompts: list[Tensor], plain: Run, ours: Run) -> Iterator[Found]:
    """For each prompt where its two texts part, and how near that was; ``model`` has the usual attention."""
    for row, prompt in enumerate(prompts):
        a, b = plain.tokens[row], ours.tokens[row]
        agree = int((a == b).int().cumprod(0).sum())
        found = Found(len(prompt) - _OTHER, len(a), agree, ours.packed[row])
        if agree < len(a):
            first, second = int(a[agree]), int(b[agree])
            found.words = _word(tokenizer, first), _word(tokenizer, second)
            if plain.logits:
                found.gap, found.own_gap = (
                    float(of[row, one] - of[row, other])
                    for of, one, other in ((plain.logits[agree], first, second), (ours.logits[agree], second, first))
                )
            else:
                found.gap = _log_probability(model, prompt[:-_OTHER], a) - _log_probability(model, prompt[:-_OTHER], b)
        yield found


def _word(tokenizer: Any, token: int) -> str:
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


def _log_probability(model: Any, prompt: Tensor, text: Tensor) -> float:
    with torch.no_grad():
        logits = model(torch.cat([prompt, text])[None]).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, text[:, None]).sum())


def summarize(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For every cache and case: prompts, those of equal texts, those with packed tokens, and how far texts agree.

    Args:
        runs: by ``"scheme, case, prompt"``.
    """
    by_case: dict[str, list[dict[str, Any]]] = {}
    for key, found in runs.items():
        by_case.setdefault(key.rpartition(", ")[0], []).append(found)
    return {
        name: {
            "prompts": len(found),
            "packed": sum(one["packed"] > 0 for one in found),
            "identical": sum(one["agree"] == one["tokens"] for one in found),
            "agree": _report.spread([one["agree"] for one in found]),
            "largest_gap": max((one["gap"] for one in found if one["gap"] is not None), default=None),
        }
        for name, found in by_case.items()
    }


def bars(rows: dict[str, dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Texts that diverge at 8 bits, where all ``count`` prompts were run."""
    found = {case: rows.get(f"8bit, {case}") for case in CASES}
    return [
        _report.bar(
            f"8 bits, {case}: prompts that diverge",
            row["prompts"] - row["identical"] if row is not None and row["prompts"] == count else None,
            "at most",
            0,
        )
        for case, row in found.items()
    ]


def _arguments(argv: list[str] | None) -> Any:
    made = _report.parser(__doc__ or "", EXAMPLES, "kv_greedy.json")
    made.add_argument("--model", metavar="DIR", help="folder of the model (needed but for --tiny)")
    made.add_argument("--schemes", default=",".join(SCHEMES), help="names of packed caches (default: %(default)s)")
    made.add_argument("--cases", default=",".join(CASES), help="(default: %(default)s)")
    made.add_argument("--prompts", type=int, help="(default: 50; 4 if --tiny)")
    made.add_argument("--new", type=int, help="tokens that are generated, a multiple of 4 (default: 64; 8 if --tiny)")
    args = made.parse_args(argv)
    if args.model is None and not args.tiny:
        made.error("--model: give the folder of a model; `graphlossy datasets prepare smollm2` makes one")
    args.prompts, args.new = args.prompts or (4 if args.tiny else 50), args.new or (8 if args.tiny else 64)
    args.cases = args.cases.split(",")
    if unknown := [case for case in args.cases if case not in CASES]:
        made.error(f"--cases: {', '.join(unknown)} is none; there are {', '.join(CASES)}")
    if args.new < 4 or args.new % 4:
        made.error(f"--new: a multiple of 4, got {args.new}")
    from graphlossy.llm.kv.schemes import parse_cache

    try:
        args.schemes = [parse_cache(name) for name in args.schemes.split(",")]
    except ValueError as error:
        made.error(f"--schemes: {error}")
    if wrong := [scheme.name for scheme in args.schemes if scheme.scorer or not scheme.packing]:
        made.error(f"--schemes: {', '.join(wrong)} is no cache in few bits alone")
    return args


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = _arguments(argv)
    from transformers import AutoTokenizer, DynamicCache

    from benchmarks.kv_quality import texts

    settings = {"model": None if args.model is None else Path(args.model).name, "prompts": args.prompts,
                "new": args.new, "attention": ["sdpa", "graphlossy"]}  # fmt: skip
    data = _report.header("kv_greedy", settings)
    runs = data["runs"] = _report.earlier(args.out, data, args.fresh).get("runs", {})
    model: Any = load(args.model, 0).eval()
    tokenizer = None if args.model is None else AutoTokenizer.from_pretrained(args.model)
    blocks = texts(args.model, args.prompts, _LONGEST + _OTHER, model.config.vocab_size)
    lengths = torch.linspace(16, _LONGEST, args.prompts).long().tolist()
    prompts = [block[: length + _OTHER] for block, length in zip(blocks, lengths, strict=True)]
    for case in args.cases:
        schemes = args.schemes if case == "padded" else args.schemes[:1]
        for numbers in groups(case, args.prompts):
            missing = [s for s in schemes if any(f"{s.name}, {case}, {number}" not in runs for number in numbers)]
            if not missing:
                continue
            chosen = [prompts[number] for number in numbers]
            model.set_attn_implementation("sdpa")
            plain = run(model, case, DynamicCache(config=model.config), chosen, args.new)
            for scheme in missing:
                model.set_attn_implementation("graphlossy")
                ours = run(model, case, scheme.make(model.config), chosen, args.new)
                model.set_attn_implementation("sdpa")
                for number, found in zip(numbers, compared(model, tokenizer, chosen, plain, ours), strict=True):
                    runs[f"{scheme.name}, {case}, {number}"] = asdict(found)
            data["summary"] = summarize(runs)
            data["bars"] = [] if args.tiny else bars(data["summary"], args.prompts)
            _report.write_json(args.out, data)
            print(f"{case}: prompts {', '.join(str(number) for number in numbers)}", flush=True)
    for name, row in summarize(runs).items():
        print(
            f"{name:18} identical {row['identical']} of {row['prompts']} ({row['packed']} with packed tokens), "
            f"{row['agree']['mean']:.1f} tokens agree"
        )
    for name, one in runs.items():
        if one["words"]:
            first, second = one["words"]
            own = "" if one["own_gap"] is None else f", {one['own_gap']:.4f} the other way with the packed cache"
            print(f"  {name}: token {one['agree']}, {first!r} not {second!r}, gap {one['gap']:.4f}{own}")
    _report.print_bars([] if args.tiny else bars(summarize(runs), args.prompts))


if __name__ == "__main__":
    main()
