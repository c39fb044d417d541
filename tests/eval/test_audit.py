"""The label audit: ranking, folders, fixes and manifests, on made-up vectors whose truth is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch.dataset import Dataset, Row
from skumatch.errors import DataError
from skumatch.eval import audit, fixes
from skumatch.eval.audit import Suspect, label_scores, suspects, typical
from skumatch.eval.audit_folders import Pair, Split, same_product, two_products
from skumatch.eval.audit_page import document, examine, write
from skumatch.eval.fixes import Fix
from skumatch.eval.views import Views
from skumatch.readers import open_dataset

DIM, SKUS, EACH = 24, 20, 12


def made(skus: int = SKUS, each: int = EACH, noise: float = 0.6, seed: int = 0) -> Views:
    """Return ``skus`` clusters of ``each`` unit vectors."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(skus, DIM))
    vectors = np.repeat(centres, each, 0) + noise * rng.normal(size=(skus * each, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [Row(Path(f"{sku:02}/{view}.jpg"), f"sku-{sku:02}", "train") for sku in range(skus) for view in range(each)]
    return Views(tuple(rows), vectors.astype(np.float32))


def relabelled(views: Views, names: dict[int, str]) -> Views:
    """Return the same vectors with other labels at some places."""
    rows = [replace(row, sku=names.get(place, row.sku)) for place, row in enumerate(views.rows)]
    return Views(tuple(rows), views.vectors)


def flips(views: Views, share: float, seed: int) -> dict[int, str]:
    """Return another label for a random share of the places."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(views), round(share * len(views)), replace=False)
    return {int(at): views.skus[(views.codes[at] + rng.integers(1, SKUS)) % SKUS] for at in chosen}


def refitted(views: Views, place: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the class-balanced ridge prediction of one crop by really leaving it out (weights as with it)."""
    codes, n = views.codes, len(views)
    weight = n / (len(views.skus) * np.bincount(codes)[codes])
    x = views.vectors.astype(np.float64)
    targets = np.eye(len(views.skus))[codes]
    centre = (weight[:, None] * x).sum(0) / n
    penalty = audit.RIDGE * np.trace(((x - centre) * weight[:, None]).T @ (x - centre)) / DIM
    rest = np.arange(n) != place
    one = np.hstack([x - centre, np.ones((n, 1))])
    a = (one[rest] * weight[rest, None]).T @ one[rest] + np.diag([penalty] * DIM + [0.0])
    solved: np.ndarray[tuple[int], np.dtype[np.float64]] = one[place] @ np.linalg.solve(
        a, (one[rest] * weight[rest, None]).T @ targets[rest]
    )
    return solved


def test_scores_are_those_of_leaving_each_crop_out(monkeypatch: pytest.MonkeyPatch) -> None:
    views = made(5, 6)
    views = relabelled(views, {3: "sku-04", 10: "sku-00", 11: "sku-00"})
    whole = label_scores(views)
    monkeypatch.setattr(audit, "BLOCK", 7 * DIM)
    blocks = label_scores(views)
    for place in range(len(views)):
        fit = refitted(views, place)
        own = views.codes[place]
        others = np.where(np.arange(5) == own, -np.inf, fit)
        assert whole.score[place] == pytest.approx(others.max() - fit[own], abs=1e-5)
        assert whole.proposed[place] == others.argmax()
    assert np.allclose(blocks.score, whole.score) and (blocks.proposed == whole.proposed).all()


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_lead_the_ranking_and_get_their_label_back(seed: int) -> None:
    clean = made()
    wrong = flips(clean, 0.05, seed)
    views = relabelled(clean, wrong)
    top = label_scores(views).ranked()[: len(wrong)]
    assert set(wrong) == set(top.tolist())
    found = suspects(views)
    relabel = {item.row.path: item.proposed for item in found if item.kind == "relabel"}
    right = {clean.rows[at].path: clean.rows[at].sku for at in wrong}
    assert relabel.items() <= right.items()
    assert len(relabel) >= 0.8 * len(wrong)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_a_clean_catalogue_has_nothing_to_relabel() -> None:
    found = examine(made())
    assert not [item for item in found.suspects if item.kind == "relabel"]
    assert not found.pairs and not found.splits


def test_evidence_is_the_nearest_other_crops() -> None:
    views = relabelled(made(), {0: "sku-07"})
    first = suspects(views, most=1)[0]
    similarity = views.vectors @ views.vectors[0]
    similarity[0] = -1
    nearest = np.argsort(-similarity)[: audit.NEIGHBOURS]
    assert first.row.path == Path("00/0.jpg")
    assert [row.path for row, _ in first.neighbours] == [views.rows[i].path for i in nearest]
    assert [near for _, near in first.neighbours] == pytest.approx(similarity[nearest].tolist(), abs=1e-5)
    labels = [views.rows[i].sku for i in nearest]
    assert (first.support, first.agreement) == (labels.count("sku-00") / 10, labels.count("sku-07") / 10)


def test_the_only_picture_of_a_sku_is_never_suspected() -> None:
    views = relabelled(made(), {0: "lonely"})
    assert np.isneginf(label_scores(views).score[0])
    found = examine(views)
    assert found.alone == 1
    assert Path("00/0.jpg") not in {item.row.path for item in found.suspects}


def test_one_sku_or_identical_vectors_give_no_suspects() -> None:
    one = made(1, 5)
    assert suspects(one) == [] and same_product(one) == [] and two_products(one) == []
    same = Views(made(2, 3).rows, np.tile(made(1, 1).vectors, (6, 1)))
    assert np.isfinite(label_scores(same).score).all()
    with pytest.raises(DataError, match="of 1 SKUs"):
        examine(one)
    nothing = Views((), np.empty((0, DIM), np.float32))
    with pytest.raises(DataError, match="0 readable pictures"):
        examine(nothing)


def test_two_folders_of_one_product_are_found_and_not_its_crops_one_by_one() -> None:
    views = relabelled(made(), dict.fromkeys(range(3 * EACH, 4 * EACH, 2), "sku-03 old"))
    pairs = same_product(views)
    assert [{pair.a, pair.b} for pair in pairs] == [{"sku-03", "sku-03 old"}]
    assert pairs[0].mixing > 0.6 and len(pairs[0].a_rows) == len(pairs[0].b_rows) == EACH // 2
    found = examine(views)
    assert not [item for item in found.suspects if {item.row.sku, item.proposed} == {"sku-03", "sku-03 old"}]


def test_a_folder_of_two_products_is_found_with_its_parts() -> None:
    clean = made()
    views = relabelled(clean, dict.fromkeys(range(5 * EACH, 6 * EACH - 4), "sku-03"))
    splits = two_products(views)
    assert [split.sku for split in splits] == ["sku-03"]
    assert {row.path.parent.name for row in splits[0].larger} == {"03"}
    assert {row.path.parent.name for row in splits[0].smaller} == {"05"}


def test_typical_views_are_nearest_to_the_mean() -> None:
    views = made(3, 5)
    for sku, rows in typical(views, 2).items():
        places = [i for i, row in enumerate(views.rows) if row.sku == sku]
        mean = views.vectors[places].mean(axis=0)
        best = sorted(places, key=lambda i: -float(views.vectors[i] @ mean))[:2]
        assert rows == tuple(views.rows[i] for i in best)


def test_the_same_input_gives_the_same_answer() -> None:
    views = relabelled(made(), flips(made(), 0.1, 4))
    first, second = examine(views), examine(views)
    assert document(first) == document(second)


def test_the_page_shows_each_list_and_survives_unreadable_pictures(patterns: Path, tmp_path: Path) -> None:
    rows = open_dataset(patterns).split("train").rows
    clean = made(6, 4)
    views = Views(rows, clean.vectors)
    wrong = relabelled(views, {0: "sku-4"})
    ghost = Views((replace(wrong.rows[0], path=tmp_path / "gone<b>.png"), *wrong.rows[1:]), wrong.vectors)
    found = examine(ghost)
    write(tmp_path / "out", found, {**document(found), "model": "fake", "split": "train"})
    page = (tmp_path / "out" / "index.html").read_text()
    assert "gone&lt;b&gt;.png" in page and "<b>.png" not in page
    assert page.count('<article class="case">') == len(found.suspects) > 0
    assert page.count("None found.") == 2
    assert 'src="data:image/jpeg' in page and "http-equiv" in page
    assert fixes.read_fixes(tmp_path / "out" / "fixes.csv")[0].proposed == "sku-0"


def rows_of(*lines: tuple[str, str, str, str]) -> Dataset:
    """Return a data set of (name, sku, title, shelf) lines."""
    rows = [Row(Path("/shop") / n, sku, "train", title, "", {"shelf": shelf}) for n, sku, title, shelf in lines]
    return Dataset(Path("/shop"), "csv", tuple(rows))


SHOP = rows_of(
    ("1.jpg", "tea", "Green tea", "low"),
    ("2.jpg", "tea", "Green tea", "high"),
    ("3.jpg", "milk", "Milk", "low"),
    ("4.jpg", "milk", "Milk", "high"),
    ("5.jpg", "oat", "Oat drink", "low"),
)


def applied(*lines: Fix) -> list[tuple[str, str, str]]:
    rows, _ = fixes.apply(SHOP, lines, Path("fixes.csv"))
    return [(row.sku, row.title, row.extra["shelf"]) for row in rows]


def test_a_relabelled_picture_takes_what_belongs_to_its_new_sku() -> None:
    after = applied(Fix("/shop/2.jpg", "tea", "milk", "relabel"))
    assert after[1] == ("milk", "Milk", "high")
    assert [after[i] for i in (0, 2, 3, 4)] == applied()[:1] + applied()[2:]


def test_merges_move_all_pictures_also_in_a_chain_and_relabelled_ones() -> None:
    fixed = (
        Fix("/shop/5.jpg", "oat", "tea", "relabel"),
        Fix("", "tea", "milk", "merge"),
        Fix("", "milk", "oat", "merge"),
    )
    assert {sku for sku, _, _ in applied(*fixed)} == {"oat"}
    _, changed = fixes.apply(SHOP, fixed, Path("fixes.csv"))
    assert dict(changed) == {"merge": 4, "relabel": 1}


def test_a_split_makes_a_new_sku_and_a_look_changes_nothing() -> None:
    after = applied(Fix("/shop/2.jpg", "tea", "tea (2)", "split"), Fix("/shop/3.jpg", "milk", "tea", "look"))
    assert [sku for sku, _, _ in after] == ["tea", "tea (2)", "milk", "milk", "oat"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["/shop/9.jpg,tea,milk,relabel"], "line 2, names /shop/9.jpg, which the data set lacks"),
        (["/shop/1.jpg,milk,tea,relabel"], "line 2, says that /shop/1.jpg is 'milk', but its label is 'tea'"),
        (
            ["/shop/1.jpg,tea,milk,relabel", "/shop/1.jpg,tea,oat,split"],
            "line 3, names /shop/1.jpg again, after line 2",
        ),
        (["/shop/1.jpg,tea,,relabel"], "line 2, has an empty proposed_sku"),
        (["/shop/1.jpg,tea,tea,relabel"], "line 2, proposes the SKU that it has"),
        ([",tea,milk,relabel"], "line 2, is a relabel without a path"),
        (["/shop/1.jpg,tea,milk,rename"], "line 2, has the kind 'rename'"),
        ([",teas,milk,merge"], "line 2, merges 'teas', which the data set lacks - nearest: tea"),
        ([",tea,milk,merge", ",tea,oat,merge"], "line 3, merges 'tea' again, after line 2"),
        ([",tea,milk,merge", ",milk,tea,merge"], "line 3, merges 'milk' in a circle"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: Sequence[str], said: str) -> None:
    file = tmp_path / "fixes.csv"
    file.write_text("\n".join(["path,sku,proposed_sku,kind", *lines]) + "\n")
    with pytest.raises(DataError) as caught:
        fixes.apply(SHOP, fixes.read_fixes(file), file)
    assert said in str(caught.value)


def test_fixes_survive_the_file_also_from_a_spreadsheet(tmp_path: Path) -> None:
    a, b = (tuple(SHOP.rows[i] for i in places) for places in ((0, 1), (2, 3)))
    found = Suspect(SHOP.rows[4], "milk", 0.5, 0.0, 1.0, ((SHOP.rows[2], 0.9),))
    proposed = fixes.proposals(
        [found], [Pair("tea", "milk", 0.8, 0.9, a, b)], [Split("tea", 0.3, 5.0, 0.5, a[:1], a[1:])]
    )
    fixes.write_fixes(tmp_path / "fixes.csv", proposed)
    back = fixes.read_fixes(tmp_path / "fixes.csv")
    assert [(f.path, f.sku, f.proposed, f.kind) for f in back] == [
        ("/shop/5.jpg", "oat", "milk", "relabel"),
        ("", "milk", "tea", "merge"),
        ("/shop/2.jpg", "tea", "tea (2)", "split"),
    ]
    assert [f.line for f in back] == [2, 3, 4]
    text = (tmp_path / "fixes.csv").read_text().replace(",", ";")
    (tmp_path / "excel.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert fixes.read_fixes(tmp_path / "excel.csv") == back


def test_a_picture_to_relabel_is_not_split_as_well() -> None:
    found = Suspect(SHOP.rows[1], "milk", 0.5, 0.0, 1.0, ((SHOP.rows[2], 0.9),))
    proposed = fixes.proposals([found], [], [Split("tea", 0.3, 5.0, 0.5, SHOP.rows[:1], SHOP.rows[1:2])])
    assert [fix.kind for fix in proposed] == ["relabel"]


def test_the_new_manifest_reads_back_as_the_same_rows(patterns: Path, tmp_path: Path) -> None:
    rows = [
        replace(row, title="Te, \u8336", group='a "b"', extra={"brand": "Acme", "n": str(number)})
        for number, row in enumerate(open_dataset(patterns).rows)
    ]
    target = tmp_path / "deep" / "new.csv"
    fixes.write_manifest(target, rows)
    assert list(open_dataset(target).rows) == rows
    with pytest.raises(DataError, match="exists already"):
        fixes.write_manifest(target, rows)
    with pytest.raises(DataError, match="does not end in"):
        fixes.write_manifest(tmp_path / "new.parquet", rows)


def test_paths_beside_the_manifest_are_written_relative(tmp_path: Path) -> None:
    name = b"\xff.jpg".decode("utf-8", "surrogateescape")
    near, far = Row(tmp_path / "shop" / name, "tea", "train"), Row(Path("/elsewhere/2.jpg"), "tea", "test")
    fixes.write_manifest(tmp_path / "new.csv", [near, far])
    lines = (tmp_path / "new.csv").read_bytes().splitlines()
    assert lines[1:] == [b"shop/\xff.jpg,tea,train,,", b"/elsewhere/2.jpg,tea,test,,"]
    assert [row.path for row in open_dataset(tmp_path / "new.csv")] == [near.path, far.path]


def test_ranks_hold_for_small_folders() -> None:
    found = total = 0
    for seed, each in itertools.product(range(3), (3, 4)):
        clean = made(SKUS, each, seed=seed)
        wrong = flips(clean, 0.05, seed)
        top = label_scores(relabelled(clean, wrong)).ranked()[: round(0.1 * len(clean))]
        found, total = found + len(set(wrong) & set(top.tolist())), total + len(wrong)
    assert found / total >= 0.8
