"""The service itself: what it holds, how it changes while it answers, and how it ends. It knows nothing about HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from skumatch.backend import Backend
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import SkumatchError
from skumatch.serve.audit import Audit
from skumatch.serve.catalogue_store import FILE as GROUPS
from skumatch.serve.catalogue_store import GroupReviews
from skumatch.serve.engine import Engine
from skumatch.serve.keys import Keys, Principal
from skumatch.serve.learning import Learning
from skumatch.serve.loaded import Loaded, Loader, ModelHome
from skumatch.serve.metrics import Metrics
from skumatch.serve.problems import LATER, Problem
from skumatch.serve.reviews import FILE, Reviews
from skumatch.serve.settings import Settings
from skumatch.serve.tallies import Tallies
from skumatch.serve.uploads import Uploads

if TYPE_CHECKING:
    from skumatch.serve.fetch import Fetcher

T = TypeVar("T")
LOG = logging.getLogger("skumatch.serve")
TALLY = 5.0  # seconds between writes of what was counted


class Writer:
    """What a change may need to embed new views: the encoder in float32, and how pictures are decoded."""

    def __init__(self, loaded: Loaded, pipeline: Pipeline) -> None:
        self.loaded = loaded
        self.pipeline = pipeline

    def encoder(self) -> Encoder:
        """Return the encoder that the gallery's views are made with."""
        return self.loaded.views.encoder()


@dataclass(frozen=True)
class Reviewing:
    """The review loop: crops that wait or were judged, what was counted, and what verdicts do to the gallery."""

    reviews: Reviews
    tallies: Tallies
    learning: Learning

    @staticmethod
    def at(path: Path, settings: Settings, uploads: Uploads) -> Reviewing:
        """Open the file ``path``. Raises as ``Reviews``."""
        reviews = Reviews(path, settings)
        return Reviewing(reviews, Tallies(reviews.database), Learning(reviews, uploads))

    def close(self) -> None:
        """Write what was counted and close the file."""
        try:
            self.tallies.write()
        except SkumatchError as error:
            LOG.warning("figures: %s", error)
        self.reviews.close()


