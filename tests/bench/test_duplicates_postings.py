"""The postings that the benchmark of duplicates makes up are what their recipes say, and the same for the same seed."""

from __future__ import annotations

import csv
import html
import importlib
import itertools
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.catalogue.postings import read_catalogue
from skumatch.phash import fingerprint

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
titles: Any = importlib.import_module("duplicates_titles")
products: Any = importlib.import_module("duplicates_products")
postings: Any = importlib.import_module("duplicates_postings")
goods: Any = importlib.import_module("duplicates_goods")
synthetic: Any = importlib.import_module("duplicates_synthetic")

COLUMNS = ["posting_id", "image", "image_phash", "title", "label_group"]
SPLITS = ("train", "val", "test")
PACKAGE = "Title: {}\nManufacturer and volume: {}\xa0,\xa0{} \nIngredients: milk\n   fett ca 3 gram \nURL: https://x/{}"
LOOSE = "\ufeffTitle: {} Class 1 \nCountry and volume: {},\xa0{} \nURL: https://x/{}\n"
# name, kind, department, what its page says, photos
CLASSES = (
    (
        "Pink-Lady",
        "Apple",
        "Fruit",
        LOOSE.format("Apple Pink Lady", "Italy", "ca 180g", "apple-Pink-Lady-100144_KG"),
        60,
    ),
    ("Royal-Gala", "Apple", "Fruit", LOOSE.format("Apple Gala", "Chile", "ca 180g", "apple-Gala-Klass-1-100145_KG"), 4),
    ("Anjou", "Pear", "Fruit", LOOSE.format("Pear Anjou", "Chile", "ca 1.05kg", "Paron-Anjou-Klass-1-100146_KG"), 9),
    ("Lemon", "Lemon", "Fruit", LOOSE.format("Lemon", "Spain", "", "Citron-Klass-1-100255117_ST"), 2),
    (
        "Arla-Standard-Milk",
        "Milk",
        "Packages",
        PACKAGE.format("Mjölk 3%", "ARLA KO", "1l", "Mjolk-3procent-101183_ST"),
        30,
    ),
    (
        "Arla-Medium-Fat-Milk",
        "Milk",
        "Packages",
        PACKAGE.format("Skimmed milk 1,5%", "ARLA KO", "1l", "Mellanmjolk-1-5procent-100183962_ST"),
        20,
    ),
    ("Garant-Milk", "Milk", "Packages", PACKAGE.format("Mjölk", "GARANT EKO", "3dl", "Mjolk-100183_ST"), 20),
    ("God-Morgon-Juice", "Juice", "Packages", PACKAGE.format("Juice", "GOD MORGON", "2l", "Juice-100184_ST"), 20),
    ("Bravo-Juice", "Juice", "Packages", PACKAGE.format("Juice", "BRAVO", "2l", "Juice-100185_ST"), 20),
    ("Leek", "Leek", "Vegetables", LOOSE.format("Leek", "Sweden", "ca 300g", "Purjolok-Klass-1-101249333_KG"), 5),
    ("Garlic", "Garlic", "Vegetables", LOOSE.format("Garlic", "China", "ca 50g", "Vitlok-Klass-1-100148_KG"), 5),
    ("Ginger", "Ginger", "Vegetables", LOOSE.format("Ginger", "China", "ca 150g", "Ingefara-Klass-1-100149_KG"), 5),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root laid out as the Grocery Store data set, with small random photos."""
    root = tmp_path_factory.mktemp("data")
    store = root / "grocery-store"
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    rows = ["Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic,Description"]
    for code, (name, kind, department, told, photos) in enumerate(CLASSES):
        folder = store / "pages" / department / name
        folder.mkdir(parents=True)
        spelling = "-" if name == "Leek" else "_"
        (folder / f"{name}{spelling}Information.txt").write_text(told, encoding="utf-8")
        rows.append(f"{name},{code},{kind},0,-,/pages/{department}/{name}/{name}_Description.txt")
        for number in range(photos):
            split = SPLITS[number % 3]
            path = f"{split}/{department}/{name}/{name}_{number:03d}.png"
            (store / path).parent.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(store / path)
            lines[split].append(f"{path}, {code}, 0")
    (store / "classes.csv").write_text("\n".join(rows) + "\n")
    for split in SPLITS:
        (store / f"{split}.txt").write_text("\n".join(lines[split]) + "\n")
    return root


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return postings.make_postings(data, tmp_path_factory.mktemp("out"), 3)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.make_synthetic(folder, 12_000, 5)
    return folder


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def groups_of(made: Any) -> dict[str, Counter[str]]:
    """Return the sizes of the groups of each split."""
    return {split: Counter(row["label_group"] for row in rows_of(getattr(made, split))) for split in SPLITS}


def read_back(amount: str) -> tuple[float, str]:
    """Return number and unit, g or ml, of an amount as it is written."""
    found = re.fullmatch(r"([\d.,]+) ?([A-Za-z]+)", amount)
    assert found, amount
    sizes = {
        "ml": 1,
        "cl": 10,
        "dl": 100,
        "l": 1000,
        "liter": 1000,
        "g": 1,
        "gr": 1,
        "gram": 1,
        "kg": 1000,
        "kilo": 1000,
    }
    unit = found[2].lower()
    return float(found[1].replace(",", ".")) * sizes[unit], "ml" if "l" in unit and unit != "kilo" else "g"


def distance(a: str, b: str) -> int:
    """Return the edits (insert, remove, replace, swap neighbours) between two words, by the textbook's table."""
    far = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            far[i, j] = min(far[i - 1, j] + 1, far[i, j - 1] + 1, far[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                far[i, j] = min(far[i, j], far[i - 2, j - 2] + 1)
    return far[len(a), len(b)]


def untelling(entries: Any, product: Any, made: list[Any], rng: random.Random) -> float:
    """Return the share of names of ``product`` all of whose words fit another product of its kind, or anything."""
    entry = {one.name: one for one in entries}
    words = {
        one.name: set(" ".join([*one.names[0], *one.names[1], *one.kind, one.brand]).casefold().split()) for one in made
    }
    siblings = [words[name] for name in words if name != product.name and entry[name].kind == entry[product.name].kind]
    anything = set(" ".join(sum(products.DEPARTMENTS[entry[product.name].department], ())).casefold().split())
    said = [set(" ".join(titles.name_words(product, i % 2, rng)).casefold().split()) for i in range(200)]
    return sum(any(one <= known for known in [anything, *siblings]) for one in said) / len(said)


def test_the_same_seed_gives_the_same_postings(data: Path, made: Any, tmp_path: Path) -> None:
    again, other = postings.make_postings(data, tmp_path / "a", 3), postings.make_postings(data, tmp_path / "b", 4)
    for split in SPLITS:
        assert getattr(again, split).read_bytes() == getattr(made, split).read_bytes()
        assert getattr(other, split).read_bytes() != getattr(made, split).read_bytes()


def test_classes_are_disjoint_and_look_alikes_stay_together(made: Any) -> None:
    groups = groups_of(made)
    where = {name: split for split, found in groups.items() for name in found}
    assert sorted(where) == sorted(name for name, *_ in CLASSES)
    assert sum(map(len, groups.values())) == len(CLASSES)
    assert where["Arla-Standard-Milk"] == where["Arla-Medium-Fat-Milk"]
    assert where["Pink-Lady"] == where["Royal-Gala"]


def test_a_group_has_2_to_50_photos_of_its_class_each_once(made: Any) -> None:
    photos = {name: count for name, *_, count in CLASSES}
    for split, found in groups_of(made).items():
        assert all(2 <= count <= min(50, photos[name]) for name, count in found.items())
        rows = rows_of(getattr(made, split))
        assert len({row["image"] for row in rows}) == len(rows)
        assert all(Path(row["image"]).parent.name == row["label_group"] for row in rows)


def test_sizes_are_log_uniform() -> None:
    product = titles.Product("a", "", (("x",), ("x",)), (("x",), ("x",)), ("x", "x"), None, ("", ""), True)
    photos = [f"{i}.jpg" for i in range(80)]
    sizes = [len(postings._group(product, photos, seed)) for seed in range(600)]
    assert (min(sizes), max(sizes)) == (2, 50)
    assert 8 <= np.median(sizes) <= 12  # the root of 2 * 51 is 10.1
    assert {len(postings._group(product, photos[:7], seed)) for seed in range(100)} == set(range(2, 8))


def test_a_catalogue_reader_takes_them(made: Any) -> None:
    ids = []
    for split in SPLITS:
        file = getattr(made, split)
        assert list(rows_of(file)[0]) == COLUMNS
        read = read_catalogue(file, images=made.images)
        assert read.hashed.all() and read.groups is not None
        for place in (0, len(read) - 1):
            picture = read.picture(place)
            assert picture is not None and fingerprint(picture).bits == int(read.hashes[place])
        assert [row["title"] for row in rows_of(file)] == read.titles
        ids += read.ids
    assert len(set(ids)) == len(ids)


def test_neither_order_nor_ids_tell_the_group(made: Any) -> None:
    rows = [row for split in SPLITS for row in rows_of(getattr(made, split))]
    for key in (None, "posting_id"):
        order = rows if key is None else sorted(rows, key=lambda row: row["posting_id"])
        together = sum(a["label_group"] == b["label_group"] for a, b in itertools.pairwise(order))
        assert together < len(rows) / 2  # all but 11 if they stood in order


def test_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="grocery-store"):
        postings.make_postings(tmp_path, tmp_path / "out", 0)


def test_what_the_pages_say_is_understood(data: Path) -> None:
    found = {one.name: one for one in products.products_of(products.read_entries(data / "grocery-store"))}
    milk, apple, leek = found["Arla-Medium-Fat-Milk"], found["Pink-Lady"], found["Leek"]
    assert (milk.brand, milk.amount, milk.country, milk.loose) == ("Arla", (1000.0, "ml"), ("", ""), False)
    assert milk.names == (("Medium Fat Milk", "Skimmed milk 1,5%"), ("Mellanmjölk 1,5%",))
    assert milk.vague == (("Milk", "Arla Milk"), ("mjölk", "Arla mjölk"))
    assert found["Arla-Standard-Milk"].names == (("Standard Milk",), ("Mjölk 3%",))  # its title is Swedish
    assert found["Garant-Milk"].vague == (("Milk",), ("mjölk",))  # the only one of its brand
    assert found["God-Morgon-Juice"].brand == "God Morgon"
    assert apple.names == (("Pink Lady Apple", "Apple Pink Lady"), ("Äpple Pink Lady",))
    assert (apple.amount, apple.country, apple.loose) == ((180.0, "g"), ("Italy", "Italien"), True)
    assert (leek.names, leek.kind) == ((("Leek",), ("Purjolök",)), ("Leek", "Purjolök"))
    assert found["Anjou"].amount == (1050.0, "g")
    assert found["Lemon"].amount is None


@pytest.mark.parametrize(
    "amount", [(1000.0, "ml"), (2000.0, "ml"), (300.0, "ml"), (750.0, "g"), (1050.0, "g"), (50.0, "g")]
)
def test_amounts_keep_their_value_in_any_unit(amount: tuple[float, str]) -> None:
    rng = random.Random(0)
    written = {titles.written_amount(*amount, rng) for _ in range(300)}
    assert len(written) >= 5
    assert {(round(value, 6), unit) for value, unit in map(read_back, written)} == {amount}


def test_a_slip_is_one_edit_behind_the_first_letter() -> None:
    rng = random.Random(0)
    found = {titles.misspelt("kvisttomat", rng) for _ in range(500)}
    assert len(found) > 30
    assert all(word[0] == "k" and distance("kvisttomat", word) <= 1 for word in found)
    assert {"kbisttomat", "kcisttomat", "kvvisttomat", "kisttomat", "kivsttomat"} <= found
    assert {titles.misspelt("vaa", random.Random(seed)) for seed in range(99)} == {"vaa", "vaaa", "va", "vsa"}
    assert all(titles.misspelt(word, rng) for word in ("ål55", "öööö", "xyz", "a&é!") for _ in range(50))


def test_shortened_words_begin_as_they_did() -> None:
    rng = random.Random(0)
    assert {titles.shortened("Yoghurt", rng) for _ in range(50)} == {"Yog.", "Yogh.", "Yghrt"}


def test_titles_are_as_often_so_as_the_recipe_says(data: Path) -> None:
    found = {one.name: one for one in products.products_of(products.read_entries(data / "grocery-store"))}
    rng = random.Random(1)
    written = [titles.write_title(found["Arla-Standard-Milk"], rng) for _ in range(4000)]
    assert all("\n" not in title and title == title.strip() for title in written)

    def share(pattern: str) -> float:
        return sum(bool(re.search(pattern, title)) for title in written) / len(written)

    assert share(r"^$") == pytest.approx(0.02, abs=0.01)
    assert share(r"(?i)\b(1|10|100|1000) ?(l|dl|cl|ml|liter)\b") == pytest.approx(0.98 * 0.6, abs=0.03)
    assert share(r"\\x[0-9a-f]{2}") > 0.01 and share(r"&\w+;|&#\d+;") > 0.01
    assert 0.3 < share(r"(?i)mj.{0,12}lk") < 0.6  # Swedish and not misspelt
    assert len(set(written)) > 3000


def test_entities_and_escapes_can_be_undone() -> None:
    text = "Mjölk & grädde \u2764\ufe0f 3%"
    found = {titles._encoded(text, random.Random(seed)) for seed in range(200)}
    assert len(found) == 3
    escaped = next(one for one in found if "\\x" in one)
    assert escaped.encode("ascii").decode("unicode_escape").encode("latin-1").decode() == text
    assert {html.unescape(one) for one in found - {escaped}} == {text}


@pytest.fixture
def real() -> Path:
    root = os.environ.get("SKUMATCH_TEST_DATA")
    if not root or not (Path(root) / "grocery-store").is_dir():
        pytest.skip("SKUMATCH_TEST_DATA names no data root with grocery-store/")
    return Path(root) / "grocery-store"


def test_the_real_classes_are_dealt_by_department(real: Path) -> None:
    entries = products.read_entries(real)
    assert len(entries) == 81
    kinds = {entry.name: (entry.department, entry.family) for entry in entries}
    for seed in range(30):
        dealt = postings.dealt(entries, seed)
        assert sorted(name for names in dealt.values() for name in names) == sorted(kinds)
        for split, count in (("train", 30), ("val", 16), ("test", 35)):
            assert abs(len(dealt[split]) - count) <= 2
            assert {kinds[name][0] for name in dealt[split]} == {"Fruit", "Packages", "Vegetables"}
            families = Counter(kinds[name] for name in dealt[split])
            assert max(families[kind] for kind in families if kind[0] == "Packages") >= 2
    families_of = [{kinds[name] for name in names} for names in postings.dealt(entries, 0).values()]
    assert sum(map(len, families_of)) == len(set.union(*families_of))


def test_the_real_titles_are_hard_but_fair(real: Path) -> None:
    entries = products.read_entries(real)
    made = products.products_of(entries)
    assert sum(bool(product.brand) for product in made) == 31
    assert all(
        name and not re.search(r"\d{5}|procent|[CK]lass 1", name) for one in made for two in one.names for name in two
    )
    rng = random.Random(0)
    assert 0.15 < np.mean([untelling(entries, product, made, rng) for product in made]) < 0.25


def test_a_made_up_catalogue_is_the_same_for_the_same_seed(catalogue: Path, tmp_path: Path) -> None:
    synthetic.make_synthetic(tmp_path / "again", 12_000, 5)
    synthetic.make_synthetic(tmp_path / "other", 12_000, 6)
    for name in ("postings.csv", "vectors.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (catalogue / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (catalogue / name).read_bytes()


def test_a_made_up_catalogue_is_read_as_any(catalogue: Path) -> None:
    read = read_catalogue(catalogue / "postings.csv")
    assert list(rows_of(catalogue / "postings.csv")[0]) == COLUMNS
    assert len(read) == 12_000 and read.hashed.all() and all(read.titles) and not read.warnings
    assert read.groups is not None
    sizes = np.bincount(read.groups)
    assert sizes.max() <= 50 and 2.7 < sizes.mean() < 3.3
    assert (sizes == 1).mean() == pytest.approx(0.2, abs=0.03)
    assert (sizes >= 10).any()
    together = (read.groups[1:] == read.groups[:-1]).mean()
    assert together < 0.01  # rows do not stand by group


def test_cosines_tell_groups_families_and_others_apart(catalogue: Path) -> None:
    vectors = np.load(catalogue / "vectors.npy")
    assert vectors.dtype == np.float32 and vectors.shape == (12_000, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    groups = read_catalogue(catalogue / "postings.csv").groups
    assert groups is not None
    part = np.argsort(groups, kind="stable")[:3000]  # whole groups
    cosines = (vectors[part] @ vectors[part].T)[np.triu_indices(3000, 1)]
    same = (groups[part][:, None] == groups[part])[np.triu_indices(3000, 1)]
    low, middle, high = np.quantile(cosines[same], [0.01, 0.5, 0.99])
    assert 0.73 < low < 0.8 and 0.85 < middle < 0.91 and 0.93 < high < 0.97
    between = cosines[~same]
    family = between[between > 0.35]
    assert len(family) > 200 and ((family > 0.45) & (family < 0.86)).all()
    assert np.quantile(family, 0.05) < 0.6 and np.quantile(family, 0.95) > 0.73
    others = between[between <= 0.35]
    assert np.abs(others).max() < 0.3 and abs(float(others.mean())) < 0.005


def test_copies_of_a_photo_have_hashes_that_differ_little(catalogue: Path) -> None:
    read = read_catalogue(catalogue / "postings.csv")
    assert read.groups is not None
    order = np.argsort(read.groups, kind="stable")
    left, right = order[:-1], order[1:]
    far = np.bitwise_count(read.hashes[left] ^ read.hashes[right])
    same = read.groups[left] == read.groups[right]
    assert (far[same] <= 6).mean() == pytest.approx(synthetic.COPIED**2, abs=0.03)
    assert (far[~same] > 10).all()
    assert far[~same].mean() == pytest.approx(32, abs=0.5)


def words_of(folder: Path) -> Counter[str]:
    return Counter(word for row in rows_of(folder / "postings.csv") for word in row["title"].split())


def test_the_vocabulary_grows_by_less_than_the_postings(catalogue: Path, tmp_path: Path) -> None:
    synthetic.make_synthetic(tmp_path, 1_200, 5, dim=8)
    small, large = words_of(tmp_path), words_of(catalogue)
    assert 2.5 < len(large) / len(small) < 8  # ten times the postings
    for words, count in ((small, 1_200), (large, 12_000)):
        assert 7 < words.total() / count < 9
    few, many = (set(goods.make_goods(count, np.random.default_rng(0)).words.values()) for count in (10_000, 100_000))
    assert len(few & many) > 0.97 * len(few)
    assert 3.5 < len(many) / len(few) < 6  # 10 ** 0.6 = 4, and more of the rare words come into use


def test_frequencies_of_words_fall_as_a_power(catalogue: Path) -> None:
    made = goods.make_goods(100_000, np.random.default_rng(0))
    _, counts = np.unique(made.own[made.own >= 0], return_counts=True)
    counts = np.sort(counts)[::-1]
    rank = np.array([10, 30, 100, 300, 1000])
    slope = np.polyfit(np.log(rank), np.log(counts[rank]), 1)[0]
    assert -1.2 < slope < -0.8


def test_spellings_are_distinct() -> None:
    numbers = [*range(60_000), *range(3_000_000, 3_030_000)]
    assert len({goods.spelt(number) for number in numbers}) == len(numbers)


@pytest.mark.parametrize("count", [1, 2, 7, 8192, 8193])
def test_any_number_of_postings(tmp_path: Path, count: int) -> None:
    synthetic.make_synthetic(tmp_path, count, 0, dim=4)
    assert len(rows_of(tmp_path / "postings.csv")) == count
    vectors = np.load(tmp_path / "vectors.npy")
    assert vectors.shape == (count, 4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_no_postings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0"):
        synthetic.make_synthetic(tmp_path, 0, 0)
