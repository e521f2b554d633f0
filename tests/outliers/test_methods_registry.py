"""The registry of methods: names, laziness, and errors that help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from graphlossy.outliers import methods
from graphlossy.outliers._base import Detector
from graphlossy.outliers.methods import METHODS, make_method


def test_every_entry_is_a_detector_that_knows_its_name() -> None:
    assert len(METHODS) == 21
    for name, cls in METHODS.items():
        assert issubclass(cls, Detector)
        assert cls.name == name
        assert getattr(methods, cls.__name__) is cls
        assert cls.title and cls.paper and cls.memory.startswith("O(")
        assert (cls.__doc__ or "").strip()


def test_titles_and_classes_are_distinct() -> None:
    assert len({cls.title for cls in METHODS.values()}) == len(METHODS)
    assert methods.__all__ == sorted({cls.__name__ for cls in METHODS.values()} | {"METHODS", "make_method"})
    assert set(methods.__all__) <= set(dir(methods))


def test_listing_the_names_imports_no_method() -> None:
    code = (
        "import sys; from graphlossy.outliers.methods import METHODS; names = list(METHODS); 'lof' in METHODS; "
        "print([m for m in sys.modules if m.startswith('graphlossy.outliers.methods.')], 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[] False", done.stderr


@pytest.mark.parametrize(
    ("written", "name"),
    [("LOF", "lof"), ("AdONE", "adone"), ("max-rank", "maxrank"), ("IForest", "if"), ("GAE", "gcnae"), ("IF", "if")],
)
def test_other_spellings(written: str, name: str) -> None:
    assert make_method(written).name == name


def test_every_title_is_a_name() -> None:
    for cls in METHODS.values():
        assert type(make_method(cls.title)) is cls


def test_unknown_method_names_near_ones() -> None:
    with pytest.raises(ValueError, match=r"no method 'dominat': did you mean 'dominant'\?.*lof, if, mlpae"):
        make_method("dominat")
    with pytest.raises(ValueError, match=r"no method 'xyz': The methods are"):
        make_method("xyz")
    with pytest.raises(TypeError, match="got int"):
        make_method(3)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        METHODS["LOF"]
    with pytest.raises(AttributeError, match="has no attribute 'DOMINATE'"):
        methods.DOMINATE  # noqa: B018


def test_unknown_option_names_near_ones() -> None:
    with pytest.raises(TypeError, match=r"LOF has no argument 'n_neighbours': did you mean 'n_neighbors'\?"):
        make_method("lof", n_neighbours=3)
    with pytest.raises(TypeError, match=r"MLPAE has no argument 'epochs': did you mean 'epoch'"):
        make_method("mlpae", epochs=3)


@pytest.mark.parametrize("name", ["mlpae", "done", "adone", "cola", "ocgnn", "lof", "if", "scan", "radar", "anomalous"])
@pytest.mark.parametrize("dataset", ["inj_cora", "books", "reddit", "mine"])
def test_search_space_and_fixed_arguments_are_arguments(name: str, dataset: str) -> None:
    cls = METHODS[name]
    space = cls.search_space(dataset)
    assert set(space) <= set(cls.parameter_names())
    make_method(name, **{key: values[-1] for key, values in space.items()})
    make_method(name, **cls.fixed(dataset))