class Service:
    """A model and a gallery that answer requests. Everything but ``load`` is called on the event loop.

    ``folder``: keys, audit log, uploads and reviews. One thread loads and changes, one at a time; answers go on.
    """

    def __init__(self, settings: Settings, models: ModelHome, home: Backend, folder: Path) -> None:
        self.settings = settings
        self.home = home
        self.metrics = Metrics()
        self.keys = Keys(folder / "keys.json")
        self.audit = Audit(folder / "audit.jsonl")
        self.uploads = Uploads(folder / "uploads")
        self.reviewing = Reviewing.at(folder / FILE, settings, self.uploads) if settings.reviews else None
        self.grouping = GroupReviews(folder / GROUPS, Path(settings.catalogue)) if settings.catalogue else None
        self.fetcher = fetcher(settings)
        self.engine = Engine(settings, self.metrics)
        self.draining = False
        self._loader = Loader(models, home, Pipeline(settings.batch, settings.workers, settings.max_pixels))
        self._loaded: Loaded | None = None
        self._changes = ThreadPoolExecutor(1, "skumatch-changes")
        self._changing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def loaded(self) -> Loaded:
        """The model and the version that answer. Raises Problem before the first is there."""
        if self._loaded is None:
            raise Problem(503, "no gallery is loaded yet", "come again", LATER)
        return self._loaded

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self._loaded is not None and not self.draining and self.engine.batcher.alive

    def load(self) -> None:
        """Open what is current, before anything else. Raises as ``Loader.load``."""
        self._use(self._loader.load())
        if self.reviewing is not None and self.reviewing.reviews.unfinished():
            self.reviewing.learning.resume(self.home, Writer(self.loaded, self._loader.pipeline))
            self._use(self._loader.refresh(self.loaded))

    async def start(self) -> None:
        """Begin to answer."""
        self.engine.start()
        if self.settings.watch:
            self._tasks.append(asyncio.create_task(self._watch()))
        if self.reviewing is not None:
            self._tasks.append(asyncio.create_task(self._tell(self.reviewing)))

    async def reload(self, why: str) -> bool:
        """Take up the current model and gallery, opened beside the old; return whether they are others.

        Raises SkumatchError where they cannot be opened: the old ones go on answering.
        """
        async with self._changing:
            return await self._take_up(why, self._loader.load)

    async def change(
        self,
        principal: Principal,
        action: str,
        about: dict[str, Any],
        work: Callable[[Backend, Writer], T],
        expect: str = "",
    ) -> T:
        """Change the gallery by ``work``, on the thread of changes, and answer from the new version at once.

        ``expect``: the version that must be the current one, "" for any. The audit log says what begins and what became
        of it. Raises Problem 412 where the version is another, and what ``work`` raises.
        """
        said = {"who": principal.name, "action": action, **about}

        def audited(writer: Writer) -> T:
            before = self.home.gallery().version
            if expect and expect != before:
                raise Problem(412, f"the gallery's version is {before}, not {expect}", "read it again")
            self.audit.write(**said, state="begun", version=before)
            try:
                result = work(self.home, writer)
            except Exception as error:
                self.audit.write(**said, state="failed", error=str(error), version=before)
                raise
            self.audit.write(**said, state="done", version=self.home.gallery().version)
            return result

        return await asyncio.shield(self._changed(action, audited))

    async def _changed(self, action: str, work: Callable[[Writer], T]) -> T:
        async with self._changing:
            writer = Writer(self.loaded, self._loader.pipeline)
            try:
                return await self._elsewhere(lambda: work(writer))
            finally:
                await self._refresh(action)

    async def _refresh(self, action: str) -> None:
        """Answer from the gallery's new version; a newer model waits until it is asked for.

        Where that fails, the change is made all the same: the log and the metrics say that it is not answered from yet.
        """
        try:
            await self._take_up(action, self._loader.refresh)
        except SkumatchError as error:
            LOG.error("%s: the gallery's new version does not answer yet: %s", action, error)

    async def _take_up(self, why: str, load: Callable[[Loaded], Loaded]) -> bool:
        """Answer from what ``load`` returns from now on; return whether that is another."""
        held = self.loaded
        try:
            loaded = await self._elsewhere(lambda: load(held))
        except SkumatchError:
            self.metrics.reloads.labels("failed").inc()
            raise
        self.metrics.reloads.labels("same" if loaded is held else "new").inc()
        if loaded is held:
            return False
        LOG.info("%s: %s %s answers", why, loaded.model["name"], loaded.gallery.version)
        self._use(loaded)
        return True

    def _use(self, loaded: Loaded) -> None:
        self.metrics.taken_up(loaded.model["name"], loaded.gallery)
        self._loaded = loaded

    async def _elsewhere(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._changes, work)

    async def _watch(self) -> None:
        """Look every now and then whether somebody else changed the model or the gallery."""
        while True:
            await asyncio.sleep(self.settings.watch)
            try:
                await self.reload("watch")
            except SkumatchError as error:
                LOG.warning("watch: %s", error)

    async def _tell(self, reviewing: Reviewing) -> None:
        """Write now and then what was counted, and note how many crops wait."""
        while True:
            await asyncio.sleep(TALLY)
            try:
                await asyncio.get_running_loop().run_in_executor(None, reviewing.tallies.write)
                waiting = await asyncio.get_running_loop().run_in_executor(None, reviewing.reviews.waiting)
                self.metrics.waiting.set(waiting)
            except SkumatchError as error:
                LOG.warning("figures: %s", error)

    async def drain(self) -> None:
        """Say that no new requests should be sent here; those that come are still answered."""
        self.draining = True

    async def close(self) -> None:
        """Finish what was begun and end the threads."""
        for task in self._tasks:
            task.cancel()
        async with self._changing:
            await asyncio.get_running_loop().run_in_executor(None, self.engine.close)
            self._changes.shutdown()
            if self.fetcher is not None:
                self.fetcher.close()
            if self.reviewing is not None:
                self.reviewing.close()
            if self.grouping is not None:
                self.grouping.close()


def fetcher(settings: Settings) -> Fetcher | None:
    """Return what fetches pictures, None where that is switched off: then its code is not even loaded."""
    if not settings.urls:
        return None
    from skumatch.serve.fetch import Fetcher

    return Fetcher(settings)
