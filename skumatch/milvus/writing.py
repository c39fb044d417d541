"""A change to a gallery in Milvus: rows are written as of the next version, which exists once its own row is written.

Whatever interrupts a change, readers see the version before it; the next writer clears away what was left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from skumatch.errors import GalleryError, SpecMismatch
from skumatch.milvus.address import Address
from skumatch.milvus.client import connect
from skumatch.milvus.gallery import MilvusGallery
from skumatch.milvus.rows import (
    BLOCK,
    FLAT,
    HEAVY,
    NAMED,
    NEVER,
    SKUS,
    WHOLE,
    alive,
    both,
    one_of,
    renewed,
    sku_row,
    view_fields,
    view_row,
)
from skumatch.milvus.versions import JOB, Head, Lease, Place
from skumatch.segment import Views
from skumatch.sku_table import FORGET, SKU
from skumatch.spec import Spec

if TYPE_CHECKING:
    from pyarrow import Table

SENT = 8 << 20  # bytes of rows per call: Milvus takes 64 MB, and a call has its time limit


class Writing:
    """A change on top of the current version; use as a context manager, and ``publish`` at the end of the block.

    Raises LockedError where another is writing, ServerError.
    """

    def __init__(self, address: Address, what: str, spec: Spec | None = None, job: str = "") -> None:
        """``spec``: begin anew with this encoder, without the views before. ``job``: what is to be gone on with where
        it was interrupted."""
        self.place = Place(connect(address))
        self.lease = Lease(self.place, what)
        self.anew = spec
        self.job = job
        self.noted: dict[str, Any] = {}
        self.touched: set[str] = set()
        self.columns: set[str] = set()
        self.news = 0

    def __enter__(self) -> Writing:
        self.lease.__enter__()
        try:
            self._begin()
        except BaseException:
            self.lease.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.lease.__exit__(*error)

    def _begin(self) -> None:
        """Look at the current version and clear away what an interrupted writer left."""
        self.before = self.place.head()
        last = self.before.number if self.before else 0
        self.number = last + 1
        self.next_id = self.before.next_id if self.before else 0
        note = self.place.noted(JOB) or {}
        going_on = bool(self.job) and (note.get("job"), note.get("number")) == (self.job, self.number)
        self.noted = note if going_on else {}
        if self.anew is not None:
            self.spec, self.generation = self.anew, (self.before.generations if self.before else 0) + 1
            self._prepare()
        elif self.before is not None:
            self.spec, self.generation = self.before.spec, self.before.generation
            self._settle(self.before)
        else:
            raise GalleryError(f"there is no gallery in {self.place.address}", "make one with `skumatch gallery build`")
        self.views, self.skus = self.place.views(self.generation), self.place.skus(self.generation)
        self.next_id = int(self.noted.get("next_id", self.next_id))
        self.first_id = int(self.noted.get("first_id", self.next_id))
        done = self.now(f"view >= {self.first_id}", ["sku"]) if self.noted else iter(())
        self.touched = {row["sku"] for rows in done for row in rows}

    def _prepare(self) -> None:
        """Make the collections of a new generation; those of an interrupted run stay where it goes on."""
        place, connection = self.place, self.place.connection
        views, skus = place.views(self.generation), place.skus(self.generation)
        if not self.noted:
            connection.drop(views)
            connection.drop(skus)
        if not connection.has(views):
            connection.create(views, view_fields(self.spec.dim), FLAT)
        elif self.noted:  # of a chunk that was not finished
            connection.delete(views, f"view >= {self.noted['next_id']}")
        if not connection.has(skus):
            connection.create(skus, SKUS, FLAT)

    def _settle(self, before: Head) -> None:
        """Make the rows what the current version says they are."""
        for name in (self.place.views(before.generation), self.place.skus(before.generation)):
            unpublished = f"born > {before.number}"
            if self.noted and name == self.place.views(before.generation):  # but what the job has done
                unpublished += f" and (view >= {self.noted['next_id']} or view < {self.noted['first_id']})"
            self.place.connection.delete(name, unpublished)
            self._live_on(name, f"died > {before.number} and died < {NEVER}")
            if before.at < before.number:
                self._go_back(name, before)

    def _live_on(self, name: str, condition: str) -> None:
        """Take back the death of rows."""
        for rows in self.place.connection.stream(name, condition, ["pk"], BLOCK):
            self.place.connection.upsert(name, [{"pk": row["pk"], "died": NEVER} for row in rows], partial=True)

    def _go_back(self, name: str, before: Head) -> None:
        """Let what came after the version that was gone back to end, and what ended since begin again."""
        connection, number = self.place.connection, self.number
        later = f"born > {before.at} and born <= {before.number} and died > {before.number}"
        for rows in connection.stream(name, later, ["pk"], BLOCK):
            connection.upsert(name, [{"pk": row["pk"], "died": number} for row in rows], partial=True)
        ended = f"born <= {before.at} and died > {before.at} and died <= {before.number}"
        views = name == self.place.views(before.generation)
        for rows in connection.stream(name, ended, WHOLE if views else list(SKUS), HEAVY):
            if views:
                self._send([renewed({**row, "pk": self._newest(int(row["view"]))}, number) for row in rows])
            else:
                connection.upsert(name, [sku_row(row["sku"], number, row["facts"]) for row in rows])

    def _newest(self, view: int) -> int:
        """Return the largest primary key that a view has had."""
        name = self.place.views(self.before.generation if self.before else 0)
        return max(int(row["pk"]) for row in self.place.connection.query(name, f"view == {view}", ["pk"]))

    def now(self, condition: str, fields: Sequence[str], name: str = "") -> Iterator[list[dict[str, Any]]]:
        """Yield rows as they will be once this is published."""
        return self.place.connection.stream(name or self.views, both(alive(self.number), condition), fields, BLOCK)

    def insert(self, views: Views, facts: Mapping[str, Mapping[str, str]]) -> None:
        """Write views, numbered on; ``facts``: what is known of their SKUs."""
        rows = []
        for place, sku in enumerate(views.skus):
            texts = {"source": views.sources[place], "sha256": views.sha256[place], "thumb": views.thumbs[place]}
            number = self.next_id + place if views.ids is None else int(views.ids[place])
            rows.append(view_row(number, self.number, {SKU: sku, **texts}, views.vectors[place], facts.get(sku, {})))
        self._send(rows)
        self.touched.update(views.skus)
        if views.ids is None:
            self.next_id += len(views)

    def _send(self, rows: Sequence[Mapping[str, Any]]) -> None:
        name = self.place.views(self.generation)
        waiting: list[Mapping[str, Any]] = []
        size = 0
        for row in rows:
            waiting.append(row)
            size += 4 * self.spec.dim + len(row["thumb"]) + len(row["source"]) + 1000
            if size > SENT:
                self._upsert(name, waiting)
                waiting, size = [], 0
        self._upsert(name, waiting)

    def _upsert(self, name: str, rows: Sequence[Mapping[str, Any]], partial: bool = False) -> None:
        self.lease.renew()
        self.place.connection.upsert(name, rows, partial)

    def remove(self, field: str, values: Sequence[str | int], condition: str = "") -> int:
        """Let the views whose ``field`` is one of ``values`` and that meet ``condition`` end with the version before;
        return how many there were."""
        count = 0
        for start in range(0, len(values), NAMED):
            for rows in self.now(both(one_of(field, values[start : start + NAMED]), condition), ["pk", "sku"]):
                self.touched.update(row["sku"] for row in rows)
                self._upsert(self.views, [{"pk": row["pk"], "died": self.number} for row in rows], partial=True)
                count += len(rows)
        return count

    def known(self, skus: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return what is known of ``skus``, as it will be."""
        found: dict[str, dict[str, str]] = {}
        before = self.before.columns if self.before is not None and self.anew is None else ()
        if not self.columns and not before:
            return found  # nothing is known of any
        for start in range(0, len(skus), NAMED):
            for rows in self.now(one_of(SKU, skus[start : start + NAMED]), ["sku", "facts"], self.skus):
                found.update({row["sku"]: row["facts"] for row in rows})
        return found

    def require(self, spec: Spec) -> None:
        """Raise SpecMismatch when the gallery was rebuilt with another model meanwhile."""
        if self.spec.digest != spec.digest:
            raise SpecMismatch(
                f"gallery {self.place.address} was rebuilt with another model meanwhile", "run it again with that"
            )

    def say(self, layer: Table) -> None:
        """Add what a layer of facts says (see sku_table) to the SKUs and their views; ``news`` counts the SKUs of which
        it was not known."""
        for batch in layer.to_batches(NAMED):
            self._say({row.pop(SKU): row for row in batch.to_pylist()})

    def _say(self, said: Mapping[str, dict[str, Any]]) -> None:
        before = self.known(list(said))
        after = {}
        for sku, cells in said.items():
            known = {} if cells.get(FORGET) else before.get(sku, {})
            told = {name: text for name, text in cells.items() if name != FORGET and text is not None}
            after[sku] = {name: text for name, text in {**known, **told}.items() if text}
            self.columns.update(after[sku])
        changed = [sku for sku in said if after[sku] != before.get(sku, {})]
        if changed:
            self._retire(changed)
            self.write_facts({sku: after[sku] for sku in changed if after[sku]})
        self._tell(after)
        self.news += len(changed)

    def write_facts(self, facts: Mapping[str, Mapping[str, str]]) -> None:
        """Write what is known of SKUs that have no row of this version."""
        self._upsert(self.skus, [sku_row(sku, self.number, cells) for sku, cells in facts.items()])

    def _retire(self, skus: Sequence[str]) -> None:
        """Let the rows of ``skus`` in the collection of facts end; those of this very version are deleted."""
        here = one_of(SKU, skus)
        self.place.connection.delete(self.skus, both(here, f"born == {self.number}"))
        for rows in self.now(here, ["pk"], self.skus):
            self._upsert(self.skus, [{"pk": row["pk"], "died": self.number} for row in rows], partial=True)

    def _tell(self, facts: Mapping[str, Mapping[str, str]]) -> None:
        """Let the views of the SKUs say ``facts``."""
        other = [
            int(row["pk"])
            for rows in self.now(one_of(SKU, list(facts)), ["pk", "sku", "facts"])
            for row in rows
            if row["facts"] != facts[row["sku"]]
        ]
        for start in range(0, len(other), HEAVY):
            found = self.place.connection.query(self.views, one_of("pk", other[start : start + HEAVY]), WHOLE)
            fresh = [row for row in found if row["born"] == self.number]
            old = [row for row in found if row["born"] != self.number]
            self._send([{**renewed(row, self.number, facts[row[SKU]]), "pk": row["pk"]} for row in fresh])
            self._send([renewed(row, self.number, facts[row[SKU]]) for row in old])
            ended = [{"pk": row["pk"], "died": self.number} for row in old]
            self._upsert(self.views, ended, partial=True)

    def note(self, said: Mapping[str, Any]) -> None:
        """Write down how far the job is."""
        mine = {"job": self.job, "number": self.number, "next_id": self.next_id, "first_id": self.first_id}
        self.place.note(JOB, {**said, **mine})

    def abandon(self) -> None:
        """Publish nothing: there is nothing new."""
        self.place.forget(JOB)

    def publish(self, reason: str, **other: Any) -> MilvusGallery:
        """Make the change the current version and return that opened. ``other``: further fields of the Head.

        Raises GalleryError when no view would be left, LockedError when another writer has taken over.
        """
        head = replace(self._counted(), reason=reason, **other)
        if not head.views:
            raise GalleryError("this would empty the gallery", "build a new one instead")
        self.lease.require()
        if self.place.address.folder is not None:  # a server does so when it sees fit
            for name in (self.views, self.skus):
                self.place.connection.call("flush", name)
        self.place.publish(head)
        with contextlib.suppress(GalleryError):  # it is published: what is left over is of an older version
            self.place.forget(JOB)
        return MilvusGallery(self.place, head)

    def _counted(self) -> Head:
        """Return the head of the change."""
        before, connection = self.before, self.place.connection
        views = connection.count(self.views, alive(self.number))
        kept = before if self.anew is None else None
        if kept is None:
            skus = len({row["sku"] for rows in self.now("", ["sku"]) for row in rows})
        else:
            skus = kept.skus + self._gained(sorted(self.touched), kept)
        was = before.views if before else 0
        rebuilt = self.anew is not None and self.next_id == self.first_id
        added = views if rebuilt else self.next_id - self.first_id
        return Head(
            number=self.number,
            at=self.number,
            generation=self.generation,
            generations=max(self.generation, before.generations if before else 0),
            spec=self.spec,
            views=views,
            skus=skus,
            columns=tuple(sorted({*(kept.columns if kept else ()), *self.columns})),
            next_id=self.next_id,
            kind=before.kind if before else "auto",
            index=kept.index if kept else "exact",
            parent=before.name if before else None,
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            added=added,
            removed=was + added - views,
        )

    def _gained(self, skus: Sequence[str], before: Head) -> int:
        """Return how many of ``skus`` have views now and had none before, less those the other way round."""
        gained = 0
        for start in range(0, len(skus), NAMED):
            some = one_of(SKU, skus[start : start + NAMED])
            for version, sign in ((self.number, 1), (before.at, -1)):
                rows = self.place.connection.stream(self.views, both(alive(version), some), ["sku"], BLOCK)
                gained += sign * len({row["sku"] for found in rows for row in found})
        return gained
