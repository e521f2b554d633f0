"""The example of a whole pipeline, and that what it exports serves in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "recommender_pipeline.py"
pytest.importorskip("pandas")
pytest.importorskip("safetensors")


def run(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {"GRAPHLOSSY_DATA": str(cwd / "cache"), "OMP_NUM_THREADS": "1", "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_from_clicks_to_serving(tmp_path: Path) -> None:
    done = run(tmp_path, "--epochs", 2, "--out", tmp_path / "shop")
    assert done.returncode == 0, done.stderr
    full, small = (line for line in done.stdout.splitlines() if "test AUC" in line)
    sizes = [int(line.split("tables of ")[1].split(" bytes")[0].replace(",", "")) for line in (full, small)]
    assert sizes[1] * 8 <= sizes[0] and "synthetic" in done.stdout
    assert "the exported graph says the same" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("row ")]
    assert len(rows) == 2 and all(0 < float(line.split()[-1]) < 1 for line in rows)
    (tmp_path / "new.csv").write_text("user,item,tags,price\nu1,i3,sale red,3.5\nnobody,i-new,,20.0\n")
    again = run(tmp_path, "--serve", "shop", "--rows", "new.csv")  # another process, from the files alone
    assert again.returncode == 0, again.stderr
    assert [line for line in again.stdout.splitlines() if line.startswith("row ")] == rows


def test_wrong_data_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "--data", "no-such.csv")
    assert done.returncode == 1 and "no-such.csv" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("rows", "message"), [("absent.csv", "absent.csv"), ("empty.csv", "empty.csv: has no rows")])
def test_wrong_rows_are_one_line(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "empty.csv").write_text("user,item\n")
    done = run(tmp_path, "--serve", "shop", "--rows", rows)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
