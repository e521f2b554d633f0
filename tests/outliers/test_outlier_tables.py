"""Tables, ranks, the comparison with the paper and the report, of records that are written here."""

from __future__ import annotations

import csv
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from graphlossy.outliers import ranks
from graphlossy.outliers._labels import LEFT_OUT
from graphlossy.outliers._paper import DATASETS, PAPER
from graphlossy.outliers.compare import comparison
from graphlossy.outliers.report import curves, exponent, render_report
from graphlossy.outliers.runner import BenchmarkError, Results
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.trial import new_record
from graphlossy.outliers.table import METRICS, make_table, render

TITLES = {"lof": "LOF", "dominant": "DOMINANT", "gaan": "GAAN", "norm": "Norm", "random": "Random", "if": "IF"}
NODES = {"books": 1000, "inj_cora": 10_000, "inj_amazon": 14_000, "my_graph": 100_000}


def record(dataset: str, method: str, trial: int = 0, auc: float | None = None, **figures: Any) -> dict[str, Any]:
    place = Trial(dataset, dataset, method, figures.pop("engine", "native"), trial, trial)
    judged = {"auc": auc, "ap": auc, "recall": auc, "by_type": {"contextual": {"auc": 0.25}}} if auc is not None else {}
    return new_record(place, figures.pop("status", "done"), figures.pop("reason", None), **judged, **figures)


def results(records: list[dict[str, Any]], **changed: Any) -> Results:
    fact = {
        "edges": 20,
        "features": 3,
        "outliers": 2,
        "types": {"contextual": 2},
        "note": "made <here>",
        "fingerprint": "",
    }
    datasets = {r["dataset"]: {"nodes": NODES[r["dataset"]], **fact} for r in records}
    if "my_graph" in datasets:
        datasets["my_graph"] |= {"outliers": None, "types": {}, "note": f"mine.pt; {LEFT_OUT}; name it: mine.pt#y"}
    settings = {"seed": 0, "protocol": "bond", "threads": 1, "options": {}, "versions": {"torch": "2"}, **changed}
    return Results(records, {**settings, "datasets": datasets, "titles": TITLES}, None)


def some() -> Results:
    records = [record("books", "norm", auc=0.6, seconds=0.001, peak_bytes=100)]
    for trial, auc in enumerate((0.5, 0.6, 0.7)):
        records.append(record("books", "dominant", trial, auc, seconds=2.0 + trial, peak_bytes=2**20, saved_bytes=1000))
    records.append(record("books", "lof", auc=0.365, seconds=1.0))
    records.append(record("inj_cora", "lof", auc=0.699, seconds=10.0))
    records.append(record("inj_cora", "dominant", 0, 0.75, seconds=20.0))
    records.append(record("inj_cora", "dominant", 1, status="TLE", reason="not done after 60 s"))
    records += [record("inj_cora", "gaan", n, status="OOM", reason="took 5.0 GiB") for n in range(2)]
    records.append(record("my_graph", "lof", seconds=100.0))  # no labels: scores only
    return results(records)


def test_the_text_table() -> None:
    text = some().table()
    assert text == (
        "ROC-AUC, %: mean±std (max) over trials\n"
        "                     books  inj_cora  my_graph\n"
        "----------------------------------------------\n"
        "LOF                   36.5      69.9         -\n"
        "DOMINANT  60.0±10.0 (70.0)     75.0*\n"
        "GAAN                             OOM\n"
        "----------------------------------------------\n"
        "Norm                  60.0\n"
        "\n"
        "books: 0 of 2 methods are above Norm (60.0), which needs no model\n"
        "my_graph has no labels (its y holds class numbers and was left out; name it: mine.pt#y), so there are no "
        "figures; the scores: --save-scores, or the command score\n"
        "* DOMINANT on inj_cora: 1 done, 1 TLE: not done after 60 s\n"
        "* GAAN on inj_cora: 0 done, 2 OOM: took 5.0 GiB\n"
    )


def test_markdown_latex_and_csv() -> None:
    table = make_table(some())
    markdown = render(table, "markdown").splitlines()
    assert (
        markdown[0] == "| ROC-AUC, % | books | inj_cora | my_graph |" and markdown[1] == "| --- | ---: | ---: | ---: |"
    )
    assert "| DOMINANT | **60.0±10.0 (70.0)** | **75.0*** |  |" in markdown and "| *Norm* | 60.0 |  |  |" in markdown
    latex = render(table, "latex")
    assert r" & books & inj\_cora & my\_graph \\" in latex and r"\textbf{60.0$\pm$10.0 (70.0)}" in latex
    assert latex.count("\\midrule") == 2 and latex.index("\\midrule", 200) < latex.index("Norm")
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    by_cell = {(row["dataset"], row["method"]): row for row in rows}
    assert float(by_cell["books", "dominant"]["mean"]) == pytest.approx(0.6) and len(rows) == 7
    assert by_cell["inj_cora", "gaan"]["not_done"] == "OOM:2" and by_cell["inj_cora", "gaan"]["mean"] == ""
    assert by_cell["books", "norm"]["needs_model"] == "False"


