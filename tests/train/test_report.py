import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from graphlossy.train import Experiment, TrainConfig, comparison_rows

VOID = {"meta", "br", "rect", "line", "polyline", "path"}
CONFIG = TrainConfig(dataset="toy", layers=1, hidden=8, epochs=1, seeds=1, device="cpu", threads=1)


class Page(HTMLParser):
    """Collects the texts and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.tags, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path, task):
    config = TrainConfig(dataset="toy", model="sage", layers=2, hidden=64, epochs=3, seeds=2, device="cpu", threads=1)
    Experiment(config, tmp_path / "run").run(task=task)
    return tmp_path / "run"


@pytest.fixture
def page(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    parsed.close()
    parsed.source = text
    return parsed


def test_the_report_needs_nothing_from_elsewhere(page):
    assert not page.open
    lowered = page.source.lower()
    for word in ("http:", "https:", "//", "@import", "url(", "<script", "<link", "<img", "src="):
        assert word not in lowered
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)


def test_the_report_holds_the_table_as_printed(folder, page):
    summary = json.loads((folder / "summary.json").read_text())
    for row in comparison_rows(summary):
        for cell in row:
            assert cell == "" or cell in page.texts


def test_the_report_draws_a_curve_for_every_run_and_bars_for_every_layer(page):
    for scheme in ("baseline", "2-bit"):
        assert page.texts.count(f"{scheme}, seed 0") == 2  # validation and loss
        assert page.texts.count(f"{scheme}, mean") == 2
    assert page.tags.count("polyline") == 2 * 2 * 3
    assert page.tags.count("rect") >= 4
    assert any("convs.0" in text for text in page.texts)


def test_the_report_names_settings_and_versions(page):
    import torch

    assert torch.__version__ in page.texts and "weight_decay" in page.texts


def test_names_from_outside_are_escaped(tmp_path, task):
    Experiment(CONFIG, tmp_path / "run").run(task=replace(task, name="<b>&graph"))
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<b>" not in text and "&lt;b&gt;&amp;graph" in text


def test_a_single_epoch_is_drawn_as_points(tmp_path, task):
    Experiment(CONFIG, tmp_path / "run").run(task=task)
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count("<circle") == 2 * 2 and "<polyline" not in text  # two schemes, validation and loss


def test_the_curve_of_a_single_seed_is_strong(tmp_path, task):
    Experiment(replace(CONFIG, epochs=3), tmp_path / "run").run(task=task)
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count('<polyline class="strong"') == 4 and '<polyline class="thin"' not in text
    assert "mean over seeds. Thin" not in text


def test_the_forward_pass_is_not_called_exact_where_sums_are_taken_in_another_order(page):
    assert "order of summation" in page.source and "exact in every scheme" not in page.source
