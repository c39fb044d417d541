"""The versions of a gallery in Milvus: what happened when, how two differ, going back, clearing away, and checking."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import numpy as np

from skumatch.errors import ArtefactError, GalleryError
from skumatch.gallery_versions import KEEP, Difference
from skumatch.milvus.address import Address
from skumatch.milvus.client import connect
from skumatch.milvus.gallery import MilvusGallery, open_milvus
from skumatch.milvus.rows import HEAVY, WHOLE, proof
from skumatch.milvus.versions import JOB, Head, Lease, Place, version_name
from skumatch.milvus.writing import Writing
from skumatch.sku_table import SKU

LENGTH_OFF = 0.01  # how far the length of a vector may be from 1


def log(address: Address) -> list[dict[str, Any]]:
    """Return what is told of each version, newest first; see ``gallery_versions.log``. Raises GalleryError."""
    gallery = open_milvus(address)
    found: list[dict[str, Any]] = []
    for number, text in reversed(list(gallery.place.told())):
        facts: dict[str, Any] = {"version": version_name(number), "current": number == gallery.head.number}
        try:
            head = Head.from_text(text, address)
            said = {key: getattr(head, key) for key in ("parent", "time", "reason")}
            counts = {key: getattr(head, key) for key in ("views", "skus", "added", "removed")}
            facts |= {**said, **counts, "model": head.spec.name}
        except GalleryError as error:
            facts["error"] = str(error)
        found.append(facts)
    return found


def diff(address: Address, a: str, b: str) -> Difference:
    """Return how version ``b`` differs from ``a``. Raises GalleryError for one that is unknown or was pruned."""
    one, other = (_opened(address, name) for name in (a, b))
    skus, others = set(one.skus), set(other.skus)
    return Difference(
        sorted(others - skus),
        sorted(skus - others),
        np.setdiff1d(other.ids, one.ids),
        np.setdiff1d(one.ids, other.ids),
        _other_facts(one, other, sorted(skus & others)),
        one.spec.digest != other.spec.digest,
    )


def _other_facts(one: MilvusGallery, other: MilvusGallery, shared: list[str]) -> list[str]:
    """Return those of the ``shared`` SKUs that are known by other facts."""
    before, after = one.facts.of_all(shared), other.facts.of_all(shared)
    return [sku for sku in shared if before.get(sku, {}) != after.get(sku, {})]


def rollback(address: Address, to: str | None = None) -> str:
    """Publish version ``to`` (the current one's parent where it is None) again and return the new version's name.

    Rows stay as they are until the next change. Raises GalleryError for an unknown version or one without a parent.
    """
    current = open_milvus(address)
    name = to or current.head.parent
    if name is None:
        raise GalleryError(f"{current.version} has no version before it", "name one of `skumatch gallery log`")
    with Lease(current.place, "rollback") as lease:
        now = open_milvus(address).head
        then = _opened(address, name).head
        made = _again(then, now)
        lease.require()
        current.place.publish(made)
    return made.name


def _again(then: Head, now: Head) -> Head:
    """Return the version after ``now`` that shows what ``then`` did."""
    change = then.views - now.views
    return replace(
        then,
        number=now.number + 1,
        generations=now.generations,
        next_id=max(now.next_id, then.next_id),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        reason=f"rollback to {then.name}",
        added=max(change, 0),
        removed=max(-change, 0),
    )


def _opened(address: Address, name: str) -> MilvusGallery:
    """Open a version by name; "3" and "v3" stand for "v000003". Raises GalleryError for one that is no more."""
    place = Place(connect(address))
    digits = name.removeprefix("v")
    number = int(digits) if re.fullmatch(r"[0-9]{1,9}", digits) else 0
    numbers = place.numbers()
    head = place.head(number) if number in numbers else None
    if head is None:
        there = ", ".join(version_name(number) for number in numbers[-20:])
        raise GalleryError(f"{address} has no version '{name}'", f"its versions are: {there or 'none'}")
    return MilvusGallery(place, head)


def prune(address: Address, keep: int = KEEP, unfinished: bool = False) -> tuple[list[str], int]:
    """Remove all but the newest ``keep`` versions, with the rows and collections that no version needs any more.

    ``unfinished``: what interrupted imports and rebuilds sent, too. Returns (removed versions, rows deleted). A reader
    that has an older version open may miss views that were removed since. Raises GalleryError, LockedError,
    ServerError.
    """
    if keep < 1:
        raise GalleryError(f"cannot keep {keep} versions", "keep at least 1")
    place = open_milvus(address).place
    if unfinished:
        with Writing(address, "prune") as change:  # clears away
            change.abandon()
    with Lease(place, "prune") as lease:
        numbers = place.numbers()
        kept = [head for number in numbers[-keep:] if (head := place.head(number)) is not None]
        lease.require()
        gone = numbers[:-keep]
        if gone:
            place.connection.delete(place.versions, f"pk > 0 and pk <= {gone[-1]}")
        rows = _swept(place, kept)
    return [version_name(number) for number in gone], rows


def _swept(place: Place, kept: list[Head]) -> int:
    """Delete the rows that none of ``kept`` needs; return how many that were."""
    connection = place.connection
    held = {head.generation for head in kept}
    busy = place.noted(JOB) is not None
    rows = 0
    for generation in range(1, kept[-1].generations + (1 if busy else 2)):
        names = [name for name in (place.views(generation), place.skus(generation)) if connection.has(name)]
        floor = min((head.at for head in kept if head.generation == generation), default=0)
        for name in names:
            condition = f"died <= {floor}" if generation in held else "born >= 0"
            rows += connection.count(name, condition)
            if generation in held:
                connection.delete(name, condition)
            else:
                connection.drop(name)
    return rows


def verify(address: Address) -> MilvusGallery:
    """Read every row of the current version, compare it with what was written, and return the gallery.

    Raises ArtefactError naming the first view that differs, GalleryError, ServerError.
    """
    gallery = open_milvus(address)
    skus: set[str] = set()
    last, count = -1, 0
    for rows in gallery.rows("", WHOLE, HEAVY):
        for row in rows:
            vector = np.asarray(row["vector"], np.float32)
            fit = vector.shape == (gallery.spec.dim,) and abs(float(np.linalg.norm(vector)) - 1) <= LENGTH_OFF
            if proof(row) != row["proof"] or int(row["view"]) == last or not fit:
                raise ArtefactError(f"view {row['view']} of {address} is not as it was written", "add it again")
            last = int(row["view"])
            skus.add(row[SKU])
            count += 1
    if (count, len(skus)) != (len(gallery), gallery.head.skus):
        raise ArtefactError(
            f"{address} has {count:,} views of {len(skus):,} SKUs, and should have {len(gallery):,} of "
            f"{gallery.head.skus:,}",
            "go back with `skumatch gallery rollback`, or build it anew",
        )
    return gallery


def compact(gallery: MilvusGallery) -> None:
    """Ask the server to merge what it keeps in pieces. Raises ServerError."""
    gallery.place.connection.call("compact", gallery.collection)
