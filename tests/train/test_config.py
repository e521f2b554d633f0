import pytest

from graphlossy.train import TrainConfig, TrainError, resolve_device


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "saeg"}, "did you mean sage"),
        ({"bits": (5,)}, "bits must be 1, 2, 3, 4 or 8, got 5"),
        ({"bits": ()}, "bits"),
        ({"bits": (2, 2)}, "bits"),
        ({"epochs": -1}, "epochs must be a whole number of at least 1, got -1"),
        ({"epochs": 2.5}, "epochs"),
        ({"layers": 0}, "layers"),
        ({"hidden": 0}, "hidden"),
        ({"seeds": 0}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"adj": "coo"}, "adj"),
        ({"schemes": ()}, "schemes"),
        ({"schemes": ("baseline", "baseline")}, "schemes"),
        ({"schemes": ("compresed",)}, "did you mean compressed"),
        ({"model": "gat", "hidden": 30, "heads": 4}, "multiple of heads"),
        ({"budget": "lots"}, "lots"),
        ({"budget": "0MiB"}, "0MiB"),
        ({"budget": "-3MiB"}, "-3MiB"),
        ({"budget": 3}, "budget must be a text, got 3"),
        ({"budget": "1MiB", "schemes": ("baseline",)}, "budget is for compressed runs"),
        ({"dataset": 7}, "dataset must be a text, got 7"),
        ({"dataset": "a\0b"}, "dataset must be a text"),
        ({"amp": "x"}, "amp must be true or false"),
        ({"norm": 1}, "norm must be true or false"),
        ({"threads": 100_000}, "threads must be a whole number from 1 to 1024, got 100000"),
        ({"hidden": 10**9}, "hidden must be a whole number from 1 to"),
        ({"hidden": 10**20}, "hidden"),
        ({"layers": 10**9}, "layers"),
        ({"lr": 1e300}, "lr must be a positive number of at most 1e+30, got 1e+300"),
        ({"weight_decay": 1e300}, "weight_decay"),
    ],
)
def test_a_bad_setting_is_named(settings, words):
    with pytest.raises(TrainError, match="budget" if "budget" in settings else None) as caught:
        TrainConfig(**settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_schemes_of_a_comparison():
    assert [s.label for s in TrainConfig(bits=(4, 1)).comparison()] == ["baseline", "4-bit", "1-bit"]
    assert [s.label for s in TrainConfig(budget="1.5 GiB").comparison()] == ["baseline", "budget-1.5GiB"]
    assert [s.label for s in TrainConfig(schemes=("compressed",)).comparison()] == ["2-bit"]


def test_settings_survive_json():
    import json

    config = TrainConfig(bits=(4, 2), budget="2MiB", threads=3)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("change", [{"colour": "red"}, {"epochs": "many"}, {"dropout": None}])
def test_damaged_settings_are_refused(change):
    with pytest.raises(TrainError):
        TrainConfig.from_dict({**TrainConfig().to_dict(), **change})


@pytest.mark.parametrize("name", ["gpu", "mps", "cpu:x", "cuda:999"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(TrainError, match="device"):
        resolve_device(name)