def test_other_metrics() -> None:
    found = some()
    assert "3±1 (4)" in found.table("seconds") and "1.0 MiB±0 B (1.0 MiB)" in found.table("peak_bytes")
    assert "25.0±0.0 (25.0)" in found.table("auc:contextual") and "above" not in found.table("seconds")
    for metric in METRICS:
        for form in ("text", "markdown", "latex", "csv"):
            assert found.table(metric, form).strip()
    with pytest.raises(BenchmarkError, match="metric must be one of auc, .*; got 'f1'"):
        found.table("f1")
    with pytest.raises(BenchmarkError, match="format must be one of text, .*; got 'html'"):
        found.table("auc", "html")
    with pytest.raises(BenchmarkError, match="has no trial yet"):
        results([]).table()


def test_scores_that_are_all_equal_are_told() -> None:
    records = [record("books", "lof", n, 0.5, distinct_scores=1 if n else 7) for n in range(3)]
    assert "LOF on books: in 2 of 3 trials every node has the same score" in results(records).table()
    assert "same score" not in results(records[:1]).table() + results(records).table("seconds")


def test_several_engines_are_told_apart() -> None:
    both = results([record("books", "lof", auc=0.4), record("books", "lof", auc=0.5, engine="pyod"),
                    record("books", "norm", auc=0.1)])  # fmt: skip
    assert [row.title for row in make_table(both).rows] == ["LOF [native]", "LOF [pyod]", "Norm"]


def test_critical_differences_as_scipy_and_demsar() -> None:
    stats = pytest.importorskip("scipy.stats")
    for k in (2, 5, 10, 20, 40):
        q = stats.studentized_range.ppf(0.95, k, math.inf) / math.sqrt(2)
        assert ranks.critical_difference(k, 6) == pytest.approx(q * math.sqrt(k * (k + 1) / 36), abs=2e-3 * k)
    assert ranks.critical_difference(41, 6) is None and ranks.critical_difference(1, 6) is None
    data = [[0.9, 0.8, 0.8, 0.1], [0.7, 0.75, 0.2, 0.3], [0.6, 0.6, 0.6, 0.2], [0.9, 0.5, 0.4, 0.3]]
    expected = stats.friedmanchisquare(*zip(*data, strict=True)).pvalue
    assert ranks.friedman([stats.rankdata([-v for v in row]).tolist() for row in data]) == pytest.approx(expected)
    assert ranks.friedman([[2.0, 2.0, 2.0]] * 3) == 1.0


def test_ranking_of_methods() -> None:
    aucs = {"books": (0.9, 0.8, 0.1), "inj_cora": (0.9, 0.7, 0.7), "my_graph": (0.6, 0.5, 0.4)}
    names = ("dominant", "lof", "norm")
    records = [record(d, m, auc=a) for d, values in aucs.items() for m, a in zip(names, values, strict=True)]
    found = ranks.rank(make_table(results([*records, record("books", "gaan", auc=1.0)])))
    assert found is not None and found.titles == ("DOMINANT", "LOF", "Norm") and found.left_out == ("GAAN",)
    assert found.ranks == pytest.approx((1.0, (2 + 2.5 + 2) / 3, (3 + 2.5 + 3) / 3))
    assert found.groups == ((0, 2),) and found.datasets == tuple(aucs)
    assert ranks.rank(make_table(results([record("books", "lof", auc=0.5)]))) is None
    assert ranks._groups([1.0, 2.0, 4.0, 4.5], 1.5) == [(0, 1), (2, 3)]


def test_the_paper_is_read_whole() -> None:
    assert len({method for method, _ in PAPER}) == 14 and {d for _, d in PAPER} == set(DATASETS)
    assert PAPER["dominant", "inj_cora"][:3] == (82.7, 5.6, 84.3) and PAPER["guide", "weibo"].text == "OOM"
    assert PAPER["mlpae", "reddit"][:2] == (50.6, 0.0) and ("scan", "inj_flickr") not in PAPER


