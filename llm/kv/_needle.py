"""Lines of a text that a model is asked for again: what a cache still knows of what was said far back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphlossy.llm.kv._eviction import EvictionCache
from graphlossy.llm.kv._quality import with_attention
from graphlossy.llm.kv.schemes import CacheScheme

__all__ = ["OPENING", "WANTED", "Answer", "Needle", "ask", "ask_without", "find_needle", "line_starts"]

OPENING, WANTED = 8, 12  # tokens
NEAR = 4  # lines around a depth, of which the seed takes one


@dataclass(frozen=True)
class Needle:
    """A line of a text that begins as no other place of it does.

    Attributes:
        depth: where it was looked for, as a share of the text.
        start: number of its first token.
        question: int64 [OPENING + 1], the token before the line and the line's first ones.
        wanted: int64 [WANTED], the tokens that follow them.
    """

    depth: float
    start: int
    question: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Answer:
    """What was said to one question.

    Attributes:
        depth: of the line.
        right: how many of the tokens were predicted, each from the true ones before it.
        tokens: that were asked for.
    """

    depth: float
    right: int
    tokens: int


def line_starts(pieces: Sequence[str]) -> list[int]:
    """Numbers of the tokens that begin a line; in a text of one line, a sentence.

    Args:
        pieces: what each token is as text.

    Example:
        >>> line_starts(["one", " two", "\\n", "\\n", "three", ".\\n  ", "four"])
        [4, 6]
        >>> line_starts(["One", ".", "Two"])
        [2]
    """
    ends = ["\n" in piece for piece in pieces]
    if not any(ends):
        ends = [piece.rstrip().endswith((".", "!", "?")) for piece in pieces]
    return [i + 1 for i in range(len(pieces) - 1) if ends[i] and not ends[i + 1]]


def find_needle(ids: Tensor, starts: Sequence[int], depth: float, seed: int = 0) -> Needle | None:
    """A line near a depth of the text whose first tokens occur nowhere else in it, nor those that follow them.

    Args:
        ids: int64 [T], the text.
        starts: where its lines begin, as :func:`line_starts` says.
        depth: from 0, its beginning, to 1, its end.
        seed: takes one of the few lines that are nearest.

    Returns:
        None where no line begins as no other does.
    """
    windows = ids.unfold(0, OPENING, 1) if len(ids) >= OPENING else ids.new_empty(0, OPENING)
    whole = [s for s in starts if 1 <= s <= len(ids) - OPENING - WANTED]
    near: list[int] = []
    for start in sorted(whole, key=lambda s: (abs(s - depth * len(ids)), s)):
        if all(int((windows == windows[place]).all(1).sum()) == 1 for place in (start, start + OPENING)):
            near.append(start)
        if len(near) == NEAR:
            break
    if not near:
        return None
    draw = torch.Generator().manual_seed(seed)
    start = near[int(torch.randint(len(near), (1,), generator=draw))]
    opened = start + OPENING
    return Needle(depth, start, ids[start - 1 : opened], ids[opened : opened + WANTED])


@torch.inference_mode()
def ask(model: Any, ids: Tensor, needles: Sequence[Needle], scheme: CacheScheme) -> Iterator[Answer]:
    """Reads a text at once, then, for each line, its first tokens again, and counts what is known of the rest.

    Each question is put to a copy of the cache as it was behind the text: its opening in one pass, then the true tokens
    one at a time, as in generation.

    Args:
        model: in evaluation, of transformers.
        ids: int64 [T], the text.
        needles: lines of it.
        scheme: the cache.

    Raises:
        TypeError, ValueError: the model does not allow the cache.
    """
    cache = scheme.make(model.config)
    with with_attention(model, cache):
        model(ids[None], past_key_values=cache, logits_to_keep=1)
        if isinstance(cache, EvictionCache):
            cache.end_prompt()  # questions are no part of it
        answers = [_answer(model, copy.deepcopy(cache), needle) for needle in needles]
    yield from answers


def ask_without(model: Any, ids: Tensor, needles: Sequence[Needle]) -> Iterator[Answer]:
    """The same with the full cache, of a text in which the line is not: what the model knows without it."""
    for needle in needles:
        rest = torch.cat([ids[: needle.start], ids[needle.start + OPENING + WANTED :]])
        yield from ask(model, rest, [needle], CacheScheme("plain"))


def _answer(model: Any, cache: Any, needle: Needle) -> Answer:
    read, right = needle.question.to(model.device), 0
    for token in needle.wanted.to(model.device):
        said = model(read[None], past_key_values=cache).logits[0, -1].argmax()
        right += int(said == token)
        read = token[None]
    return Answer(needle.depth, right, len(needle.wanted))
