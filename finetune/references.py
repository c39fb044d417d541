"""Reference systems that turn the pictures of postings into vectors, so that the ladder of results can be re-measured.

Classifiers of the groups: any encoder, trained with a plain softmax or with ArcFace, on every picture once per epoch
or on every group equally often; beside them the autoencoder (``skumatch.finetune.autoencoder``) that needs no groups.
Training itself is ``skumatch.finetune.run``; this module only says what it is to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np

from skumatch.dataset import Dataset, Row
from skumatch.embed import cores, ordered_batches
from skumatch.errors import ConfigError, DataError, ImageError
from skumatch.finetune.parts import Augment, Objectives, Sampling, Served
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.run import Job, finetune
from skumatch.images import load_pixels
from skumatch.spec import Pixels, Preprocess
from skumatch.towers.build import ModelSource

System = Literal["softmax", "softmax+sampler", "arcface", "arcface+sampler"]
SYSTEMS: Final[tuple[System, ...]] = get_args(System)
EVERY_PICTURE: Final = 1.0  # the exponent of the sampler: every picture once
EVERY_GROUP: Final = 0.0  # every group equally often
BASE: Final = Recipe(
    name="reference",
    epochs=10,
    embedding=512,
    val_views=3,
    # Postings show packs upright and whole: less noise than on shelves.
    augment=Augment(min_scale=0.6, rotation=5, perspective=0.03, colour=0.2, blur=0.1, jpeg=0.1, occlusion=0.1),
)
_HALF: Final = (0.5, 0.5, 0.5)


def reference_recipe(system: System, base: Recipe = BASE) -> Recipe:
    """Return ``base`` with the objective, the sampler and the served layer of ``system``; all else stays.

    "softmax": one linear layer and cross-entropy; "arcface": one prototype per group and the margins of
    ``base.arcface`` (Deng et al. 2019). "+sampler": groups are drawn equally often, with as many pictures to an epoch
    as before; that is what torch's WeightedRandomSampler does with weights of 1 / (pictures of the group), but for
    pictures that repeat only after all of the group have been shown. What is served is the layer that the classifier
    sees. Raises ConfigError for an unknown system.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"there is no reference system '{system}'", f"choose {', '.join(SYSTEMS)}")
    loss, _, sampler = system.partition("+")
    return replace(
        base,
        name=system,
        objectives=Objectives(arcface=float(loss == "arcface"), softmax=float(loss == "softmax")),
        arcface=replace(base.arcface, sub_centres=1),
        softmax=replace(base.softmax, normalised=False),
        sampler=Sampling("weighted", EVERY_GROUP if sampler else EVERY_PICTURE),
        serve=Served("head"),
    )


def grouped_pictures(root: Path, paths: Sequence[Path], groups: Sequence[str]) -> Dataset:
    """Return pictures as a data set to train on whose SKUs are ``groups``, one per path.

    A tenth of the pictures of groups with four and more will validate. Raises DataError where ``paths`` is empty.
    """
    if not paths:
        raise DataError(f"no pictures in {root} to train on", "give postings with pictures")
    return Dataset(root, "postings", tuple(Row(p, group, "train") for p, group in zip(paths, groups, strict=True)))


def train_reference(system: System, dataset: Dataset, source: ModelSource, out: Path, base: Recipe = BASE) -> Path:
    """Train ``system`` from ``source`` on ``dataset``, whose SKUs are the groups; return the model's folder.

    It is a version in the store ``out`` that ``skumatch.encoder.open_encoder`` opens; its vectors are of unit length
    and meant for cosines. Raises SkumatchError as ``skumatch.finetune.run.finetune`` does.
    """
    return finetune(Job(dataset, source, reference_recipe(system, base), out, facts={"reference": system})).folder


def small_pixels(paths: Sequence[Path], size: int) -> Pixels:
    """Return pictures squashed to uint8 (N, 3, ``size``, ``size``), for the autoencoder.

    Raises the ImageError of the first, in order, that cannot be read.
    """
    how = Preprocess(size, _HALF, _HALF, "squash", 1.0, "bilinear")
    found = np.empty((len(paths), 3, size, size), np.uint8)

    def read(place: int) -> ImageError | None:
        try:
            found[place] = load_pixels(paths[place], how)
        except ImageError as error:
            return error
        return None

    for _, errors in ordered_batches(range(len(paths)), read, 64, cores()):
        for error in errors:
            if error is not None:
                raise error
    return found
