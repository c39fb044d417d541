"""A service under load while its gallery changes, while it is told to end, and while it is killed.

Which version has which answer is worked out afterwards, from the versions on disk: an answer that mixes two of them
names a SKU or view that neither has.
"""

from __future__ import annotations

import http.client
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service_process import Load, Server

if TYPE_CHECKING:
    from skumatch.encoder import Encoder

Start = Callable[[], Server]
CLIENTS = 16
CLOSE = 1e-3  # by which a score may differ from the one that is worked out: batches are of other sizes
LOST = ("cut", "reused", "new", "never")  # what becomes of a request that was sent and not answered


@dataclass(frozen=True)
class Shop:
    """What the service serves: the ``gallery`` folder, the ``encoder`` of its views, the ``crops`` that are asked for,
    and a folder for what is written."""

    gallery: Path
    encoder: Encoder
    crops: Sequence[Path]
    work: Path


class Changes:
    """Changes the gallery, through the service or beside it, so that a crop is, or is not, its own reference view."""

    def __init__(self, server: Server, shop: Shop, seed: int) -> None:
        from skumatch.backend import backend

        self.server = server
        self.shop = shop
        self.rng = random.Random(seed)
        self.home = backend(shop.gallery)
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []
        self._enrolled: set[int] = set()
        self._number = 0

    def one(self) -> None:
        """Make one change."""
        crop = self.rng.randrange(len(self.shop.crops))
        how = self.rng.choice(("service", "reload", "SIGHUP"))
        remove = crop in self._enrolled and self.rng.random() < 0.4
        sku = f"crop-{crop}"
        if how == "service":
            self._through(crop, sku, remove)
        else:
            self._beside(crop, sku, remove)
            if how == "SIGHUP":
                self.server.send(signal.SIGHUP)
            else:
                self._asked("POST", "/v1/reload")
        (self._enrolled.discard if remove else self._enrolled.add)(crop)
        self.done[f"{how}, {'removed' if remove else 'enrolled'}"] += 1

    def _picture(self, crop: int) -> bytes:
        """Return the file with other bytes each time, for the same picture: what follows its end is not looked at."""
        self._number += 1
        return self.shop.crops[crop].read_bytes() + b"%d" % self._number

    def _through(self, crop: int, sku: str, remove: bool) -> None:
        if remove:
            self._asked("DELETE", f"/v1/skus/{sku}")
        else:
            method = "PUT" if crop in self._enrolled else "POST"
            self._asked(method, f"/v1/views?sku={sku}", self._picture(crop))

    def _beside(self, crop: int, sku: str, remove: bool) -> None:
        from skumatch.dataset import Row
        from skumatch.embed import Pipeline, no_progress
        from skumatch.enrol import Supply

        if remove:
            self.home.remove_skus([sku])
            return
        path = self.shop.work / f"view{self.shop.crops[crop].suffix}"
        path.write_bytes(self._picture(crop))
        supply = Supply.of([Row(path, sku, "gallery")])
        self.home.replace(supply, self.shop.encoder, Pipeline(workers=1), no_progress)

    def _asked(self, method: str, path: str, body: bytes = b"") -> None:
        try:
            status, said = self.server.ask(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            status, said = 0, repr(error)
        if not 200 <= status < 300:
            self.failed.append(f"{method} {path}: {status} {said}")


def soak(server: Server, shop: Shop, seconds: float, seed: int = 0, pause: float = 5.0) -> dict[str, Any]:
    """Match the crops for ``seconds`` from 16 clients, change the gallery every ``pause`` seconds; return what became
    of it. Memory is that after a tenth of the time and at the end."""
    load = Load(server.port, shop.crops, seconds, clients=CLIENTS, keep=True, seed=seed)
    changes, begun, early = Changes(server, shop, seed), time.monotonic(), 0.0
    while (passed := time.monotonic() - begun) < seconds:
        changes.one()
        if not early and passed > seconds / 10:
            early = server.anonymous()
        time.sleep(max(0.0, min(seconds - passed, pause)))
    found = load.result()
    answers = found.pop("answers")
    return {
        **found,
        "seconds": seconds,
        "changes": dict(changes.done),
        "changes failed": changes.failed,
        "failed": sum(count for status, count in found["statuses"].items() if status != "200"),
        "versions": len(answers),
        "inconsistent": inconsistent(shop, answers),
        "MB early": early,
        "MB after": server.anonymous(),
        "tracebacks": server.complaints(),
    }


def inconsistent(shop: Shop, answers: dict[str, dict[str, list[list[Any]]]]) -> list[str]:
    """Return, in words, the answers (by version, then crop: SKU, view, score) that are not their version's."""
    import numpy as np

    from skumatch.gallery import open_version
    from skumatch.images import load_pixels
    from skumatch.match import Matcher

    encoder = shop.encoder
    vectors = encoder.encode(np.stack([load_pixels(crop, encoder.spec) for crop in shop.crops]))
    wrong, gallery = [], None
    for version, by_crop in sorted(answers.items()):
        gallery = open_version(shop.gallery / version, reuse=gallery)
        right = [found[0] for found in Matcher(encoder, gallery).answers(vectors, 1)]
        for crop, seen in by_crop.items():
            best = right[int(crop)]
            wrong += [
                f"{version}, crop {crop}: {entry}, not {[best.sku, best.view, best.score]}"
                for entry in seen
                if entry[:2] != [best.sku, best.view] or abs(entry[2] - best.score) > CLOSE
            ]
    return wrong


def ended(server: Server, crops: Sequence[Path], seconds: float = 3.0) -> dict[str, Any]:
    """Send SIGTERM after ``seconds`` of load; return what became of the requests and how the service ended."""
    load = Load(server.port, crops, 60.0, clients=CLIENTS)
    time.sleep(seconds)
    code = server.stop()
    found = load.result()
    statuses = found["statuses"]
    return {
        "answered": found["answered"],
        "statuses": statuses,
        "lost": sum(count for status, count in statuses.items() if status.startswith(LOST)),
        "exit code": code,
        "tracebacks": server.complaints(),
    }


def killed(start: Start, crops: Sequence[Path], trials: int, seed: int = 0) -> dict[str, Any]:
    """SIGKILL the service while four clients change the gallery, ``trials`` times; return how many changes were
    acknowledged and which of them were gone after the next start."""
    rng, acknowledged, lost = random.Random(seed), 0, list[str]()
    for trial in range(trials):
        with start() as server:
            noted: dict[str, bool] = {}  # SKU -> whether it must be there
            writers = [
                threading.Thread(target=_write, args=(server, crops[0], f"kept-{trial}-{number}", noted))
                for number in range(4)
            ]
            for writer in writers:
                writer.start()
            goal, until = rng.randint(4, 20), time.monotonic() + 60
            while len(noted) < goal and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))  # about what a change takes: at any moment of it
            server.kill()
            for writer in writers:
                writer.join()
        acknowledged += len(noted)
        with start() as server:
            for sku, there in noted.items():
                status = server.ask("GET", f"/v1/skus/{sku}")[0]
                if status != (200 if there else 404):
                    lost.append(f"{sku}: {status}")
            server.stop()
    return {"trials": trials, "acknowledged": acknowledged, "lost": lost}


def _write(server: Server, crop: Path, name: str, noted: dict[str, bool]) -> None:
    """Make SKUs, and remove every third of them again, until nobody answers; note what was acknowledged."""
    data = crop.read_bytes()
    for number in range(10_000):
        sku = f"{name}-{number}"
        try:
            status, _ = server.ask("POST", f"/v1/views?sku={sku}", data + sku.encode())
            if 200 <= status < 300:
                noted[sku] = True
            if number % 3 == 2 and noted.pop(sku, False):  # from here on, until it is answered, it may be there or not
                status, _ = server.ask("DELETE", f"/v1/skus/{sku}")
                noted[sku] = not 200 <= status < 300
        except (OSError, http.client.HTTPException):
            return
