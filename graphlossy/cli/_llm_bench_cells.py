"""The cells of ``graphlossy llm bench-kv``: which there are, and how those that are missing are measured."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from graphlossy.cli._llm_bench_child import measure_apart
from graphlossy.cli._llm_bench_summary import CONTROL
from graphlossy.core._memory import is_out_of_memory, trim
from graphlossy.llm.finetune import FinetuneError, load_model, position_limit
from graphlossy.llm.finetune._errors import one_line
from graphlossy.llm.kv._needle import Answer, Needle, ask, ask_without, find_needle, line_starts
from graphlossy.llm.kv._quality import compare_caches
from graphlossy.llm.kv.schemes import CacheScheme

__all__ = ["Bench", "needles_of"]

DEPTHS = (0.1, 0.5, 0.9)
STEP = 8  # tokens of a pass behind the prompt
PLAIN = CacheScheme("plain")
Cell = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
        model: folder or name.
        texts: int64 [N, prompt + scored + 1]; none where no part reads them.
        needles: for each text, lines of its prompt.
        prompt: tokens that are read at once.
        schemes: the caches, without the full one.
        parts: of ``quality``, ``needle``, ``speed``.
        lengths, batch_sizes, new_tokens: of the speed.
        seed: of the lines that are asked for, and of random tokens.
        device, dtype, threads: of the model.
    """

    model: str
    texts: Tensor
    needles: tuple[list[Needle], ...]
    prompt: int
    schemes: tuple[CacheScheme, ...]
    parts: tuple[str, ...]
    lengths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    new_tokens: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    threads: int

    def keys(self) -> list[tuple[Any, ...]]:
        """What tells each cell from the others, in the order in which they are measured."""
        names = [PLAIN.name, *(scheme.name for scheme in self.schemes)]
        found: list[tuple[Any, ...]] = []
        for text in range(len(self.texts)):
            if "quality" in self.parts:
                found += [("quality", name, text) for name in names]
            if "needle" in self.parts:
                found += [("needle", name, text) for name in (CONTROL, *names)]
        if "speed" in self.parts:
            found += [("speed", n, length, b) for length in self.lengths for b in self.batch_sizes for n in names]
        return found

    def measure(self, missing: list[tuple[Any, ...]]) -> Iterator[Cell]:
        """The cells of these keys, each as soon as it is done.

        Raises:
            FinetuneError: the model does not allow a cache, there is no memory for the model, or a text has no line
                that can be asked for.
        """
        if any(key[0] != "speed" for key in missing):
            try:
                yield from self._with_model(missing)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise FinetuneError(
                    "not enough memory for the model and its caches; give a smaller --prompt-tokens"
                ) from None
        gc.collect()  # the model: the processes that follow load their own
        trim()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        for key in missing:
            if key[0] == "speed":
                yield self._speed(*key[1:])

    def _with_model(self, missing: list[tuple[Any, ...]]) -> Iterator[Cell]:
        model: Any = load_model(self.model).to(self.device, self.dtype).eval()
        texts = self.texts.to(self.device)
        self._check(model, texts[0])
        for number, ids in enumerate(texts):
            here = {key[:2] for key in missing if key[0] != "speed" and key[2] == number}
            schemes = [scheme for scheme in self.schemes if ("quality", scheme.name) in here]
            if schemes or ("quality", PLAIN.name) in here:
                for found in compare_caches(model, ids[None], schemes, self.prompt, STEP):
                    if ("quality", found.scheme) in here:
                        figures = asdict(found)
                        yield {"part": "quality", "cache": figures.pop("scheme"), "text": number, **figures}
            if any(part == "needle" for part, _ in here):
                yield from self._needle(model, ids[: self.prompt], number, here)

    def _check(self, model: Any, ids: Tensor) -> None:
        """Reads a few tokens with every cache: what the model does not allow shows before anything is measured."""
        for scheme in self.schemes:
            try:
                list(ask(model, ids[:STEP], [], scheme))
            except (TypeError, ValueError) as error:
                raise FinetuneError(f"cache {scheme.name}: {one_line(error)}") from error

    def _needle(self, model: Any, ids: Tensor, number: int, here: set[tuple[str, str]]) -> Iterator[Cell]:
        def cell(name: str, answers: Iterator[Answer]) -> Cell:
            return {"part": "needle", "cache": name, "text": number, "answers": [asdict(a) for a in answers]}

        needles = self.needles[number]
        if ("needle", CONTROL) in here:
            yield cell(CONTROL, ask_without(model, ids, needles))
        for scheme in (PLAIN, *self.schemes):
            if ("needle", scheme.name) in here:
                yield cell(scheme.name, ask(model, ids, needles, scheme))

    def _speed(self, name: str, length: int, batch_size: int) -> Cell:
        cell = {"part": "speed", "cache": name, "length": length, "batch_size": batch_size}
        limit = position_limit(self.model)
        if limit is not None and length + self.new_tokens > limit:
            return {**cell, "status": f"beyond the model's limit of {limit:,} tokens"}
        task = {
            "model": self.model, "cache": name, "length": length, "batch_size": batch_size,
            "new_tokens": self.new_tokens, "seed": self.seed, "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."), "threads": self.threads,
        }  # fmt: skip
        return {**cell, **measure_apart(task)}


def needles_of(tokenizer: Any, texts: Tensor, seed: int) -> tuple[list[Needle], ...]:
    """For each text the lines that are asked for; fewer than depths where too few begin as no other does.

    Args:
        tokenizer: of the model.
        texts: int64 [N, T].
        seed: takes lines; another for each text.

    Raises:
        FinetuneError: there is no such line in any text.
    """
    found = []
    for number, ids in enumerate(texts):
        starts = line_starts([tokenizer.decode([token]) for token in ids.tolist()])
        needles = [find_needle(ids, starts, depth, seed + number) for depth in DEPTHS]
        found.append([needle for needle in needles if needle is not None])
    if not any(found):
        raise FinetuneError("no line of the texts begins as no other does; give more --prompt-tokens, or other --data")
    return tuple(found)
