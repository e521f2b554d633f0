import os

import pytest
import torch

from graphlossy.core._files import write_json, write_text
from graphlossy.train import TrainError
from graphlossy.train._checkpoint import load_checkpoint, save_checkpoint


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.arange(4.0)}, "rng": torch.get_rng_state(), "best": [1, None, "x", 0.5]}
    save_checkpoint(tmp_path / "last.pt", state)
    back = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(back["model"]["w"], state["model"]["w"]) and torch.equal(back["rng"], state["rng"])
    assert back["best"] == state["best"]
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    def crash(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1


@pytest.mark.parametrize("damage", ["truncate", "text", "other", "missing"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, damage):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"w": torch.zeros(1000)})
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:700])
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "other":
        torch.save({"something": 1}, path)
    else:
        path.unlink()
    with pytest.raises(TrainError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"format": 1, "evil": Evil()}, tmp_path / "last.pt")
    with pytest.raises(TrainError):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


def test_json_with_nan_is_refused_and_nothing_is_written(tmp_path):
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert (tmp_path / "a.json").read_text() == "old"
