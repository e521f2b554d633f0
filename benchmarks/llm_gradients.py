"""Error of a language model's weight gradients where rows are sampled, or all rows are rounded: one table."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _report
from benchmarks._llm import load
from graphlossy.core import quantize
from graphlossy.core.sampling import sampled_matmul

__all__ = ["bars", "capture", "errors", "main"]

EXAMPLES = """\
  python -m benchmarks.llm_gradients --model DIR               SmolLM2-135M on Python's own documentation; ten minutes
  python -m benchmarks.llm_gradients --model DIR --repeats 20
  python -m benchmarks.llm_gradients --tiny --out /tmp/llm_gradients.json

Inputs X and output gradients G of every linear layer of three blocks are taken from one backward pass of the plain
model, next-token loss. dW = G^T X is then estimated from k of the n rows, weights ||x_i|| ||g_i|| as they are (an
estimator in training has those of the last visit), and from all rows rounded stochastically, in groups of 64 as
`graphlossy.llm.compress` has them and of 256. The error is relative, in the Frobenius norm; mean over layers and
repeats, and the standard deviation over repeats."""

ESTIMATORS = ("uniform", "crs", "wta", "pps", "topk")
SHARES = (0.5, 0.3, 0.1)
BITS = (8, 4, 2)
GROUPS = (64, 256)
SAMPLES, LENGTH = 4, 256


def text(folder: str | None, vocabulary: int) -> Tensor:
    """Tokens [SAMPLES, LENGTH] of Python's documentation; without a model random ones."""
    if folder is None:
        return torch.randint(vocabulary, (SAMPLES, 64), generator=torch.Generator().manual_seed(0))
    from transformers import AutoTokenizer

    from graphlossy.datasets.text import blocks, documents, split

    held = blocks(split(documents()).train, AutoTokenizer.from_pretrained(folder), LENGTH)
    return held[torch.linspace(0, len(held) - 1, SAMPLES).long()]


def capture(model: nn.Module, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(X [n, D], G [n, O]) of each linear layer in three of the model's blocks."""
    count = 1 + max(int(name.split(".")[2]) for name, _ in model.named_modules() if name.startswith("model.layers."))
    wanted = tuple(f"model.layers.{i}." for i in sorted({count // 14, count // 2, count - 1 - count // 14}))
    found: dict[str, list[Tensor]] = {}
    handles = []

    def note(name: str, x: Tensor, out: Tensor) -> None:
        found[name] = [x.detach().flatten(0, -2)]
        out.register_hook(lambda grad: found[name].append(grad.detach().flatten(0, -2)))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(wanted):
            handles.append(module.register_forward_hook(lambda m, args, out, name=name: note(name, args[0], out)))
    model(input_ids=tokens, labels=tokens).loss.backward()
    for handle in handles:
        handle.remove()
    return {name: (x, g) for name, (x, g) in found.items()}


def errors(pairs: dict[str, tuple[Tensor, Tensor]], seed: int) -> dict[str, float]:
    """Mean relative error over the layers, for every estimator and share and for every width."""
    sums: dict[str, float] = defaultdict(float)
    for number, (x, g) in enumerate(pairs.values()):
        exact = x.t() @ g
        size = exact.norm()
        own = 1_000_003 * seed + 101 * number
        for share in SHARES:
            keep = max(1, round(share * len(x)))
            for method in ESTIMATORS:
                estimate = sampled_matmul(x, g, keep, method, seed=own)
                sums[f"{method} {share}"] += float((estimate - exact).norm() / size)
        for bits in BITS:
            for group in GROUPS:
                rounded = quantize(x, bits, group_size=group, dim=None, seed=own).dequantize()
                sums[f"{bits}-bit/{group}"] += float((rounded.t() @ g - exact).norm() / size)
    return {name: value / len(pairs) for name, value in sums.items()}


def bars(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """PPS against WTA-CRS at three tenths of the rows."""
    pair = [rows.get(f"{method} 0.3") for method in ("pps", "wta")]
    ratio = pair[0]["mean"] / pair[1]["mean"] if pair[0] and pair[1] else None
    return [_report.bar("error of PPS at k/n = 0.3, share of WTA-CRS's", ratio, "at most", 0.85)]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "llm_gradients.json")
    made.add_argument("--model", metavar="DIR", help="folder of the model (needed but for --tiny)")
    made.add_argument("--repeats", type=int, help="draws of every estimate (default: 10; 2 if --tiny)")
    args = made.parse_args(argv)
    if args.model is None and not args.tiny:
        made.error("--model: give the folder of a model; `graphlossy datasets prepare smollm2` makes one")
    repeats = args.repeats or (2 if args.tiny else 10)
    settings = {"model": None if args.model is None else Path(args.model).name, "repeats": repeats}
    data = _report.header("llm_gradients", settings)
    _report.earlier(args.out, data, args.fresh)
    model: Any = load(args.model, 0)
    tokens = text(args.model, model.config.vocab_size)
    pairs = capture(model, tokens)
    data["tokens"], data["layers"] = tokens.numel(), sorted(pairs)
    found = [errors(pairs, seed) for seed in range(repeats)]
    data["rows"] = {name: _report.spread([one[name] for one in found]) for name in found[0]}
    data["bars"] = [] if args.tiny else bars(data["rows"])
    _report.write_json(args.out, data)
    print(f"{'':10}" + "".join(f"{f'k/n = {share}':>18}" for share in SHARES))
    for method in ESTIMATORS:
        cells = (data["rows"][f"{method} {share}"] for share in SHARES)
        print(f"{method:10}" + "".join(f"{cell['mean']:10.3f} ± {cell['std']:.3f}" for cell in cells))
    for name in [f"{bits}-bit/{group}" for group in GROUPS for bits in BITS]:
        cell = data["rows"][name]
        print(f"{name:10}{cell['mean']:10.4f} ± {cell['std']:.4f}")
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
