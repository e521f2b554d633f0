"""``graphlossy llm bench-kv`` with a tiny model made on the spot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from graphlossy.cli._group import LazyGroup
from graphlossy.outliers._chart import Curve, log_log

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from tiny_llm import save_tokenizer, sentences  # noqa: E402

from graphlossy.cli import _llm_bench_cells, _llm_bench_child  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
CACHES = "8bit-w8-g8,2bit-w8-g8,h2o:0.1:0.1"
ROWS = ["plain", *CACHES.split(",")]
CONTROL = "full, line cut out"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=save_tokenizer(folder), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "text.txt").write_text("\n\n".join(sentences(120)))
    return folder


def options(llama: Path, out: Path, *more: Any) -> list[str]:
    given = ["--model", llama, "--data", llama / "text.txt", "--out", out, "--device", "cpu", "--caches", CACHES,
             "--texts", 2, "--prompt-tokens", 90, "--scored-tokens", 20, *more]  # fmt: skip
    return ["llm", "bench-kv", *map(str, given)]


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(LazyGroup({"llm": ""}), list(map(str, arguments)))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a run of quality and needle, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run(*options(llama, out, "--parts", "quality,needle", "--json"))
    torch.set_num_threads(threads)
    assert found.exit_code == 0, found.output
    return out, json.loads(found.stdout)


def test_figures(finished: tuple[Path, dict[str, Any]]) -> None:
    out, told = finished
    assert told == results(out)
    quality = {row["cache"]: row for row in told["summary"]["quality"]}
    assert list(quality) == ROWS
    plain, eight, two, h2o = quality.values()
    assert all(row["texts"] == 2 and row["words"] == 40 for row in quality.values())
    assert plain["kl"] == pytest.approx(0, abs=1e-6) and plain["agreement"] == plain["times_less"] == 1
    assert plain["perplexity_change"] == 0 and plain["bytes_16"] == (90 + 20) * 2 * 2 * 32 * 2
    assert 0 < eight["kl"] < two["kl"] < 0.1 and 1 < eight["times_less"] < two["times_less"] < h2o["times_less"]
    assert eight["perplexity"] == pytest.approx(plain["perplexity"] * (1 + eight["perplexity_change"]))
    needle = {row["cache"]: row for row in told["summary"]["needle"]}
    assert list(needle) == [CONTROL, *ROWS]
    assert len({row["lines"] for row in needle.values()}) == 1 and 2 <= needle["plain"]["lines"] <= 6
    assert all(0 <= row["whole"] <= row["right"] <= 1 for row in needle.values())
    assert told["settings"]["prompt_tokens"] == 90 and told["versions"]["torch"] == torch.__version__
    assert len(told["cells"]) == 2 * (4 + 5)


def test_page(finished: tuple[Path, dict[str, Any]]) -> None:
    page = (finished[0] / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "http" not in page and "<script" not in page
    assert page.count("<svg") == 2 and "times fewer bytes than the full cache" in page
    picture = page[page.index("<svg") :]
    for name in ROWS[1:]:
        assert f">{name}</text>" in picture[: picture.index("</svg>")]
    assert CONTROL in page and "90% deep" in page and "Speed" not in page


def test_what_is_there_is_not_measured_again(
    llama: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = tmp_path / "more", finished[1]
    out.mkdir()
    (out / "results.json").write_text(json.dumps(told))
    measured = []
    compare = _llm_bench_cells.compare_caches

    def watched(model: Any, ids: Any, schemes: Any, *rest: Any) -> Any:
        measured.append([scheme.name for scheme in schemes])
        return compare(model, ids, schemes, *rest)

    monkeypatch.setattr(_llm_bench_cells, "compare_caches", watched)
    again = run(*options(llama, out, "--parts", "quality", "--json"))
    assert again.exit_code == 0 and measured == [] and json.loads(again.stdout)["cells"] == told["cells"]
    more = run(*options(llama, out, "--parts", "quality", "--caches", "2bit-w8-g8,4bit-w8-g8", "--texts", 3))
    assert more.exit_code == 0, more.output
    assert measured == [["4bit-w8-g8"], ["4bit-w8-g8"], ["2bit-w8-g8", "4bit-w8-g8"]]
    assert results(out)["cells"][:18] == told["cells"] and len(results(out)["cells"]) == 18 + 2 + 3
    for words in ("cells", "Quality against the full cache", "4bit-w8-g8", "report:"):
        assert words in more.output


KILL = """
import os, sys
from graphlossy.cli import _llm_bench_folder as folder, main
add, count = folder.BenchFolder.add, [0]
def counted(self, cell):
    add(self, cell)
    count[0] += 1
    if count[0] == 7:
        os.kill(os.getpid(), 9)
