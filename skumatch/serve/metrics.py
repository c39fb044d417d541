"""What the service counts, for Prometheus. The one module that knows its library."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from skumatch.gallery_seam import AnyGallery
from skumatch.serve.batching import Told

TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All figures of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("skumatch_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.latency = self._seconds("skumatch_request_seconds", "From head to answer.", "route")
        said = "read: of a request; decode, queue: of a picture; encode, search: of a batch."
        self.stages = self._seconds("skumatch_stage_seconds", said, "stage")
        self.batches = Histogram("skumatch_batch_size", "Pictures per batch.", registry=registry, buckets=SIZES)
        self.decisions = Counter("skumatch_decisions", "Crops by decision.", ["decision"], registry=registry)
        self.refused = Counter("skumatch_refused", "Requests not taken on, by reason.", ["reason"], registry=registry)
        self.dropped = Counter("skumatch_dropped", "Pictures dropped: their deadline had passed.", registry=registry)
        self.queue = Gauge("skumatch_queue_pictures", "Pictures waiting or worked on.", registry=registry)
        self.reloads = Counter("skumatch_reloads", "Looks for a newer model or gallery.", ["result"], registry=registry)
        self.views = Gauge("skumatch_gallery_views", "Reference views of the gallery.", registry=registry)
        self.skus = Gauge("skumatch_gallery_skus", "SKUs of the gallery.", registry=registry)
        self.age = Gauge("skumatch_gallery_age_seconds", "Since the version was published.", registry=registry)
        self.info = Gauge(
            "skumatch_info", "1 for the model and version that answer.", ["model", "gallery"], registry=registry
        )
        self.lost = Counter("skumatch_reviews_lost", "Doubtful crops that could not be kept.", registry=registry)
        self.waiting = Gauge("skumatch_reviews_waiting", "Crops that wait for a verdict.", registry=registry)
        self._made = time.time()
        self.age.set_function(lambda: time.time() - self._made)

    def _seconds(self, name: str, about: str, label: str) -> Histogram:
        return Histogram(name, about, [label], registry=self.registry, buckets=SECONDS)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Note an answered request; ``route``: as the router has it, never what a client sent."""
        self.requests.labels(route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the queue's length when it is asked for."""
        self.queue.set_function(length)

    def batch(self, told: Told) -> None:
        """Note what became of a batch."""
        if told.size:
            self.batches.observe(told.size)
        if told.dropped:
            self.dropped.inc(told.dropped)
        queue = self.stages.labels("queue")
        for seconds in told.waited:
            queue.observe(seconds)

    def taken_up(self, model: str, gallery: AnyGallery) -> None:
        """Note which model and gallery answer from now on."""
        self._made = datetime.fromisoformat(gallery.made).timestamp()
        self.info.clear()
        self.info.labels(model, gallery.version).set(1)
        self.views.set(len(gallery))
        self.skus.set(len(gallery.skus))

    def render(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)
