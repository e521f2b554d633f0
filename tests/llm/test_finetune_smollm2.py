"""The real SmolLM2-135M, where `graphlossy datasets prepare smollm2` has put it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphlossy.datasets import find_model, text
from graphlossy.llm.finetune import FinetuneConfig, Finetuning, load_model, load_tokenizer

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = find_model("smollm2")
    if found is None:
        pytest.skip("SmolLM2 is not here: graphlossy datasets prepare smollm2")
    return found


def test_four_bits_give_nearly_the_loss_of_a_plain_run(smollm2: Path, tmp_path: Path) -> None:
    parts = text.split(text.documents("pydoc"), valid=0.1, test=0.0)
    tokenizer = load_tokenizer(smollm2)
    train, valid = (text.blocks(part, tokenizer, 128) for part in parts[:2])
    results, first = {}, {}
    for method in ("plain", "4bit"):
        config = FinetuneConfig.from_method(method, steps=3, batch_size=2, device="cpu", eval_every=0, eval_sequences=4)
        folder = tmp_path / method
        results[method] = Finetuning(load_model(smollm2), train, valid, config, folder, tokenizer).run()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        first[method] = rows[1]["loss"]
    plain, low = results["plain"], results["4bit"]
    assert first["4bit"] == pytest.approx(first["plain"], rel=1e-6)  # the forward pass is the same
    assert plain["valid_loss"] < plain["first_valid_loss"]
    assert low["valid_loss"] == pytest.approx(plain["valid_loss"], rel=0.01)
    assert low["plain_bytes"] > 4 * low["saved_bytes"]
