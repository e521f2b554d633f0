import importlib
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from graphlossy.cli import COMMANDS, main

PLAN = ["plan", "--nodes", "100", "--edges", "300", "--features", "4", "--classes", "2", "--hidden", "8", "--bits", "2"]


def test_help_lists_every_command_and_its_examples():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)
    assert CliRunner().invoke(main, []).stdout == result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_file_help_and_examples(name):
    module = importlib.import_module(f"graphlossy.cli.{name.replace('-', '_')}")
    assert isinstance(module.command, click.Command) and module.command.name == name
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0 and f"graphlossy {name}" in result.stdout and "Examples:" in result.stdout


def test_help_shows_how_each_command_is_called():
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert all(f"graphlossy {name}" in text for name in COMMANDS)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], PLAN, [*PLAN, "--json"]], ids=["help", "plan", "json"])
def test_output_that_cannot_be_written(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "graphlossy.cli", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("graphlossy: error: cannot write the output: ") and done.stderr.count("\n") == 1


def test_a_message_keeps_the_blanks_of_a_path():
    result = CliRunner().invoke(main, ["plan", "--dataset", "two  blanks/graph.npz"])
    assert result.exit_code == 2 and "two  blanks/graph.npz" in result.stderr and result.stderr.count("\n") == 1


def test_version():
    import graphlossy

    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"graphlossy {graphlossy.__version__}\n"


@pytest.mark.parametrize(("word", "hint"), [("trian", "did you mean train?"), ("xyzzy", "there are plan, train")])
def test_a_mistyped_command(word, hint):
    result = CliRunner().invoke(main, [word])
    assert result.exit_code == 2 and hint in result.stderr and result.stderr.count("\n") == 1


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom graphlossy.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'torch_geometric' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
