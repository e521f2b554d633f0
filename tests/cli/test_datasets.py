import contextlib
import json
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from graphlossy.cli import main
from graphlossy.datasets import load, names, save_folder


def run(arguments, **options):
    return CliRunner().invoke(main, ["datasets", *shlex.split(arguments)], **options)


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path):
    return save_folder(load("synth-arxiv-tiny"), tmp_path / "tiny")


@pytest.mark.parametrize("name", ["list", "info", "prepare", "verify"])
def test_help_of_every_command_has_examples(name):
    result = run(f"{name} --help")
    assert result.exit_code == 0 and f"graphlossy datasets {name}" in result.stdout and "Examples:" in result.stdout


def test_without_a_command_help_is_shown():
    result = run("")
    assert result.exit_code == 0 and result.stdout == run("--help").stdout
    assert all(f"\n  {name} " in result.stdout for name in ("list", "info", "prepare", "verify"))


def test_list():
    result = run("list")
    assert result.exit_code == 0 and all(f" {name} " in result.stdout for name in names())
    assert "169,343" in result.stdout and "stand-ins" in result.stdout
    rows = json.loads(run("list --json").stdout)
    graphs = [row for row in rows if row["kind"] == "graph"]
    assert [row["name"] for row in graphs] == names()
    ways = {row["name"]: (row["way"], row["place"]) for row in graphs}
    assert ways["Cora"] == ("download", None) and ways["wordnet-verbs"][1].endswith("wordnet_verbs.npz")


def test_info_of_what_is_here():
    result = run("info WordNet-verbs --picture degrees.svg")
    assert result.exit_code == 0 and result.stderr == ""
    for words in (
        "13,767 nodes, 15,653 edges, 512 features, 15 classes", "WordNet 3.0 licence", "embedded in this package",
        "mean 2.27, median 1, 90 % 4, 99 % 17, max 402", "100 nodes without an edge", "0.858", "adjusted 0.841",
        "largest 17.3 %", "8,260 train, 2,753 val, 2,754 test (the first of 10)", "1.15 % of the values not zero",
        "0 NaN or infinite", "degrees.svg",
    ):  # fmt: skip
        assert words in result.stdout
    with open("degrees.svg") as picture:
        assert "<svg" in picture.read()


def test_info_as_json():
    found = json.loads(run("info synth-arxiv-tiny --seed 1 --json").stdout)
    assert found["synthetic"] and found["way"] == "generated" and found["place"] is None
    assert found["statistics"]["nodes"] == 1500 and found["statistics"]["edges"] == 20_000
    other = json.loads(run("info synth-arxiv-tiny --seed 2 --json").stdout)
    assert other["statistics"]["degrees"] != found["statistics"]["degrees"]


def test_info_of_what_is_not_here_downloads_nothing(monkeypatch):
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked for"))
    for name in ("Cora", "Reddit", "ogbn-papers100M", "debian-packages"):
        result = run(f"info {name}")
        assert result.exit_code == 0 and f"`graphlossy datasets prepare {name}` gets it" in result.stdout
        assert "homophily" not in result.stdout
    result = run("info synth-products")  # too large to be made just to be looked at
    assert result.exit_code == 0 and "--scale 0.01 looks at a small one" in result.stdout
    assert "a stand-in: an accuracy on it says nothing of the accuracy on ogbn-products" in result.stdout
    assert json.loads(run("info Cora --json").stdout)["statistics"] is None


def test_info_of_a_path(graph, tiny):
    result = run(f"info {graph}")
    assert result.exit_code == 0 and "240 nodes" in result.stdout and "licence" not in result.stdout
    assert json.loads(run(f"info {tiny} --json").stdout)["statistics"]["labels"]["classes"] == 10


def test_info_of_packages_builds_nothing_anew(monkeypatch, tmp_path):
    from graphlossy.datasets import _debian

    def index(packages):
        stanza = "Package: p{0}\nSection: {1}\nDepends: p{2}\nDescription: w{3} a\n"
        parts = (stanza.format(i, ("net", "libs")[i % 2], i * 7 % packages, i % 9) for i in range(packages))
        (tmp_path / "Packages").write_text("\n".join(parts))

    monkeypatch.setattr(_debian, "find_index", lambda: tmp_path / "Packages")
    index(240)
    assert run("prepare debian-packages").exit_code == 0
    index(250)  # as after an update of the machine's lists
    assert json.loads(run("info debian-packages --json").stdout)["statistics"]["nodes"] == 240
    assert run("verify debian-packages").exit_code == 0
    assert json.loads(run("info debian-packages --get --json").stdout)["statistics"]["nodes"] == 250


