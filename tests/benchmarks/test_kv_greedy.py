"""Texts of packed caches beside the plain one's: the tiny mode, where texts part, and the bars."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import kv_greedy, studies

OTHER = [0] * 8  # tokens behind a prompt, which only a cropped cache is given


@pytest.mark.slow
def test_all_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    options = ["--tiny", "--out", str(tmp_path / "out.json"), "--schemes", "8bit-w32,1bit-w32"]
    kv_greedy.main(options)
    data = json.loads((tmp_path / "out.json").read_text())
    rows = data["summary"]
    assert set(rows) == {f"8bit-w32, {case}" for case in kv_greedy.CASES} | {"1bit-w32, padded"}
    assert all(row["prompts"] == 4 and row["packed"] == 3 for row in rows.values())  # that of 16 tokens never is
    assert rows["8bit-w32, single"]["agree"]["mean"] > rows["1bit-w32, padded"]["agree"]["mean"]
    assert data["runs"]["8bit-w32, crop, 0"]["agree"] == 8  # nothing is packed: the very same
    parted = [one for key, one in data["runs"].items() if key.startswith("1bit") and one["words"]]
    assert parted and all(one["gap"] >= 0 and one["own_gap"] >= 0 for one in parted)
    page = studies.render("kv_greedy", {**data, "bars": []})
    assert f"| 1bit-w32 | padded | {4 - len(parted)} of 4 | 3 |" in page and f"| {parted[0]['gap']:.4f} |" in page
    assert "beams: prompts 0, 1, 2, 3\n" in capsys.readouterr().out
    kv_greedy.main(options)
    said = capsys.readouterr().out
    assert "prompts 0" not in said and "1bit-w32, padded   identical" in said  # nothing is generated twice


@pytest.mark.parametrize("case", kv_greedy.CASES)
def test_every_prompt_is_in_one_group(case: str) -> None:
    for count in (1, 4, 50):
        found = kv_greedy.groups(case, count)
        assert sorted(number for group in found for number in group) == list(range(count))
        assert max(map(len, found)) <= 10


def test_where_texts_part() -> None:
    prompts = [torch.tensor([5, 6, 7, *OTHER]), torch.tensor([5, *OTHER])]
    logits = torch.tensor([[[0.0, 1.0, 4.0], [0.0, 3.0, 2.5]], [[0.0, 1.0, 4.0], [0.0, 3.0, 2.0]]])  # [step, row, word]
    plain = kv_greedy.Run(torch.tensor([[2, 2], [1, 1]]), list(logits))
    other = logits.clone()
    other[1, 1, 2] = 3.25
    ours = kv_greedy.Run(torch.tensor([[2, 2], [1, 2]]), list(other), [0, 32])
    same, parted = kv_greedy.compared(None, None, prompts, plain, ours)
    assert (same.prompt, same.agree, same.tokens, same.packed, same.words) == (3, 2, 2, 0, None)
    assert (parted.prompt, parted.agree, parted.packed, parted.words) == (1, 1, 32, ("1", "2"))
    assert (parted.gap, parted.own_gap) == (1.0, 0.25)


def test_bars() -> None:
    rows = {f"8bit, {case}": {"prompts": 50, "identical": 50} for case in ("single", "padded", "beams")}
    rows["8bit, padded"]["identical"], rows["8bit, beams"]["prompts"] = 49, 40  # one parts; ten are missing
    assert [bar["met"] for bar in kv_greedy.bars(rows, 50)] == [True, False, None, None, None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--model: give the folder"),
        (["--tiny", "--schemes", "9bits"], "no cache has the name '9bits'"),
        (["--tiny", "--schemes", "h2o:9:9+4bit,plain"], "h2o:9:9+4bit, plain is no cache in few bits alone"),
        (["--tiny", "--cases", "alone"], "alone is none; there are single, padded"),
        (["--tiny", "--new", "6"], "--new: a multiple of 4, got 6"),
    ],
)
def test_wrong_arguments_end_in_a_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(SystemExit):
        kv_greedy.main(arguments)
    assert said in capsys.readouterr().err