folder.BenchFolder.add = counted
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_killed_run_goes_on(llama: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    asked = options(llama, out, "--parts", "quality,needle", "--quiet")
    process = subprocess.run([sys.executable, "-c", KILL, *asked, "--threads", "1"], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(results(out)["cells"]) == 7
    assert run(*asked).exit_code == 0
    assert results(out)["cells"] == finished[1]["cells"]


def test_interrupted(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_llm_bench_cells.Bench, "measure", stop)
    found = run(*options(llama, tmp_path / "run", "--parts", "quality"))
    assert found.exit_code == 130 and "the same command goes on from there" in found.output


def test_speed_goes_on_where_there_is_no_room(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = []

    def measured(task: dict[str, Any]) -> dict[str, Any]:
        tasks.append(task)
        if task["batch_size"] == 2:
            return _llm_bench_child.NO_MEMORY
        return {"status": "done", "prefill_seconds": 0.5, "tokens_per_second": 12.5, "peak_bytes": 3 * 2**30,
                "beyond_bytes": 2**20, "peak_measured_as": "resident", "cache_bytes": 4096}  # fmt: skip

    monkeypatch.setattr(_llm_bench_cells, "measure_apart", measured)
    asked = ["--parts", "speed", "--lengths", "64,128,250", "--batch-sizes", "1,2", "--caches", "4bit"]
    found = run(*options(llama, tmp_path / "run", *asked))
    assert found.exit_code == 0, found.output
    assert len(tasks) == 8 and {task["length"] for task in tasks} == {64, 128}
    assert tasks[0]["model"] == str(llama) and (tasks[0]["cache"], tasks[1]["cache"]) == ("plain", "4bit")
    for words in ("out of memory", "beyond the model's limit of 256 tokens", "0.50 s", "12.5", "3.0 GiB", "1.0 MiB"):
        assert words in found.output
    rows = results(tmp_path / "run")["summary"]["speed"]
    assert [(row["length"], row["batch_size"], row["cache"]) for row in rows][:3] == [
        (64, 1, "plain"), (64, 1, "4bit"), (64, 2, "plain"),
    ]  # fmt: skip
    assert "text" not in results(tmp_path / "run")["settings"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 2 and "memory above the model" in page and "out of memory" in page


def task_of(llama: Path, **changes: Any) -> dict[str, Any]:
    return {"model": str(llama), "cache": "4bit-w8-g8", "length": 64, "batch_size": 2, "new_tokens": 2, "seed": 0,
            "device": "cpu", "dtype": "bfloat16", "threads": 1, **changes}  # fmt: skip


def test_a_process_of_its_own(llama: Path) -> None:
    found = _llm_bench_child.measure_apart(task_of(llama))
    assert found["status"] == "done" and found["tokens_per_second"] > 0
    assert 0 < found["cache_bytes"] < 66 * 2 * 2 * 2 * 32 * 2
    if found["peak_measured_as"]:
        assert found["peak_bytes"] > found["beyond_bytes"] >= 0


def test_what_a_process_tells(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.llm.finetune import FinetuneError
    from graphlossy.llm.kv import _speed

    assert _llm_bench_child._measure(task_of(llama, cache="4bit-g12")) == {
        "refused": "group_size must be a multiple of 8, such as 32, got 12"
    }

    def full(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(_speed, "measure_speed", full)
    assert _llm_bench_child._measure(task_of(llama)) == {"status": "out of memory"}
    for program, said in (("import sys; sys.exit('no luck')", "exit code 1: no luck"),
                          ("import os; os.abort()", "signal SIGABRT"),
                          ("print('{\"refused\": \"not this one\"}')", "cache 4bit-w8-g8: not this one")):  # fmt: skip
        monkeypatch.setattr(_llm_bench_child, "_PROGRAM", program)
        with pytest.raises(FinetuneError, match=said):
            _llm_bench_child.measure_apart(task_of(llama))
    monkeypatch.setattr(_llm_bench_child, "_PROGRAM", "raise MemoryError('std::bad_alloc')")
    assert _llm_bench_child.measure_apart(task_of(llama)) == {"status": "out of memory"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--caches", "8bit,4bits"], "no cache has the name '4bits'"),
        (["--caches", ","], "expected names with commas"),
        (["--caches", "8bit,4bit-g12"], "cache 4bit-g12: group_size must be a multiple of 8"),
        (["--parts", "quality,sped"], "there is no part 'sped'; there are quality, needle, speed"),
        (["--lengths", "12,x"], "expected whole numbers with commas"),
        (["--batch-sizes", "0"], "expected whole numbers with commas"),
        (["--prompt-tokens", "240"], "--prompt-tokens 240 and --scored-tokens 20 need 261 positions"),
        (["--texts", "50"], "fewer than --texts 50"),
        (["--data", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--prompt-tokens", "10"], "no line of the texts begins as no other does"),
        (["--model", "./nothing"], "no model folder at nothing"),
        (["--device", "tpu9"], "device"),
    ],
)
def test_mistakes_end_in_one_line(llama: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    found = run(*options(llama, tmp_path / "run", *arguments))
    assert found.exit_code == 2 and said in found.output and "Traceback" not in found.output
    assert not (tmp_path / "run").exists()


def test_a_model_that_refuses_when_it_reads(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Any, ids: Any, needles: Any, scheme: Any) -> Any:
        raise ValueError("this model caches a latent")
        yield

    monkeypatch.setattr(_llm_bench_cells, "ask", refuse)
    found = run(*options(llama, tmp_path / "run", "--parts", "quality"))
    assert found.exit_code == 2 and "cache 8bit-w8-g8: this model caches a latent" in found.output


def test_folders_that_do_not_fit(llama: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    def said(out: Path, *more: Any) -> str:
        found = run(*options(llama, out, "--parts", "quality,needle", *more))
        assert found.exit_code == 2 and "Traceback" not in found.output
        return " ".join(found.output.split())

    out, told = finished
    before = (out / "results.json").read_text()
    message = said(out, "--scored-tokens", 21, "--seed", 1)
    assert "made with other settings (seed 0, now 1; scored_tokens 20, now 21; text " in message
    assert "give another --out" in message
    shorter = tmp_path / "text.txt"
    shorter.write_text("\n\n".join(sentences(110)))
    assert "text " in said(out, "--data", shorter)
    assert (out / "results.json").read_text() == before
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    halves = [before[: len(before) // 2], "[]", "{}", json.dumps({**told, "format": 9}),
              json.dumps({**told, "cells": [{"part": "quality"}]}), json.dumps({**told, "cells": [3]})]  # fmt: skip
    for content in halves:
        (damaged / "results.json").write_text(content)
        assert "results.json is damaged" in said(damaged)
    older = {**told, "versions": {**told["versions"], "torch": "1.0"}}
    (damaged / "results.json").write_text(json.dumps(older))
    assert f"torch 1.0, now {torch.__version__}" in said(damaged)
    (tmp_path / "file").write_text("")
    assert "is no folder" in said(tmp_path / "file")
    assert "cannot write" in said(tmp_path / "file" / "below")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    assert "holds other files" in said(tmp_path / "notes")


def test_help_shows_examples() -> None:
    found = run("llm", "bench-kv", "--help")
    assert found.exit_code == 0 and "graphlossy llm bench-kv --model smollm2 --caches" in found.output


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = run("llm", "bench-kv", "--model", "any")
    assert found.exit_code == 2 and "pip install 'graphlossy[llm]'" in found.output


def test_names_beside_points_do_not_cover_each_other() -> None:
    curves = [Curve(name, [(2.0, 0.01)], number) for number, name in enumerate(("one", "two", "three"))]
    picture = log_log([*curves, Curve("none", [(0.0, 1.0)])], "x", "y", x_text="{:g}".format, x_base=2, labelled=True)
    places = {picture[: picture.index(f">{name}</text>")].rpartition("<text ")[2] for name in ("one", "two", "three")}
    assert len(places) == 3 and "none" not in picture
    assert "one: 2, 0.01" in picture and ">4</text>" in picture and ">10</text>" not in picture  # ticks 2 and 4
