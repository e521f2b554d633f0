"""Lines that are asked for again, and how fast a model writes with a cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
from kv_models import model_of, prompt  # noqa: E402

from graphlossy.llm.kv._needle import OPENING, WANTED, Answer, ask, ask_without, find_needle, line_starts  # noqa: E402
from graphlossy.llm.kv._speed import measure_speed  # noqa: E402
from graphlossy.llm.kv.schemes import CacheScheme  # noqa: E402
from graphlossy.llm.kv.scorers import Knorm  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = CacheScheme("plain")
EIGHT = CacheScheme("8", packing={"bits": 8, "group_size": 8, "residual_length": 8, "sinks": 2})
EVERY_TEN = range(10, 200, 10)


class Induction:
    """Says what came behind the last tokens where they occurred before; its cache holds the tokens as keys."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.config = transformers.LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1)

    def set_attn_implementation(self, name: str) -> None:
        """It has no attention."""

    def __call__(self, ids: torch.Tensor, past_key_values: Any, logits_to_keep: int = 0) -> SimpleNamespace:
        states = ids.float()[:, None, :, None].expand(-1, 1, -1, 8)
        seen = past_key_values.update(states, states, 0)[0][0, 0, :, 0].round().long().tolist()
        places = [i for i in range(4, len(seen)) if seen[i - 4 : i] == seen[-4:]]
        return SimpleNamespace(logits=torch.eye(500)[seen[places[-1]] if places else 499][None, None])


def text() -> torch.Tensor:
    return torch.randperm(400, generator=torch.Generator().manual_seed(0))[:200]


def test_a_line_is_found_near_its_depth() -> None:
    ids = text()
    for depth in (0.1, 0.5, 0.9):
        needle = find_needle(ids, EVERY_TEN, depth)
        assert needle is not None and needle.start in EVERY_TEN and abs(needle.start - 200 * depth) <= 30
        said = torch.cat([needle.question, needle.wanted])
        assert said.tolist() == ids[needle.start - 1 : needle.start + OPENING + WANTED].tolist()
    starts = {find_needle(ids, EVERY_TEN, 0.5, seed).start for seed in range(8)}
    assert len(starts) > 1 and starts <= {80, 90, 100, 110, 120}
    assert [find_needle(ids, EVERY_TEN, 0.5, 3).start for _ in range(2)] == [
        find_needle(ids, EVERY_TEN, 0.5, 3).start
    ] * 2


def test_what_is_said_twice_is_no_needle() -> None:
    ids = text()
    ids[150 : 150 + OPENING] = ids[100 : 100 + OPENING]
    assert find_needle(ids, [100, 150], 0.5) is None
    assert find_needle(ids, [100, 130, 150], 0.5).start == 130
    ids = text()
    ids[160 : 160 + OPENING] = ids[108 : 108 + OPENING]  # the opening is said once, what follows twice
    assert find_needle(ids, [100], 0.5) is None
    assert find_needle(text(), [0, 190], 0.5) is None  # no token before it, not enough behind it
    assert find_needle(text()[:5], [1], 0.5) is None


def test_line_starts() -> None:
    assert line_starts(["\n", " \n", "a", "b", "\n"]) == [2]
    assert line_starts(["a.", "b", "?", "c"]) == [1, 3]
    assert line_starts([]) == line_starts(["a", "b"]) == []


def test_a_model_that_copies_knows_every_line_but_the_one_cut_out() -> None:
    model, ids = Induction(), text()
    needles = [find_needle(ids, EVERY_TEN, depth) for depth in (0.1, 0.9)]
    assert list(ask(model, ids, needles, PLAIN)) == [Answer(0.1, WANTED, WANTED), Answer(0.9, WANTED, WANTED)]
    assert list(ask_without(model, ids, needles)) == [Answer(0.1, 0, WANTED), Answer(0.9, 0, WANTED)]


def test_questions_do_not_disturb_each_other() -> None:
    model, ids = model_of("llama"), prompt(1, 120)[0]
    needles = [find_needle(ids, range(10, 120, 5), depth) for depth in (0.1, 0.5, 0.7)]
    for scheme in (PLAIN, EIGHT):
        together = list(ask(model, ids, needles, scheme))
        assert together == [answer for needle in needles for answer in ask(model, ids, [needle], scheme)]
    # The same tokens, read at once and by the model alone.
    first = needles[0]
    whole = torch.cat([ids, first.question, first.wanted])[None]
    with torch.no_grad():
        said = model(whole).logits[0, -WANTED - 1 : -1].argmax(-1)
    assert next(ask(model, ids, needles, PLAIN)).right == int((said == first.wanted).sum())


def test_a_cache_that_the_model_does_not_allow() -> None:
    scheme = CacheScheme("4", packing={"bits": 4, "group_size": 12})
    with pytest.raises(ValueError, match="group_size must be a multiple of 8"):
        next(ask(model_of("llama"), prompt(1, 20)[0], [], scheme))


def test_speed() -> None:
    model = model_of("llama")
    plain, eight = (measure_speed(model, scheme, 100, 2, 3) for scheme in (PLAIN, EIGHT))
    assert plain.cache_bytes == 2 * 103 * 2 * 2 * 2 * 16 * 4  # two layers, keys and values, two heads of 16 numbers
    assert eight.cache_bytes < plain.cache_bytes / 1.5
    assert plain.prefill_seconds > 0 and plain.tokens_per_second > 0
    if plain.peak_measured_as:
        assert plain.peak_bytes > plain.beyond_bytes >= 0


def test_a_question_is_no_part_of_the_prompt() -> None:
    class Counting(Knorm):
        asked = 0

        def scores(self, view: Any) -> torch.Tensor:
            Counting.asked += 1
            return super().scores(view)

    model, ids = model_of("llama"), prompt(1, 90)[0]
    scheme = CacheScheme("own", Counting(), {"heavy": 20, "recent": 5, "prompt_only": True})
    answers = list(ask(model, ids, [find_needle(ids, range(10, 90, 5), 0.5)], scheme))
    assert len(answers) == 1 and Counting.asked == 2  # layers
