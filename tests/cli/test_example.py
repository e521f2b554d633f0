import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_graph.py"


def test_the_example_trains_and_prints_what_it_saved(graph):
    command = [sys.executable, str(EXAMPLE), "--dataset", str(graph), "--epochs", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    last = next(line for line in done.stdout.splitlines() if line.startswith("epoch  20"))
    assert float(last.split()[-1]) > 0.5
    assert "conv1.lin_l" in done.stdout and "relu" in done.stdout and "total" in done.stdout
