"""How many requests the service answers and how soon, against matching files with the same model in one process."""

from __future__ import annotations

import statistics
import time
from typing import Any

from service_process import Load, Server
from service_space import Space

ROUNDS, TURN = 5, 12.0  # turns of each kind, and about how many seconds each lasts
APART = 90.0  # seconds of requests at random moments
TARGET = "/v1/match?k=5"


def rates(space: Space, server: Server, quick: bool) -> dict[str, Any]:
    """Measure matching of files and of requests in turns; then one client alone, and requests at random moments."""
    rounds, turn, apart = (1, 1.5, 3.0) if quick else (ROUNDS, TURN, APART)

    def asked(seconds: float, **how: Any) -> dict[str, Any]:
        return Load(server.port, space.crops, seconds, target=TARGET, **how).result()

    files = Files(space)
    asked(turn / 2)
    count = max(64, round(files.rate(128) * turn))
    matched, served = [], []
    for _ in range(rounds):
        matched.append(files.rate(count))
        served.append(asked(turn))
    rate = statistics.median(one["rate"] for one in served)
    single = asked(turn, clients=1)
    before = server.busy()
    half = asked(apart, rate=rate / 2)
    return {
        "model": files.model,
        "files/s": statistics.median(matched),
        "requests/s": rate,
        "fraction": rate / statistics.median(matched),
        "turns": {"files/s": matched, "requests/s": [one["rate"] for one in served]},
        "load": statistics.median(one["load"] for one in served),
        "16 clients": served[-1],
        "single ms": single["p50 ms"],
        "half the rate": {**half, "asked a second": rate / 2, "service's share": (server.busy() - before) / apart},
        "failed": sum(failed(one) for one in (*served, single, half)),
        "tracebacks": server.complaints(),
    }


class Files:
    """Matching of files with the service's model, in this process."""

    def __init__(self, space: Space) -> None:
        from skumatch.embed import Pipeline
        from skumatch.gallery import open_gallery
        from skumatch.match import Matcher

        self.matcher = Matcher(space.encoder(), open_gallery(space.gallery), Pipeline())
        self.model = self.matcher.encoder.spec.name
        self.crops = space.crops

    def rate(self, count: int) -> float:
        """Return crops/s of matching ``count``."""
        crops = [self.crops[place % len(self.crops)] for place in range(count)]
        begun = time.perf_counter()
        for _ in self.matcher.stream(crops, 5):
            pass
        return count / (time.perf_counter() - begun)


def failed(load: dict[str, Any]) -> int:
    """Return how many requests were not answered with 200."""
    return sum(count for status, count in load["statuses"].items() if status != "200")