def test_beside_the_paper() -> None:
    records = [
        record("books", "lof", auc=0.3649), record("books", "if", auc=0.56), record("books", "dominant", 0, 0.58),
        record("books", "dominant", 1, 0.60), record("inj_cora", "dominant", auc=0.60),
        record("inj_cora", "gaan", status="OOM", reason="big"), record("my_graph", "lof", auc=0.5),
    ]  # fmt: skip
    rows = {(r.dataset, r.method): r for r in comparison(results(records))}
    assert len(rows) == 5
    assert rows["books", "lof"].verdict == "agrees" and rows["books", "lof"].reason == ""
    assert rows["books", "if"].difference == pytest.approx(1.0) and rows["books", "if"].reason == "inverted"
    assert (rows["books", "dominant"].verdict, rows["books", "dominant"].reason) == ("within spread", "spread")
    assert (rows["inj_cora", "dominant"].verdict, rows["inj_cora", "dominant"].reason) == ("differs", "weight")
    assert rows["inj_cora", "gaan"].verdict == "-" and rows["inj_cora", "gaan"].ours == "OOM"
    text = results(records).compare()
    assert (
        "inverted: Isolation Forest" in text
        and "enron:" not in text
        and "of 4 cells: 1 agrees, 2 within spread, 1 differs" in text
    )
    assert results(records).compare("csv").splitlines()[0].startswith("data set,method,paper")
    assert "| books | LOF | 36.5 |" in results(records).compare("markdown")
    with pytest.raises(BenchmarkError, match="no cell of this run is in the paper's table"):
        comparison(results([record("my_graph", "lof", auc=0.5)]))


@pytest.mark.parametrize(
    ("changed", "trials", "engine", "said"),
    [
        ({}, 20, "native", None),
        ({"options": {"if": {"max_samples": 9}}}, 20, "native", "options if.max_samples=9; the paper's: protocol bond"),
        ({"protocol": "fixed"}, 20, "native", "This run: protocol fixed, up to 20 trials, engine native, options none"),
        ({"options": {"*": {"bits": 2}}}, 20, "native", "options bits=2; the paper's: protocol bond, 20 trials, no"),
        ({"options": {"GAAN": {"epoch": 3}}}, 20, "native", "options GAAN.epoch=3"),
        ({}, 5, "native", "protocol bond, up to 5 trials"),
        ({}, 20, "pygod", "engine pygod"),
    ],
)
def test_a_run_of_other_settings_is_not_compared_in_silence(
    changed: dict[str, Any], trials: int, engine: str, said: str | None
) -> None:
    rows = [record("books", "gaan", n, 0.9, engine=engine) for n in range(trials)]
    found = results(rows, **changed)
    same = said is None or "if.max_samples" in said  # an option of another method changes nothing of this one
    (row,) = comparison(found)
    assert (row.verdict, row.reason) == ("differs", "unknown" if same else "settings")
    for form in ("text", "markdown"):
        first = found.compare(form).splitlines()[0]
        assert said in first if said else "This run" not in found.compare(form)
    assert ("This run" in render_report(found)) == (said is not None)
    assert found.compare("csv").startswith("data set,")


@pytest.mark.parametrize(
    ("dataset", "method", "reason"),
    [
        ("inj_cora", "radar", "release"),
        ("inj_cora", "gaan", "release"),
        ("inj_amazon", "gaan", "unknown"),
        ("books", "radar", "radar"),
        ("inj_amazon", "dominant", "weight"),
    ],
)
def test_why_a_cell_differs(dataset: str, method: str, reason: str) -> None:
    found = results([record(dataset, method, n, 0.99) for n in range(20)])
    (row,) = comparison(found)
    assert (row.verdict, row.reason) == ("differs", reason)
    assert f"{reason}: " in found.compare()
    (other,) = comparison(results(found.records, options={"*": {"epoch": 1, "n_neighbors": 3}}, protocol="fixed"))
    assert (other.verdict, other.reason) == ("differs", "settings")  # whatever is known of the paper's figure


def test_the_papers_inverted_row_is_told_where_it_would_be_compared() -> None:
    found = results(
        [record("inj_cora", "if", auc=0.37), record("my_graph", "if", auc=0.4), record("books", "lof", auc=0.4)]
    )
    (note,) = [note for note in make_table(found).notes if "inverted" in note]
    assert note.startswith("IF on inj_cora: the paper's 64.4") and note.endswith("compare it with 63.0, 100 minus ours")
    assert not [note for note in make_table(found, "seconds").notes if "inverted" in note]


def test_curves_and_exponents() -> None:
    found = {curve.label: curve.points for curve in curves(some(), "seconds")}
    assert found["LOF"] == [(1000.0, 1.0), (10000.0, 10.0), (100000.0, 100.0)] and "GAAN" not in found
    assert found["DOMINANT"] == [(1000.0, 3.0), (10000.0, 20.0)]  # medians of what is done
    assert exponent(found["LOF"]) == pytest.approx(1.0) and exponent(found["DOMINANT"]) is None


class _Page(HTMLParser):
    """Collects what a page refers to, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_page_and_loads_nothing(tmp_path: Path) -> None:
    text = some().report(tmp_path / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == [] and page.links == [] and "$" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    assert page.counts["svg"] == 3  # ranks, seconds, bytes
    for words in ("60.0±10.0 (70.0)", "made &lt;here&gt;", "TLE", "critical difference", "LOF 1.00", "69.9"):
        assert words in text
    assert 'class="plain first"' in text


def test_a_report_of_one_graph_without_labels() -> None:
    text = render_report(results([record("my_graph", "lof", seconds=1.0)]))
    assert text.count("<svg") == 0 and "at least two sizes" in text and "every trial is done" in text
