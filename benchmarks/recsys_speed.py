"""Time of a lookup, of a training step and of scoring a whole catalogue, beside nn.Embedding and FBGEMM, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _report
from graphlossy.recsys import MultiSizeEmbedding

__all__ = ["bars", "main", "measure", "zipf_batches"]

EXAMPLES = """\
  python -m benchmarks.recsys_speed                        V = 1 M, d = 32, 8,192 ids of a Zipf law, one thread
  python -m benchmarks.recsys_speed --rounds 200 --fresh
  python -m benchmarks.recsys_speed --tiny --out /tmp/recsys_speed.json

All calls take turns; every call has another batch than the one before, so that no table stays in the cache for the
sake of repeated ids. Ratios are of medians. FBGEMM's CPU kernels take part where fbgemm-gpu-cpu is installed."""

ZIPF, BATCHES = 1.05, 64


def zipf_batches(tokens: int, count: int, batches: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """(ids [count] of each batch, popularity rank of every token): tokens of a Zipf law in random order."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.arange(1, tokens + 1, dtype=torch.float64).pow(-ZIPF)
    ends = (share / share.sum()).cumsum(0)
    order = torch.randperm(tokens, generator=generator)
    drawn = torch.rand(batches, count, dtype=torch.float64, generator=generator)
    ids = order[torch.searchsorted(ends, drawn).clamp(max=tokens - 1)]
    return list(ids), torch.empty_like(order).scatter_(0, order, torch.arange(tokens))


def power_sizes(rank: Tensor, dim: int, share: float) -> Tensor:
    """Widths that are powers of two, falling with popularity, of mean ``share`` x ``dim``."""
    kinds = torch.tensor([0, *(2**k for k in range(dim.bit_length()) if 2**k <= dim)])
    low, high = 0.0, 1e12
    for _ in range(80):
        factor = (low * high) ** 0.5 if low else high / 2
        wanted = (factor * (rank + 1.0).pow(-0.5)).clamp(max=dim)
        sizes = kinds[torch.bucketize(wanted, kinds, right=True) - 1]
        low, high = (factor, high) if sizes.double().mean() < share * dim else (low, factor)
    return sizes


def _lookups(tokens: int, dim: int, sizes: Tensor) -> Iterator[tuple[str, Callable[[Tensor], object]]]:
    dense = nn.Embedding(tokens, dim)
    yield "nn.Embedding", dense
    yield "multi-size, float32", MultiSizeEmbedding(tokens, dim, sizes=sizes)
    for bits in (8, 4, 2):
        yield f"multi-size, int{bits}", MultiSizeEmbedding(tokens, dim, sizes=sizes).quantize_(bits)
        yield f"full width, int{bits}", MultiSizeEmbedding(tokens, dim).quantize_(bits)
    packed = torch.ops.quantized.embedding_bag_byte_prepack(dense.weight.detach())
    lookup = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
    yield "torch.ops.quantized, int8", lambda ids: lookup(packed, ids, torch.arange(ids.shape[0] + 1), False, 0)
    yield from _fbgemm(tokens, dim)


def _fbgemm(tokens: int, dim: int) -> Iterator[tuple[str, Callable[[Tensor], object]]]:
    try:
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
    except (ImportError, OSError):
        return
    for name, kind in (("float32", SparseType.FP32), ("int8", SparseType.INT8), ("int4", SparseType.INT4)):
        table = IntNBitTableBatchedEmbeddingBagsCodegen(
            [("", tokens, dim, kind, EmbeddingLocation.HOST)], output_dtype=SparseType.FP32, device="cpu"
        )
        table.fill_random_weights()
        yield f"FBGEMM, {name}", lambda ids, t=table: t(ids.int(), torch.arange(ids.shape[0] + 1, dtype=torch.int32))


def _steps(tokens: int, dim: int, sizes: Tensor, count: int) -> Iterator[tuple[str, Callable[[Tensor], object]]]:
    from graphlossy.recsys.optim import RowwiseAdagrad, SparseAdamW

    grad = torch.randn(count, dim, generator=torch.Generator().manual_seed(1))

    def step(table: nn.Module, *optimizers: torch.optim.Optimizer) -> Callable[[Tensor], object]:
        def run(ids: Tensor) -> None:
            for optimizer in optimizers:
                optimizer.zero_grad()
            table(ids).backward(grad)
            for optimizer in optimizers:
                optimizer.step()

        return run

    dense = nn.Embedding(tokens, dim, sparse=True)
    yield "nn.Embedding, SparseAdam", step(dense, torch.optim.SparseAdam(dense.parameters()))
    table = MultiSizeEmbedding(tokens, dim, sizes=sizes, sparse=True)
    tables = [p for name, p in table.named_parameters() if name.startswith("tables.")]
    both = torch.optim.SparseAdam(tables), torch.optim.Adam(table.projections.parameters())
    yield "multi-size, SparseAdam + Adam", step(table, *both)
    table = MultiSizeEmbedding(tokens, dim, sizes=sizes, sparse=True)
    yield "multi-size, SparseAdamW", step(table, SparseAdamW(table.parameters()))
    table = MultiSizeEmbedding(tokens, dim, sizes=sizes, sparse=True)
    yield "multi-size, RowwiseAdagrad", step(table, RowwiseAdagrad(table.parameters()))
    table = MultiSizeEmbedding(tokens, dim, sizes=sizes).quantize_(8, trainable=True)
    yield "multi-size, int8 in training, RowwiseAdagrad", step(table, RowwiseAdagrad(table.parameters()))


def _scores(tokens: int, dim: int, rank: Tensor, share: float) -> Iterator[tuple[str, Callable[[Tensor], object]]]:
    weight = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(2))
    table = MultiSizeEmbedding(tokens, dim, sizes=power_sizes(rank, dim, share))
    low = MultiSizeEmbedding(tokens, dim, sizes=power_sizes(rank, dim, share)).quantize_(4)
    for batch in (1, 64):
        queries = torch.randn(batch, dim, generator=torch.Generator().manual_seed(3))
        yield f"dense matmul, B = {batch}", lambda _, q=queries: q @ weight.T
        yield f"multi-size, B = {batch}", lambda _, q=queries: table.scores(q)
        yield f"multi-size int4, B = {batch}", lambda _, q=queries: low.scores(q)


def measure(calls: dict[str, Callable[[Tensor], object]], batches: list[Tensor], rounds: int) -> dict[str, Any]:
    """Milliseconds of every call: raw values, mean, median and spread."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            ids = batches[turn % len(batches)]
            begin = time.perf_counter()
            result = call(ids)
            end = time.perf_counter()
            del result  # before the next call, so that it cannot keep memory from it
            if turn > 1:  # two rounds warm up
                taken[name].append(round((end - begin) * 1e3, 4))
    return {name: _report.spread(values) for name, values in taken.items()}


COMPARED = [
    ("lookup against nn.Embedding", "lookup", "multi-size, float32", "nn.Embedding", "at most", 2.0),
    ("backward and step against nn.Embedding with SparseAdam", "step", "multi-size, SparseAdamW",
     "nn.Embedding, SparseAdam", "at most", 1.2),
    ("dense matmul against the scores of a catalogue, B = 1", "scores", "dense matmul, B = 1", "multi-size, B = 1",
     "at least", 1.0),
    ("dense matmul against the scores of a catalogue, B = 64", "scores", "dense matmul, B = 64", "multi-size, B = 64",
     "at least", 1.0),
]  # fmt: skip


def bars(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of medians against their bars."""
    found = []
    for text, part, one, other, relation, bound in COMPARED:
        times = runs.get(part)
        ratio = None if times is None else times[one]["median"] / times[other]["median"]
        found.append(_report.bar(f"{text}, times", ratio, relation, bound))
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "recsys_speed.json")
    made.add_argument("--rounds", type=int, default=None, help="calls of each kind (default: 100; 2 if --tiny)")
    made.add_argument("--share", type=float, default=1 / 8, help="mean width of the rows (default: 1/8 of d)")
    args = made.parse_args(argv)
    if args.rounds is not None and args.rounds < 1:
        made.error(f"--rounds: must be at least 1, got {args.rounds}")
    tokens, catalogue, count = (5000, 2000, 256) if args.tiny else (1_000_000, 200_000, 8192)
    dim, rounds = 32, args.rounds or (2 if args.tiny else 100)
    settings = {"tokens": tokens, "catalogue": catalogue, "dim": dim, "ids": count, "zipf": ZIPF, "batches": BATCHES,
                "share": args.share, "rounds": rounds, "threads": 1}  # fmt: skip
    data = _report.header("recsys_speed", settings)
    data["runs"] = _report.earlier(args.out, data, args.fresh).get("runs", {})
    torch.manual_seed(0)
    torch.set_num_threads(1)
    batches, rank = zipf_batches(tokens, count, BATCHES)
    sizes = power_sizes(rank, dim, args.share)
    some = rank[rank < catalogue]
    parts: dict[str, tuple[Callable[[], Any], int, bool]] = {
        "lookup": (lambda: _lookups(tokens, dim, sizes), rounds, True),
        "step": (lambda: _steps(tokens, dim, sizes, count), rounds, False),
        "scores": (lambda: _scores(catalogue, dim, some, args.share), max(2, rounds // 4), True),
    }
    for part, (calls, times, without_gradient) in parts.items():
        if part not in data["runs"]:
            with torch.set_grad_enabled(not without_gradient):
                data["runs"][part] = measure(dict(calls()), batches, times)
        print(f"{part}: milliseconds, median and spread")
        for name, values in data["runs"][part].items():
            print(f"  {name:48} {values['median']:9.3f} {values['std']:9.3f}")
        data["bars"] = [] if args.tiny else bars(data["runs"])
        _report.write_json(args.out, data)
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