def test_info_gets_it_first():
    result = run("info synth-arxiv --scale 0.005 --get")
    assert result.exit_code == 0 and "847 nodes" in result.stdout
    result = run("info Cora --get")
    assert result.exit_code == 2 and "the download failed" in result.stderr and result.stderr.count("\n") == 1


def test_prepare_prints_the_place_and_can_be_called_again(tmp_path):
    first = run("prepare synth-arxiv --scale 0.01 --root here")
    assert first.exit_code == 0 and first.stdout.strip() == "here/synth_arxiv_x0.01" and "is ready" in first.stderr
    again = run("prepare synth-arxiv --scale 0.01 --root here")
    assert again.stdout == first.stdout and "is here already" in again.stderr
    result = json.loads(run("prepare synth-arxiv --scale 0.01 --root here --json").stdout)
    assert result["place"] == "here/synth_arxiv_x0.01" and result["bytes"] > 100_000
    assert run("info synth-arxiv --scale 0.01 --root here").stdout.count("here/synth_arxiv_x0.01") == 1
    assert run("verify here/synth_arxiv_x0.01").exit_code == 0


def test_verify_says_what_is_right_and_wrong(tiny):
    result = run("verify wordnet-verbs")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["ok", "wordnet_verbs.npz:"], ["ok", "contents:"], ["ok", "sizes:"],
    ]  # fmt: skip
    assert run(f"verify {tiny}").exit_code == 0
    y = np.load(tiny / "y.npy")
    np.save(tiny / "y.npy", y - 1)
    result = run(f"verify {tiny}")
    assert result.exit_code == 1 and "WRONG  contents: " in result.stdout and "out of range" in result.stdout
    assert run(f"verify {tiny} --files-only").exit_code == 0
    found = json.loads(run(f"verify {tiny} --json").stdout)
    assert found["wrong"] == 1 and found["findings"][-1]["what"] == "contents"
    result = run("verify Cora")
    assert result.exit_code == 1 and result.stdout.startswith("WRONG  Cora: is not here")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("inof Cora", "no command 'inof' of graphlossy datasets; did you mean info?"),
        ("xyzzy", "there are list, info, prepare, verify"),
        ("info", "Missing argument 'NAME|FILE|FOLDER'"),
        ("info Korra", "there is no data set 'Korra'; did you mean 'Cora'?"),
        ("verify Korra", "there is no data set 'Korra'; did you mean 'Cora'?"),
        ("prepare Korra", "there is no data set 'Korra'; did you mean 'Cora'?"),
        ("info no/such.npz", "no/such.npz: there is no such file or folder"),
        ("verify no/such.npz", "no/such.npz: there is no such file or folder"),
        ("info .", ".: holds no graph"),
        ("info synth-arxiv --scale 0", "scale must be a number from"),
        ("info synth-arxiv --scale nan", "scale must be a number from"),
        ("prepare synth-arxiv --scale x", "Invalid value for '--scale'"),
        ("prepare synth-arxiv --seed -1", "Invalid value for '--seed'"),
        ("prepare Cora --scale 0.5", "scale is for generated graphs alone"),
        ("prepare synth-arxiv-tiny", "there is nothing to prepare"),
        ("prepare debian-packages --root ''", "expected the name of a file or folder, got ''"),
        ("info Reddit --picture a.png", "--picture: Reddit is not here; --get gets it first"),
        ("info wordnet-verbs --picture a.gif2", "--picture a.gif2: cannot be written"),
        ("info wordnet-verbs --picture no/folder/a.png", "cannot be written (No such file or directory)"),
        ("list --root", "requires an argument"),
    ],
)
def test_errors_are_one_line(arguments, words, monkeypatch, tmp_path):
    from graphlossy.datasets import _debian

    monkeypatch.setattr(_debian, "find_index", lambda: None)
    result = run(arguments)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert result.stderr.startswith("graphlossy: error: ") and result.stderr.count("\n") == 1


def test_a_picture_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("info wordnet-verbs --picture a.png")
    assert result.exit_code == 2 and 'needs matplotlib: pip install "graphlossy[plot]"' in result.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("prepare synth-arxiv --scale 0.01 --root file")
    assert result.exit_code == 2 and "cannot be written" in result.stderr and result.stderr.count("\n") == 1


def test_a_stopped_preparation_leaves_nothing_half_done(tmp_path):
    # A process that is started in the background would ignore the signal.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from graphlossy.cli import main; main()"
    command = [sys.executable, "-c", code, "datasets", "prepare", "synth-arxiv", "--root", "here"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        here, deadline = tmp_path / "here", time.monotonic() + 60
        while not (here.exists() and any(here.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.02)
        while process.poll() is None and time.monotonic() < deadline:  # Python drops one that comes in a finalizer
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
        assert process.wait(60) == 130 and process.stderr.read().strip() == "graphlossy: error: interrupted"
    assert list(here.iterdir()) == []
