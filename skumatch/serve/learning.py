"""What a verdict does to the gallery: the crop becomes a reference view of its SKU, and undoing takes it out again.

Each step is noted before it is taken, so that what a kill interrupts is finished when the service starts again. Runs on
the service's thread of changes. It knows nothing about HTTP.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from skumatch.dataset import Row
from skumatch.embed import no_progress
from skumatch.enrol import Supply
from skumatch.errors import ArtefactError, GalleryError, SkumatchError
from skumatch.gallery_seam import AnyGallery
from skumatch.serve.problems import Problem
from skumatch.serve.reviews import Review, Reviews, Verdict, fitting
from skumatch.serve.uploads import Uploads

if TYPE_CHECKING:
    from skumatch.backend import Backend
    from skumatch.serve.service import Writer

LOG = logging.getLogger("skumatch.serve")


@dataclass(frozen=True)
class Judgement:
    """What ``who`` says of a crop, see ``Reviews.verdict``; ``title``: of a new SKU, or "". ``session``: the page or
    program that looks at it."""

    crop: str
    verdict: Verdict
    sku: str
    who: str
    title: str = ""
    session: str = ""


class Learning:
    """Turns verdicts in ``reviews`` into reference views; their files are kept in ``uploads``."""

    def __init__(self, reviews: Reviews, uploads: Uploads) -> None:
        self.reviews = reviews
        self.uploads = uploads

    def check(self, said: Judgement, gallery: AnyGallery) -> str:
        """Return the SKU that a judgement is about, "" for none. Raises Problem 404 and 422."""
        _, sku = fitting(self.reviews.get(said.crop), said.verdict, said.sku)
        known = bool(sku) and gallery.skus.code(sku) >= 0
        if said.verdict == "correct" and not known:
            raise Problem(422, f"no SKU is called '{sku}'", "say new where it is not in the gallery")
        if said.verdict == "new" and known:
            raise Problem(422, f"there is a SKU '{sku}' already", "say correct, or give the new one another name")
        return sku

    def enrol(self, said: Judgement, home: Backend, writer: Writer) -> Review:
        """Keep a verdict and make the crop a reference view of its SKU.

        Raises Problem as ``check`` and ``Reviews.verdict``, and as ``Backend.extend``: the crop waits again then.
        """
        gallery = home.gallery()
        sku = self.check(said, gallery)
        there = _views_of(gallery, sku, self.reviews.get(said.crop).sha256)
        change = {"title": said.title, "added": not there}
        review = self.reviews.verdict(said.crop, said.verdict, said.sku, said.who, said.session, change)
        try:
            return self._put_in(review, home, writer)
        except Exception:
            self.reviews.reopen(said.crop)
            raise

    def _put_in(self, review: Review, home: Backend, writer: Writer) -> Review:
        change = _change(review)
        path = self.uploads.keep(self.reviews.crop(review.id))
        row = Row(path, cast(str, review.sku), "gallery", title=change["title"])
        done = home.extend(Supply.of([row]), writer.encoder(), writer.pipeline, no_progress)
        if done.unreadable:
            raise ArtefactError(f"what was just written cannot be read: {done.failures[0]}", "check the disk")
        return self.reviews.settle(review.id, "done", {**change, "version": done.gallery.version})

    def undo(self, crop: str, home: Backend, session: str = "") -> Review:
        """Take a verdict back, and the view that it made out of the gallery; a SKU goes with its last one.

        The view stays where another verdict needs it. ``session`` looks at the crop from then on. Raises Problem 404,
        409 where there is no verdict or the view is the gallery's last.
        """
        review = self.reviews.get(crop)
        if review.change is None:
            return self.reviews.reopen(crop, session)
        gallery = home.gallery()
        if len(_own(review, gallery)) == len(gallery):
            raise Problem(409, "this would empty the gallery", "add something else first")
        return self._take_out(self.reviews.settle(crop, "undoing", review.change), home, session)

    def _take_out(self, review: Review, home: Backend, session: str = "") -> Review:
        twin = self.reviews.twin(review)
        if twin is not None and _change(review)["added"]:
            self.reviews.settle(twin.id, "done", {**_change(twin), "added": True})
        elif ids := _own(review, home.gallery()):
            home.remove_views(ids)
        return self.reviews.reopen(review.id, session)

    def resume(self, home: Backend, writer: Writer) -> None:
        """Finish what was interrupted; what cannot be finished is logged, and its crop waits again."""
        for review in self.reviews.unfinished():
            try:
                if review.state == "undoing":
                    self._take_out(review, home)
                else:
                    self._put_in(review, home, writer)
            except SkumatchError as error:
                LOG.error("the verdict on %s was not carried out: %s", review.id, error)
                self.reviews.reopen(review.id)


def _change(review: Review) -> dict[str, Any]:
    """Return what a verdict does to the gallery: ``title`` of the SKU; ``added``: whether the view was not there."""
    return cast(dict[str, Any], review.change)


def _own(review: Review, gallery: AnyGallery) -> list[int]:
    """Return the ids of the views that the verdict added and that are still there."""
    return _views_of(gallery, cast(str, review.sku), review.sha256) if _change(review)["added"] else []


def _views_of(gallery: AnyGallery, sku: str, sha256: str) -> list[int]:
    """Return the ids of the SKU's views that are the file with this SHA-256. Reads the disk or a server."""
    try:
        ids = gallery.ids_of(sku)
    except GalleryError:
        return []
    return [row.id for row in gallery.views_of(np.array(ids, np.int64)) if row.sha256 == sha256]
