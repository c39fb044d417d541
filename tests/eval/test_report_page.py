"""The report: the answer first, every section only where its figures are, and no advice without a figure."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from skumatch.eval.advice import REMEDIES, advise
from skumatch.eval.corrupt import KINDS, examples
from skumatch.eval.report_page import Failure, Pictures, write_report
from skumatch.images import read_image

HERE = Path(__file__).parent
NASTY = "<b>Smith & Sons</b> \"Original\" 'Crisps'"
BARE: dict[str, Any] = {"topk": {"1": 1.0}, "ci95": {"1": [1.0, 1.0]}, "queries": 1, "gallery_views": 1, "skus": 1}


class Page(HTMLParser):
    """What a reader sees: headings, links, text; refuses tags that do not nest."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] not in ("style", "title", "desc"):
            self.text += f" {' '.join(data.split())}" if data.strip() else ""


@pytest.fixture
def document() -> dict[str, Any]:
    """Return figures with long, foreign and hostile SKU names in every section."""
    found: dict[str, Any] = json.loads((HERE / "report_document.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def pictures(patterns: Path) -> Pictures:
    """Return pictures for every section, one of them missing."""
    query, view = patterns / "test" / "sku-0" / "4.png", patterns / "train" / "sku-1" / "0.png"
    failures = [
        Failure(query, NASTY, "sku-1", 0.91, view, query, 0.88),
        Failure(query, "sku-0", "sku-1", 0.81, patterns / "gone.png", None, None),
    ]
    return Pictures(
        failures,
        [(NASTY, "sku-1", 1700, query, view)],
        [(NASTY, 12, 0.25, [query, view])],
        [(query, view, "byte for byte")],
        examples(read_image(query), ["blur"]),
    )


def written(tmp_path: Path, document: dict[str, Any], pictures: Pictures | None = None) -> Page:
    path = tmp_path / "report.html"
    write_report(path, document, pictures or Pictures())
    return Page(path)


def test_the_answer_stands_first(tmp_path: Path, document: dict[str, Any], pictures: Pictures) -> None:
    page = written(tmp_path, document, pictures)
    first = page.text[: page.text.index("What to do next")]
    for said in ("87.9 %", "84.4 to 91.0 %", "+24.1 points", "untouched encoder : 63.8 % (58.6 to 68.5 %)"):
        assert said.replace(" :", ":") in first.replace(" :", ":"), said
    assert "On SKUs never trained on: 71.2 % (66.2 to 75.7 %) , untouched encoder 65.0 %" in first


def test_every_section_is_there_and_linked(tmp_path: Path, document: dict[str, Any], pictures: Pictures) -> None:
    page = written(tmp_path, document, pictures)
    sections = ["The answer", "What to do next", "Accuracy", "Protocols", "Trusting an answer", "Robustness"]
    sections += ["Confusions", "Look-alikes", "Worst SKUs", "Failures", "All SKUs", "Leaks", "The data"]
    assert page.headings == sections
    ids = [value for name, value in page.attributes if name == "id"]
    links = [value for name, value in page.attributes if name == "href" and value.startswith("#")]
    assert links == [f"#{one}" for one in ids[1:]] and len(set(ids)) == len(ids) == 13


def test_names_never_become_markup(tmp_path: Path, document: dict[str, Any], pictures: Pictures) -> None:
    page = written(tmp_path, document, pictures)
    assert not {"script", "iframe", "object", "i"} & set(page.tags)
    assert page.text.count(NASTY) >= 7 and "test/<i>Milk</i>/x.jpg" in page.text


def test_nothing_leaves_the_page(tmp_path: Path, document: dict[str, Any], pictures: Pictures) -> None:
    page = written(tmp_path, document, pictures)
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert addresses and all(value.startswith(("data:", "#")) for value in addresses)
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in raw and "@import" not in raw and "http" not in raw.replace("http-equiv", "")


def test_failures_show_query_answer_and_right_view(tmp_path: Path, pictures: Pictures) -> None:
    page = written(tmp_path, BARE, Pictures(failures=pictures.failures))
    shown = page.text[page.text.index("Wrong answers") :]
    for said in ("query", NASTY, "answer 0.910 sku-1", "right 0.880", "gone.png", "no view of this SKU in the gallery"):
        assert said in shown, said
    assert page.tags.count("img") == 4


def test_one_sku_and_nothing_wrong(tmp_path: Path) -> None:
    document = {**BARE, "per_sku": {"only": {"queries": 1, "top1": 1.0}}, "confused": [], "protocols": [], "leaks": 0}
    page = written(tmp_path, document)
    assert page.headings == ["The answer", "What to do next", "Accuracy", "All SKUs"]
    assert "100.0 %" in page.text and "1 query against 1 view of 1 SKU" in page.text
    assert "No figure here asks for anything." in page.text


def test_missing_and_empty_figures_are_no_error_and_no_nan(tmp_path: Path) -> None:
    empty: dict[str, Any] = {"map_at_r": None, "mrr": float("nan"), "open_set": {"far": None}, "skipped": ["x: y"]}
    hollow: dict[str, Any] = {"coverage": {"coverage": [], "accuracy": []}, "robustness": {"kinds": {"blur": []}}}
    hollow["calibration"] = {"bins": []}
    for document in ({}, {**BARE, **empty, **hollow}, {"topk": {"1": None}, "baseline": {}}):
        page = written(tmp_path, document)
        assert page.headings[:2] == ["The answer", "What to do next"] and "nan" not in page.text.lower()


def test_every_section_alone(tmp_path: Path, document: dict[str, Any]) -> None:
    for key in document:
        assert "The answer" in written(tmp_path, {**BARE, key: document[key]}).headings, key


def test_confusions_without_pictures_are_a_table(tmp_path: Path, document: dict[str, Any]) -> None:
    page = written(tmp_path, {**BARE, "confused": document["confused"]})
    assert "Confusions" in page.headings and "img" not in page.tags


def test_a_measured_comparison_names_the_models(tmp_path: Path, document: dict[str, Any]) -> None:
    text = written(tmp_path, document).text
    assert "+24.1 points (+19.7 to +28.8); 643 gained, 44 lost; p < 0.001" in text and "this model is better" in text


def confused(queries: int) -> dict[str, Any]:
    return {"shown": "a", "answered": "b", "queries": queries}


def spoken(document: dict[str, Any]) -> str:
    return " | ".join(f"{one.action} {one.figure}" for one in advise(document))


def test_no_advice_without_a_figure() -> None:
    assert advise({}) == [] and advise(BARE) == []


def test_advice_names_the_figure_behind_it(document: dict[str, Any]) -> None:
    said = spoken(document)
    for figure in (
        "3 queries found to be a copy",
        "1 picture could not be read",
        "2 queries without any gallery view",
        "(0 of 30)",
        "Oat-Milk: 21",
        "From 3 to 10 views per SKU top-1 still rises by +11.0 points",
        "is 41.0 %, -46.9 points",
        "On SKUs never trained on top-1 is 71.2 %, -16.7 points",
        "3.1 % of unknown products were accepted (1.8 to 4.7 %; asked for: 1.0 %)",
        "44.0 % of the crops of known products are accepted",
        "7.0 points above what came true",
        "At stops 2 (strength 2 of 5) top-1 falls from 87.9 % to 72.1 %",
        "first in 87.9 % of the queries, among the first 5 in 98.6 %",
    ):
        assert figure in said, figure
    assert all(any(letter.isdigit() for letter in one.figure) for one in advise(document))


@pytest.mark.parametrize(
    ("part", "silent", "loud", "word"),
    [
        ("leaks", 0, 1, "drop-leaks"),
        ("ci95", {"1": [0.85, 0.94]}, {"1": [0.8, 0.91]}, "interval of top-1"),
        ("confused", [confused(4)], [{**confused(2), "shown": "b", "answered": "a"}, confused(3)], "a and b: 5"),
        ("per_sku", {"a": {"queries": 2, "top1": 0.0}}, {"a": {"queries": 3, "top1": 0.0}}, "labels"),
        ("topk", {"1": 0.9, "5": 0.94}, {"1": 0.9, "5": 0.96}, "5 answers"),
    ],
)
def test_each_rule_keeps_to_its_limit(part: str, silent: object, loud: object, word: str) -> None:
    calm = {"open_set": {"far": 0.0}}
    assert advise({**calm, part: silent}) == []
    assert word in spoken({**calm, part: loud})


def test_a_model_that_is_not_better_is_not_recommended() -> None:
    worse = {"a": "old", "b": "new", "difference": -0.05, "ci95": [-0.08, -0.02]}
    assert "Do not serve new" in spoken({"compare": worse})
    assert "Do not call new better yet" in spoken({"compare": {**worse, "ci95": [-0.08, 0.02]}})
    assert spoken({"compare": {**worse, "difference": 0.05, "ci95": [0.02, 0.08]}}) == ""


def test_a_model_that_forgot_other_products_is_told(document: dict[str, Any]) -> None:
    held = {"name": "held-out SKUs", "topk": {"1": 0.6}, "baseline": {"topk": {"1": 0.65}}}
    assert "untouched encoder 65.0 %" in spoken({"topk": {"1": 0.9}, "open_set": {"far": 0}, "protocols": [held]})


def test_every_corruption_has_a_remedy() -> None:
    assert set(REMEDIES) == set(KINDS)
