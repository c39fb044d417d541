"""Presets: trials that reproduce the splits under which results on public data sets are published.

A preset takes a data set as its authors distribute it and says which pictures are reference views and which are
queries; each function's docstring gives the source and the published sizes, and which of them could not be verified.
It opens no picture and measures nothing.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from skumatch.dataset import Dataset, Row
from skumatch.errors import ConfigError, DataError, nearest
from skumatch.eval.trial import Trial
from skumatch.readers_catalogue import catalogue_rows
from skumatch.readers_common import shown

VIEWS_PER_SIDE = 5  # of rp2k-clip


@dataclass(frozen=True)
class Sizes:
    """Published numbers of reference views, queries, and SKUs with reference views; 0 where none was verified."""

    gallery: int = 0
    queries: int = 0
    skus: int = 0


@dataclass(frozen=True)
class Preset:
    """A published protocol: the data ``format`` that it needs, where it is published, its sizes, how it is built."""

    name: str
    format: str
    source: str
    build: Callable[[Dataset, int], Trial]
    sizes: Sizes = Sizes()

    @property
    def about(self) -> str:
        """What the preset does, in full: source, sizes, and what is not verified."""
        return inspect.getdoc(self.build) or ""

    @property
    def summary(self) -> str:
        """The first line of ``about``."""
        return self.about.partition("\n")[0]


def preset(name: str, dataset: Dataset, seed: int = 0) -> Trial:
    """Return the trial that the preset ``name`` makes of ``dataset``.

    ``seed`` decides where a preset draws; the same seed draws the same views. The trial's note says so where the sizes
    differ from the published ones, and how many queries show a SKU without a reference view. Raises ConfigError for an
    unknown preset or a data set of another format, DataError when a side has no pictures.
    """
    chosen = PRESETS.get(name)
    if chosen is None:
        near = nearest(name, list(PRESETS), n=1)
        hint = f"did you mean {near}? " if near else ""
        raise ConfigError(f"unknown preset '{name}'", f"{hint}choose {', '.join(PRESETS)}")
    if dataset.format != chosen.format:
        fitting = [other.name for other in PRESETS.values() if other.format == dataset.format]
        raise ConfigError(
            f"preset {name} needs a data set of format {chosen.format}, and {shown(dataset.root)} is of format "
            f"{dataset.format}",
            f"presets for it: {', '.join(fitting) or 'none'}",
        )
    trial = chosen.build(dataset, seed)
    return replace(trial, note="; ".join(part for part in (trial.note, *_remarks(trial, chosen.sizes)) if part))


def rp2k(dataset: Dataset, seed: int) -> Trial:
    """RP2K as published: its train pictures as gallery, its test pictures as queries.

    Source: Peng, Xiao and Li, "RP2K: A Large-Scale Retail Product Dataset for Fine-Grained Image Classification",
    2020, https://arxiv.org/abs/2006.12634. Sizes: "350,000 images of more than 2000 products" in the abstract of its
    first version, "more than 500,000 images" of 2,000 products in the fifth; code published for the distributed copy
    trains 2,388 classes. The number of pictures per split could not be verified. The paper trains a classifier; here
    the nearest reference view answers.
    """
    return Trial("rp2k", dataset.split("train").rows, dataset.split("test").rows)


def rp2k_clip(dataset: Dataset, seed: int) -> Trial:
    """RP2K with about five views per class on each side, drawn by seed, after the published 41 / 50 / 89 top-1.

    Source: not certain. Known is: RP2K, about five views per class on each side, top-1 of 41 (CLIP), 50 (FashionCLIP)
    and 89 (a fine-tuned model). Likely it is a company's post, N. Rai, "SOTA SKU Image Classification for Product
    Matching", 2023, https://www.width.ai/post/sku-image-classification-for-product-matching, on a fine-tuned model
    that outperforms CLIP and FashionCLIP on a retail data set. Only its opening could be read, which gives neither
    figures nor protocol. Assumed, therefore: gallery views are drawn from RP2K's train pictures and queries from its
    test pictures, five of each class (all where a class has fewer); classes that lack a side are left out. Which CLIP
    was meant is not known. A figure near the published ones does not prove the same split. Sizes: at most five views
    per class and side; the published totals are not known.
    """
    gallery, queries = (
        {sku: _draw(rows, dataset, seed) for sku, rows in _by_sku(dataset.split(split).rows).items()}
        for split in ("train", "test")
    )
    both = sorted(set(gallery) & set(queries))
    alone = len(set(gallery) | set(queries)) - len(both)
    return Trial(
        "rp2k-clip",
        tuple(row for sku in both for row in gallery[sku]),
        tuple(row for sku in both for row in queries[sku]),
        note=f"up to {VIEWS_PER_SIDE} views per class and side, drawn with seed {seed}; the published draw is not known"
        + (f"; left out {alone} classes that lack a side" if alone else ""),
    )


def products_10k(dataset: Dataset, seed: int) -> Trial:
    """Products-10K: the pictures of train.csv as gallery, those of its test list as queries.

    Source: Bai, Chen, Yu, Wang and Zhang, "Products-10K: A Large-scale Product Recognition Dataset", 2020,
    https://arxiv.org/abs/2008.10545, data at https://products-10k.github.io. Sizes: the paper speaks of 10,000
    products; the training list has 9,691 of them in about 141,000 pictures (141,931 and a test list of 55,376 are
    commonly cited and could not be verified). The published test differs: it scores a trained classifier, and the
    challenge's list, test_kaggletest.csv, is divided into a public and a private part by its column Usage. Here both
    parts are queries, and the nearest training picture answers.
    """
    return Trial("products-10k", dataset.split("train").rows, dataset.split("test").rows)


def grocery_store(dataset: Dataset, seed: int) -> Trial:
    """Grocery Store data set: its train photos as gallery, its test photos as queries; val is not used.

    Source: Klasson, Zhang and Kjellstrom, "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
    Labels", WACV 2019, https://github.com/marcusklasson/GroceryStoreDataset. Sizes: 81 classes; train 2,640, val 296
    and test 2,485 photos, counted in its lists. The paper trains classifiers; here the nearest reference view answers.
    """
    return Trial("grocery-store", dataset.split("train").rows, dataset.split("test").rows)


def grocery_store_catalogue(dataset: Dataset, seed: int) -> Trial:
    """Grocery Store data set, studio to shop: one catalogue picture per class as gallery, its test photos as queries.

    Source: as ``grocery_store``; the paper calls the catalogue pictures iconic images. Sizes: 81 and 2,485. The data
    set publishes the pictures and no retrieval protocol for them, so there is no published split to differ from.
    """
    return Trial("grocery-store-catalogue", catalogue_rows(dataset), dataset.split("test").rows)


def catalogue(dataset: Dataset, seed: int) -> Trial:
    """Any manifest, studio to shop: rows of split "catalogue" as gallery, rows of split "test" as queries.

    Source: none; the same question as ``grocery_store_catalogue`` put to your own pictures. Sizes: those of the
    manifest.
    """
    return Trial("catalogue", catalogue_rows(dataset), dataset.split("test").rows)


def grozi_120(dataset: Dataset, seed: int) -> Trial:
    """GroZi-120: web pictures (in vitro) as gallery, crops from shop videos (in situ) as queries.

    Source: Merler, Galleguillos and Belongie, "Recognizing Groceries in situ Using in vitro Training Data", 2007,
    http://csetechrep.ucsd.edu/Dienst/UI/2.0/Describe/ncstrl.ucsd_cse/CS2007-0877. Sizes: 120 products and 29 videos,
    by the README of the data; 676 pictures in vitro and 11,194 in situ are commonly cited and could not be verified.
    Frames of one video are never on both sides: a query from a video that the gallery has a frame of is left out.
    """
    gallery = dataset.split("gallery").rows
    queries, dropped = _other_videos(gallery, dataset.split("test").rows)
    note = f"left out {dropped} queries from videos of the gallery" if dropped else ""
    return Trial("grozi-120", gallery, queries, note=note)


def grozi_120_video(dataset: Dataset, seed: int) -> Trial:
    """GroZi-120, shop to shop: crops from half of the videos as gallery, crops from the other half as queries.

    Source: as ``grozi_120``, which publishes no such split: whole videos are drawn by seed, so that frames of one
    video are never on both sides. Crops of a product that the gallery's videos do not show are left out. Sizes: they
    depend on the seed.
    """
    crops = [row for row in dataset.split("test").rows if row.group]
    videos = sorted({row.group for row in crops}, key=lambda name: _rank(seed, name))
    if len(videos) < 2:
        raise DataError(
            f"{shown(dataset.root)} has crops from {len(videos)} video", "two are needed, one for each side"
        )
    chosen = set(videos[: (len(videos) + 1) // 2])
    gallery = tuple(row for row in crops if row.group in chosen)
    skus = {row.sku for row in gallery}
    others = [row for row in crops if row.group not in chosen]
    queries = tuple(row for row in others if row.sku in skus)
    note = f"not a published split: {len(chosen)} of {len(videos)} videos are the gallery, drawn with seed {seed}"
    left = f"; left out {len(others) - len(queries)} crops of products that they do not show"
    return Trial("grozi-120-video", gallery, queries, note=note + left)


def sop(dataset: Dataset, seed: int) -> Trial:
    """Stanford Online Products: every test picture queries all other test pictures.

    Source: Song, Xiang, Jegelka and Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR
    2016, https://cvgl.stanford.edu/projects/lifted_struct/. Sizes: train 59,551 pictures of 11,318 classes, test
    60,502 of 11,316 others; the training pictures take no part.
    """
    rows = dataset.split("test").rows
    return Trial("sop", rows, rows, leave_one_out=True)


def in_shop(dataset: Dataset, seed: int) -> Trial:
    """In-shop Clothes Retrieval: the pictures marked query against those marked gallery.

    Source: Liu, Luo, Qiu, Wang and Tang, "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
    Annotations", CVPR 2016, https://liuziwei7.github.io/projects/DeepFashion.html. Sizes: 52,712 pictures, of which
    25,882 train, 14,218 query and 12,612 gallery; the gallery shows 3,985 items, none of them in train.
    """
    return Trial("in-shop", dataset.split("gallery").rows, dataset.split("test").rows)


_GROCERY = "Klasson et al., WACV 2019"
_GROZI = "Merler et al., 2007"
PRESETS: dict[str, Preset] = {
    one.name: one
    for one in (
        Preset("rp2k", "rp2k", "Peng et al., 2020", rp2k, Sizes(skus=2388)),
        Preset("rp2k-clip", "rp2k", "Rai, 2023 (likely)", rp2k_clip),
        Preset("products-10k", "products-10k", "Bai et al., 2020", products_10k, Sizes(skus=9691)),
        Preset("grocery-store", "grocery-store", _GROCERY, grocery_store, Sizes(2640, 2485, 81)),
        Preset("grocery-store-catalogue", "grocery-store", _GROCERY, grocery_store_catalogue, Sizes(81, 2485, 81)),
        Preset("catalogue", "csv", "your own", catalogue),
        Preset("grozi-120", "grozi-120", _GROZI, grozi_120, Sizes(skus=120)),
        Preset("grozi-120-video", "grozi-120", _GROZI, grozi_120_video),
        Preset("sop", "sop", "Song et al., CVPR 2016", sop, Sizes(60502, 60502, 11316)),
        Preset("in-shop", "in-shop", "Liu et al., CVPR 2016", in_shop, Sizes(12612, 14218, 3985)),
    )
}


def _remarks(trial: Trial, sizes: Sizes) -> list[str]:
    """Return what differs from the published sizes, and how many queries cannot be answered."""
    skus = {row.sku for row in trial.gallery}
    pairs = (
        ("reference views", sizes.gallery, len(trial.gallery)),
        ("queries", sizes.queries, len(trial.queries)),
        ("SKUs", sizes.skus, len(skus)),
    )
    differ = [f"{here:,} {what} where {known:,} are published" for what, known, here in pairs if known not in (0, here)]
    lost = sum(row.sku not in skus for row in trial.queries)
    if trial.leave_one_out:
        lost = sum(len(rows) == 1 for rows in _by_sku(trial.queries).values())
    unanswerable = [f"{lost:,} queries show a SKU without another reference view"] if lost else []
    return [*differ, *unanswerable]


def _by_sku(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.sku].append(row)
    return dict(found)


def _draw(rows: Sequence[Row], dataset: Dataset, seed: int) -> list[Row]:
    """Return up to five of ``rows``; one class's draw depends neither on other classes nor on where the data lies."""
    return sorted(rows, key=lambda row: _rank(seed, row.path.relative_to(dataset.root).as_posix()))[:VIEWS_PER_SIDE]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _other_videos(gallery: Sequence[Row], queries: Sequence[Row]) -> tuple[tuple[Row, ...], int]:
    """Return the queries from no video of the gallery, and how many were left out."""
    videos = {row.group for row in gallery if row.group}
    kept = tuple(row for row in queries if row.group not in videos)
    return kept, len(queries) - len(kept)
