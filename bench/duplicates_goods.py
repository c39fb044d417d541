"""Made-up groups of postings, in families of look-alikes, and what sellers write about them.

Groups have 1 to 50 postings (``ALONE`` of them one, else a power law), about three on average. A family's brand and
kind of goods are those of all its groups, which differ in variant, amount and model.

Titles have about eight words, with Zipf-like frequencies (Zipf 1949) out of a vocabulary that grows with the products
by a power below one (Heaps 1978, section 7.5), as in real catalogues; the words of a smaller catalogue are in a larger
one. Sellers drop, misspell and move words, add some of their own, and write the amount in any unit or not at all. It
knows nothing about vectors and files.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from duplicates_titles import misspelt, written_amount
from numpy.typing import NDArray

from skumatch.spec import Ids

# Groups
ALONE: Final = 0.2
LARGEST: Final = 50
FALL: Final = 2.75  # of the power law of sizes from two on
FAMILY: Final = 0.3  # groups per family: geometric, 12 at most
WIDEST: Final = 12
# Titles
HEAPS: Final = 0.6
BRANDS, KINDS, VARIANTS = 4, 2, 20  # words per product ** HEAPS
ZIPF: Final = (2.7, 1.05)  # shift and exponent
SECOND_KIND: Final = 0.5
MOST_VARIANTS: Final = 4
MODEL: Final = 0.25
AMOUNT: Final = 0.75  # of products
WRITTEN: Final = 0.75  # of titles of such
DROPPED: Final = 0.12
MISSPELT: Final = 0.06
SHUFFLED: Final = 0.25
AMOUNTS: Final = (25, 50, 75, 100, 125, 150, 200, 250, 300, 330, 400, 500, 600, 750, 1000, 1500, 2000, 2500, 3000, 5000)
SELLERS: Final = (
    "new original promo sale ready stock best price free shipping cheap quality official import local premium limited "
    "offer pack set big small fresh store shop now hot gift bonus genuine fast send today only special deal"
)
ADDED: Final = (0, 1, 2, 2, 3, 3, 4, 5)  # words of sellers
ONSETS: Final = "b d f g h j k l m n p r s t v w z br dr fl gr kl kr pl pr sk sl sp st tr sn bl"
SYLLABLES: Final = [onset + vowel for onset in ONSETS.split() for vowel in "aeiou"]
ENDINGS: Final = ("", "", "n", "r", "s", "t", "l")
STEP: Final = 48271  # coprime to the number of syllables: neighbours in rank are spelt unlike


@dataclass(frozen=True)
class Goods:
    """G groups in F families, as numbers.

    int64: ``sizes`` and ``family`` (G,), families in ascending order; ``shared`` (F, 3): words for the brand and one or
    two kinds; ``own`` (G, 4): words for variants; -1 where there is none. ``amount`` float64 (G,), 0 for none, in ml
    where ``liquid`` bool (F,) says so, else in g; ``model`` int64 (G,), 0 for none.
    """

    sizes: Ids
    family: Ids
    shared: Ids
    own: Ids
    liquid: NDArray[np.bool_]
    amount: NDArray[np.float64]
    model: Ids

    @cached_property
    def words(self) -> dict[int, str]:
        """The spelling of every word in use."""
        used = np.unique(np.concatenate([self.shared.ravel(), self.own.ravel()]))
        return {number: spelt(number) for number in used.tolist() if number >= 0}

    def title(self, group: int, rng: random.Random) -> str:
        """Return what some seller writes about a posting of ``group``."""
        family = int(self.family[group])
        numbers = [*self.shared[family].tolist(), *self.own[group].tolist()]
        model = int(self.model[group])
        words = [self.words[number] for number in numbers if number >= 0]
        if model:
            words.append(f"{chr(97 + model % 26)}{chr(97 + model // 26 % 26)}{model // 676}")
        kept = [_typed(word, rng) for word in words if rng.random() >= DROPPED] or words[:1]
        if self.amount[group] and rng.random() < WRITTEN:
            kept.append(written_amount(float(self.amount[group]), "ml" if self.liquid[family] else "g", rng))
        kept += rng.sample(SELLERS.split(), rng.choice(ADDED))
        if rng.random() < SHUFFLED:
            rng.shuffle(kept)
        return " ".join(kept)


def make_goods(postings: int, rng: np.random.Generator) -> Goods:
    """Draw groups until they hold ``postings``, and what is sold in them; the last may be cut."""
    sizes = _sizes(postings, rng)
    count = len(sizes)
    family = np.repeat(np.arange(count), rng.geometric(FAMILY, count).clip(1, WIDEST))[:count]
    families = int(family[-1]) + 1
    growth = count**HEAPS
    kinds = _words(rng, (families, 2), 1, KINDS * growth)
    kinds[rng.random(families) >= SECOND_KIND, 1] = -1
    own = _words(rng, (count, MOST_VARIANTS), 2, VARIANTS * growth)
    own[np.arange(MOST_VARIANTS) >= rng.integers(1, MOST_VARIANTS + 1, count)[:, None]] = -1
    return Goods(
        sizes=sizes,
        family=family,
        shared=np.hstack([_words(rng, (families, 1), 0, BRANDS * growth), kinds]),
        own=own,
        liquid=rng.random(families) < 0.5,
        amount=np.where(rng.random(count) < AMOUNT, rng.choice(np.array(AMOUNTS, np.float64), count), 0),
        model=np.where(rng.random(count) < MODEL, rng.integers(10 * 676, 10_000 * 676, count), 0),
    )


def _sizes(postings: int, rng: np.random.Generator) -> Ids:
    size = np.arange(2, LARGEST + 1)
    tail = size.astype(np.float64) ** -FALL
    shares = np.concatenate([[ALONE], (1 - ALONE) * tail / tail.sum()])
    sizes = rng.choice(np.arange(1, LARGEST + 1, dtype=np.int64), postings, p=shares)  # more than are needed
    last = int(np.searchsorted(np.cumsum(sizes), postings))
    sizes = np.asarray(sizes[: last + 1], np.int64)
    sizes[-1] -= sizes.sum() - postings
    return sizes


def _words(rng: np.random.Generator, shape: tuple[int, int], role: int, count: float) -> Ids:
    """Return numbers of words, Zipf-like among ``count``; those of the three roles are distinct."""
    shift, exponent = ZIPF
    total = np.cumsum((np.arange(np.ceil(count)) + 1 + shift) ** -exponent)
    rank: Ids = np.searchsorted(total, rng.random(shape) * total[-1]).astype(np.int64)
    numbers: Ids = 3 * rank + role
    return numbers


def spelt(number: int) -> str:
    """Return a made-up word, another for each number below four million; the first ones, which are frequent, short."""
    base = len(SYLLABLES)
    count = 2 if number < base**2 else 3
    at, text = number * STEP % base**count, ""
    for _ in range(count):
        at, syllable = divmod(at, base)
        text += SYLLABLES[syllable]
    return text + ENDINGS[number % len(ENDINGS)]


def _typed(word: str, rng: random.Random) -> str:
    return misspelt(word, rng) if rng.random() < MISSPELT else word
