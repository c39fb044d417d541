"""``skumatch gallery``: log, diff, rollback, prune, verify, compact, index, rebuild."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skumatch.gallery import open_gallery
from skumatch.gallery_changes import remove_views

Skumatch = Callable[..., Any]
CPU = ("--device", "cpu")


@pytest.fixture
def changed(skumatch: Skumatch, workspace: Path) -> Path:
    """Return a workspace whose gallery has four versions: built, added to, told facts, and less a SKU."""
    added = skumatch("gallery", "add", "fresh", "shop/test/sku-5", "--title", "Fresh", *CPU)
    assert added.code == 0, added.err
    assert skumatch("gallery", "update", "sku-2", "--set", "brand=nord").code == 0
    assert skumatch("gallery", "remove", "sku-4").code == 0
    return workspace


def held(skumatch: Skumatch) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(skumatch("gallery", "info", "--json").out)
    return found


def answers(skumatch: Skumatch, *crops: str) -> list[tuple[str, int, str, float]]:
    lines = [json.loads(line) for line in skumatch("match", *crops, "--json", *CPU).out.splitlines()]
    return [(line["crop"], line["rank"], line["sku"], round(line["score"], 4)) for line in lines]


def test_the_log_tells_what_happened(skumatch: Skumatch, changed: Path) -> None:
    lines = json.loads(skumatch("gallery", "log", "--json").out)
    assert [line["version"] for line in lines] == ["v000004", "v000003", "v000002", "v000001"]
    assert [line["reason"] for line in lines] == ["remove 1 SKU", "update facts of 1 SKU", "add 2 views", "build"]
    assert [(line["added"], line["removed"], line["current"]) for line in lines] == [
        (0, 4, True),
        (0, 0, False),
        (2, 0, False),
        (24, 0, False),
    ]
    text = skumatch("gallery", "log").out.splitlines()
    assert text[0].startswith("* v000004  ") and "22 views of 6 SKUs " in text[0] and "+0 -4 " in text[0]
    assert [line[0] for line in text[1:]] == [" "] * 3 and len({line.index("views of") for line in text}) == 1
    (changed / "gallery/v000002/gallery.json").write_text("{}")
    broken = skumatch("gallery", "log")
    assert broken.code == 0 and "  v000002  broken: " in broken.out and len(broken.out.splitlines()) == 4


def test_a_difference_names_what_came_and_went(skumatch: Skumatch, changed: Path) -> None:
    assert skumatch("gallery", "diff", "1", "v4").out.splitlines() == [
        "views: +2 -4",
        "SKUs added: fresh",
        "SKUs removed: sku-4",
        "other facts: sku-2",
    ]
    back = json.loads(skumatch("gallery", "diff", "v000004", "1", "--json").out)
    assert (back["skus_added"], back["skus_removed"], back["facts"]) == (["sku-4"], ["fresh"], ["sku-2"])
    assert (back["views_added"], back["views_removed"], back["model"]) == ([16, 17, 18, 19], [24, 25], False)
    assert skumatch("gallery", "diff", "4", "4").out.splitlines()[1:] == [
        "SKUs added: none",
        "SKUs removed: none",
        "other facts: none",
    ]


def test_going_back_and_forth(skumatch: Skumatch, changed: Path) -> None:
    assert skumatch("gallery", "rollback").out.endswith("v000003: 26 views of 7 SKUs\n")
    assert skumatch("gallery", "rollback", "1").out.endswith("v000001: 24 views of 6 SKUs\n")
    orphan = skumatch("gallery", "rollback")
    assert orphan.code == 2 and "v000001 has no version before it" in orphan.errors[0]
    assert skumatch("gallery", "rollback", "v000004").out.endswith("v000004: 22 views of 6 SKUs\n")
    assert held(skumatch)["version"] == "v000004"


def test_old_versions_are_pruned(skumatch: Skumatch, changed: Path) -> None:
    skumatch("gallery", "rollback", "1")
    assert skumatch("gallery", "prune", "--keep", "2").out.startswith("removed 1 version, ")
    assert [line["version"] for line in json.loads(skumatch("gallery", "log", "--json").out)] == [
        "v000004",
        "v000003",
        "v000001",
    ]
    assert skumatch("gallery", "prune", "--unfinished").out == "removed 0 versions, 0.0 MB\n"
    assert "24 views of 6 SKUs, every byte as written" in skumatch("gallery", "verify").out


def test_verify_reads_every_byte(skumatch: Skumatch, changed: Path) -> None:
    assert [line.split()[1] for line in skumatch("gallery", "verify", "--all").out.splitlines()] == [
        f"v00000{number}:" for number in range(1, 5)
    ]
    manifest = changed / "gallery/v000002/removed.i64"
    manifest.write_bytes(b"12345678")
    assert skumatch("gallery", "verify").code == 0  # of the current version alone
    spoiled = skumatch("gallery", "verify", "--all")
    assert (spoiled.code, spoiled.out) == (2, "") and "v000002/removed.i64 is corrupt" in spoiled.errors[0]
    largest = max((p for p in (changed / "gallery").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    broken = skumatch("gallery", "verify")
    assert broken.code == 2
    assert len(broken.err.splitlines()) == len(broken.errors) == 1
    assert largest.name in broken.errors[0]


def test_compaction_says_what_it_does(skumatch: Skumatch, changed: Path) -> None:
    idle = skumatch("gallery", "compact")
    assert idle.code == 0 and "nothing to do: it is compact" in idle.err and "v000004: 22 views" in idle.out
    full = skumatch("gallery", "compact", "--full")
    assert full.out.endswith("v000005: 22 views of 6 SKUs\n") and "nothing to do" not in full.err
    assert held(skumatch)["segments"] == 1
    worn = remove_views(open_gallery(changed / "gallery"), range(7))
    assert "7 removed views on disk" in skumatch("gallery", "update", "sku-2", "--title", "Two").err
    done = skumatch("gallery", "compact")
    assert f"{len(worn)} views" in done.out and "would make it faster" not in done.err
    assert skumatch("gallery", "compact").out.splitlines() == done.out.splitlines()


def test_watching_goes_on_until_it_is_interrupted(
    skumatch: Skumatch, changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            remove_views(open_gallery(changed / "gallery"), range(10))
        if len(slept) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("skumatch.cli.gallery_versions.time", SimpleNamespace(sleep=sleep))
    ran = skumatch("gallery", "compact", "--watch", "9")
    assert (ran.code, slept) == (130, [9] * 4)
    assert [line.rpartition("/")[2] for line in ran.out.splitlines()] == ["gallery v000006: 12 views of 4 SKUs"]
    assert "nothing to do" not in ran.err


def test_an_index_is_chosen_built_and_measured(skumatch: Skumatch, workspace: Path) -> None:
    before = answers(skumatch, "shop/test")
    built = skumatch("gallery", "index", "--kind", "hnsw", "--seed", "3")
    assert built.code == 0, built.err
    assert built.out.splitlines()[0].startswith("hnsw, effort ") and "recall@1       1.0000" in built.out
    facts = held(skumatch)
    assert (facts["index"], facts["index_kind"], facts["figures"]["seed"]) == ("hnsw", "hnsw", 3)
    assert "recall 1, " in skumatch("gallery", "info").out
    assert answers(skumatch, "shop/test") == before and len(before) == 60
    figures = json.loads(skumatch("gallery", "index", "--kind", "ivf-rabitq", "--json").out)
    assert figures["kind"] == "ivf-rabitq" and {**figures, "kind": 0} == {**held(skumatch)["figures"], "kind": 0}
    exact = skumatch("gallery", "index", "--kind", "exact")
    assert exact.out.startswith("every view is compared: answers are exact\n") and "indexing" not in exact.err
    assert (held(skumatch)["index"], held(skumatch)["figures"]) == ("exact", None)


def test_a_rebuild_with_another_model(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch("gallery", "build", *CPU).code == 0  # of the pictures in this folder
    same = skumatch("gallery", "rebuild", *CPU)
    assert same.code == 2 and "is of this model already - name another model" in same.errors[0]
    skumatch("gallery", "index", "--kind", "hnsw")
    skumatch("gallery", "update", "sku-1", "--title", "One")
    shutil.rmtree(workspace / "models")  # back to the untouched encoder
    refused = skumatch("match", "shop/test", *CPU)
    assert refused.code == 2 and "gallery rebuild" in refused.errors[0]
    (workspace / "shop/train/sku-3/0.png").unlink()
    ran = skumatch("gallery", "rebuild", *CPU)
    assert ran.code == 0, ran.err
    assert "the file being gone or changed: 1 view\n" in ran.err and ran.out.endswith(": 24 views of 6 SKUs\n")
    facts = held(skumatch)
    assert (facts["layer"], facts["index"], facts["version"]) == ("features", "hnsw", "v000006")
    found = json.loads(skumatch("match", "shop/train/sku-1/2.png", "--json", "--topk", "1", *CPU).out)
    assert (found["sku"], found["score"]) == ("sku-1", pytest.approx(1, abs=1e-4))
    assert "model: another one, so every vector differs" in skumatch("gallery", "diff", "4", "6").out


def test_views_that_a_rebuild_cannot_read(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch("gallery", "build", *CPU).code == 0  # of the pictures in this folder
    assert skumatch("gallery", "export", "--out", "exported").code == 0
    assert skumatch("gallery", "import", "exported", "--gallery", "bare").code == 0  # without thumbnails
    shutil.rmtree(workspace / "models")
    shutil.rmtree(workspace / "shop/train/sku-0")
    failed = skumatch("gallery", "rebuild", "--gallery", "bare", *CPU)
    assert failed.code == 2 and len(failed.errors) == 1
    assert "4 views can be read neither from file nor from thumbnail (first: view 0 of sku-0, " in failed.errors[0]
    ran = skumatch("gallery", "rebuild", "--gallery", "bare", "--drop", *CPU)
    assert ran.code == 0 and ran.out == "bare v000002: 20 views of 5 SKUs\n"
    assert "went on after 20 views of an interrupted run" in ran.err
    assert "4 views could not be read and were left out" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["log", "--gallery", "nowhere"], "there is no gallery in nowhere"),
        (["diff", "1", "7"], "has no version '7' - its versions are: v000001"),
        (["rollback", "v9"], "has no version 'v9'"),
        (["prune", "--keep", "0"], "--keep"),
        (["prune", "--gallery", "nowhere"], "there is no gallery"),
        (["verify", "--gallery", "nowhere"], "there is no gallery"),
        (["compact", "--gallery", "nowhere"], "there is no gallery"),
        (["compact", "--watch", "-1"], "--watch"),
        (["index", "--kind", "flat"], "unknown index kind 'flat' - choose auto, exact, hnsw, ivf-rabitq"),
        (["index", "--device", "tpu"], "unknown device 'tpu'"),
        (["rebuild", "--gallery", "nowhere"], "there is no gallery"),
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, workspace: Path, arguments: list[str], said: str) -> None:
    ran = skumatch("gallery", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.errors) == len(ran.err.splitlines()) == 1
    assert said in ran.errors[0]
    assert not Path("nowhere").exists()
