"""``skumatch`` with a gallery in Milvus Lite: what test_gallery.py does not ask of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from skumatch.milvus import address, client

Skumatch = Callable[..., Any]
CPU = ("--device", "cpu")
FILE = ("--gallery", "milvus+file:./g.db")


@pytest.fixture
def shop(workspace: Path, skumatch: Skumatch) -> Iterator[Path]:
    """Return a workspace whose gallery was moved to Milvus Lite."""
    assert skumatch("gallery", "export", "--out", "exported").code == 0
    ran = skumatch("gallery", "import", "exported", *FILE)
    assert (ran.code, ran.out) == (0, "milvus+file:./g.db v000001: 24 views of 6 SKUs\n"), ran.err
    yield workspace
    client.close(address.parse("milvus+file:./g.db"))


def run(skumatch: Skumatch, *words: str) -> str:
    """Run a command on the gallery in Milvus and return what it printed."""
    ran = skumatch(*words, *FILE)
    assert ran.code == 0, ran.err
    return str(ran.out)


def answers(text: str) -> list[tuple[str, int, str]]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [(line["crop"], line["rank"], line["sku"]) for line in lines]


def test_matching_answers_as_from_the_folder(skumatch: Skumatch, shop: Path) -> None:
    words = ("match", "shop/test", "--json", "--topk", "3", *CPU)
    assert answers(run(skumatch, *words)) == answers(skumatch(*words).out)
    page = run(skumatch, "match", "shop/test/sku-1", "--html", "page.html", "--out", "m.csv", *CPU)
    assert page == "" and "sku-1" in (shop / "page.html").read_text()


def test_versions_are_told_compared_and_gone_back_to(skumatch: Skumatch, shop: Path) -> None:
    run(skumatch, "gallery", "update", "sku-2", "--set", "brand=nord")
    run(skumatch, "gallery", "remove", "sku-4")
    lines = json.loads(run(skumatch, "gallery", "log", "--json"))
    assert [(line["version"], line["reason"], line["added"], line["removed"]) for line in lines] == [
        ("v000003", "remove 1 SKU", 0, 4),
        ("v000002", "update facts of 1 SKU", 0, 0),
        ("v000001", "import 24 views", 24, 0),
    ]
    assert run(skumatch, "gallery", "diff", "1", "v3").splitlines() == [
        "views: +0 -4",
        "SKUs added: none",
        "SKUs removed: sku-4",
        "other facts: sku-2",
    ]
    assert run(skumatch, "gallery", "rollback", "1") == "milvus+file:./g.db v000004: 24 views of 6 SKUs\n"
    assert "rollback to v000001" in run(skumatch, "gallery", "log").splitlines()[0]
    assert "brand" not in json.loads(run(skumatch, "gallery", "info", "--json"))["columns"]
    run(skumatch, "gallery", "remove", "sku-5")
    assert run(skumatch, "gallery", "verify").endswith("20 views of 5 SKUs, every byte as written\n")
    assert run(skumatch, "gallery", "prune", "--keep", "1").startswith("removed 4 versions, ")
    assert run(skumatch, "gallery", "verify").endswith("20 views of 5 SKUs, every byte as written\n")


def test_another_index_and_another_model(skumatch: Skumatch, shop: Path) -> None:
    before = answers(run(skumatch, "match", "shop/test", "--json", *CPU))
    assert "hnsw, built by the server" in run(skumatch, "gallery", "index", "--kind", "hnsw")
    facts = json.loads(run(skumatch, "gallery", "info", "--json"))
    assert (facts["index"], facts["index_kind"], facts["consistency"]) == ("hnsw", "hnsw", "strong")
    assert answers(run(skumatch, "match", "shop/test", "--json", *CPU)) == before
    assert "every view is compared" in run(skumatch, "gallery", "index", "--kind", "auto")
    wrong = skumatch("gallery", "index", "--kind", "ivf-rabitq", *FILE)
    assert (wrong.code, len(wrong.errors)) == (2, 1) and "has no ivf-rabitq of its own" in wrong.errors[0]
    assert "nothing to do" in skumatch("gallery", "compact", *FILE).err
    rebuilt = skumatch("gallery", "rebuild", "--model", "timm:test_vit", *CPU, *FILE)
    assert rebuilt.code == 2 and "weights" in rebuilt.err  # none are there to be had offline
    assert answers(run(skumatch, "match", "shop/test", "--json", *CPU)) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gallery", "info", "--gallery", "milvus+file:./none.db"), "there is no gallery in milvus+file:./none.db - "),
        (("gallery", "info", "--gallery", "milvus+file:./g.sqlite"), "does not end in .db"),
        (("gallery", "list", "--gallery", "milvus://host"), "is no address of a gallery in Milvus"),
        (("match", "shop/test", "--gallery", "milvus://u:p@host/x", *CPU), "is no address of a gallery in Milvus"),
        (
            ("gallery", "log", "--gallery", "milvus://127.0.0.1:1/shop"),
            "milvus://127.0.0.1:1/shop cannot be reached - ",
        ),
        (("gallery", "diff", "1", "7", *FILE), "has no version '7' - its versions are: v000001"),
        (("gallery", "remove", "sku-99", *FILE), "has no SKU 'sku-99' - nearest names are: sku-"),
        (("match", "shop/test", "--where", "brand=x", *CPU, *FILE), "the SKU table has no column 'brand'"),
    ],
)
def test_what_is_wrong_is_one_line(
    skumatch: Skumatch, shop: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("SKUMATCH_MILVUS_TIMEOUT", "1")
    ran = skumatch(*words)
    assert (ran.code, len(ran.errors)) == (2, 1) and said in ran.errors[0]
    assert not (shop / "none.db").exists()


def test_a_package_that_is_not_installed_is_named(
    skumatch: Skumatch, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.close(address.parse("milvus+file:./g.db"))
    lacking = ""
    monkeypatch.setattr("skumatch.milvus.client.find_spec", lambda name: None if name == lacking else find_spec(name))
    for lacking in ("milvus_lite", "pymilvus"):  # noqa: B007  # the function above looks at it
        ran = skumatch("gallery", "info", *FILE)
        assert ran.code == 2 and 'run `pip install "skumatch[milvus-lite]"`' in ran.errors[0]


def test_a_file_that_another_process_has_open(skumatch: Skumatch, shop: Path) -> None:
    from skumatch import artefact

    client.close(address.parse("milvus+file:./g.db"))
    with (shop / "g.db" / "LOCK").open("w") as stream:
        assert artefact.take_lock(stream.fileno(), shop / "g.db" / "LOCK")
        ran = skumatch("gallery", "info", *FILE)
    assert ran.code == 2 and "milvus+file:./g.db is open in another process - " in ran.errors[0]
