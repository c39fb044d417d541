"""The engine on a Ray cluster: tasks decode wherever a core is free, one actor per device holds the model.

This process walks the source, hands out parts in waves and takes rows back in order; it publishes them as the plain
engine's. Workers read the source and the model themselves, so both must be visible to all of them. Nothing else
imports ray.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skumatch.bulk.parts import Piece, to_text
from skumatch.bulk.places import UNREAD, fetched
from skumatch.bulk.rows import PIECE
from skumatch.bulk.worker import PART, SAME, START, Embedder, Opening, checked, decoded
from skumatch.embed import Pipeline, cores
from skumatch.errors import ConfigError, DataError, DeviceError, ImageError, SkumatchError
from skumatch.model import open_bundle
from skumatch.spec import Spec

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from ray.data import Dataset

WAVE = 4096  # parts handed out at a time: a million files, whose names are in memory
RETRIES = 3  # of a task or actor whose process died
WHOLE: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}  # what an actor gave, as it is
BLOCK_BYTES = 32 << 20  # of pixels that travel together: many cores decode at a time
STORE = 1 << 30  # bytes of shared memory of a local cluster
INSTALL = 'pip install "skumatch[ray]"'
GOES_ON = "what is finished is kept: run it again, with fewer --workers if memory ran out"
INSIDE = "run the command on a machine of the cluster, with --ray auto"
NO_CLUSTER = "start one with `ray start --head`, give its HOST:PORT (and token), or use --ray local"


@dataclass(frozen=True)
class Cluster:
    """``address``: "local" (started here and stopped again), "auto" or HOST:PORT. ``workers``: actors with a model;
    0: one per GPU, or without GPUs one per four cores."""

    address: str = "local"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"{self.workers} workers are out of range", "give at least 1")


LOCAL, DEFAULT_PIPELINE = Cluster(), Pipeline()


@dataclass(frozen=True)
class Share:
    """What each actor gets of the cluster."""

    actors: int
    gpus: int
    threads: int


@dataclass(frozen=True)
class OnRay:
    """The engine on a cluster. ``spec``: what the driver found the model to be; workers refuse any other."""

    spec: Spec
    opening: Opening
    cluster: Cluster = LOCAL
    pipeline: Pipeline = DEFAULT_PIPELINE

    def __post_init__(self) -> None:
        _require_ray()

    def embed(self, pieces: Iterator[Piece], thumbs: bool) -> Generator[RecordBatch, None, None]:
        """Yield the rows of all pieces in order.

        Raises DeviceError for a cluster that is not there, too small or loses its workers, and what a worker raises.
        """
        waves = _waves(pieces)
        first = next(waves, None)
        if first is None:
            return  # nothing to do: no cluster is needed
        with _connected(self.cluster, self.opening.device) as share, _one_line(self.cluster):
            wave: list[dict[str, Any]] | None = first
            while wave is not None:
                for batch in self._embedded(wave, share, thumbs).iter_batches(**WHOLE):
                    for rows in batch.to_batches():
                        yield _seen(checked(rows))
                wave = next(waves, None)

    def _embedded(self, wave: list[dict[str, Any]], share: Share, thumbs: bool) -> Dataset:
        import ray

        threads = {"env_vars": {"OMP_NUM_THREADS": str(share.threads)}}  # two actors must not take all cores each
        pictures = _mapped(
            ray.data.from_items(wave, override_num_blocks=len(wave)),
            decoded,
            batch_size=1,
            fn_kwargs={"spec": self.spec, "thumbs": thumbs, "max_pixels": self.pipeline.max_pixels},
            num_cpus=1,
            max_retries=RETRIES,
        )
        return _mapped(
            pictures,
            Embedder,
            batch_size=self.pipeline.batch,
            fn_constructor_args=(self.opening, self.spec, self.pipeline.batch),
            compute=ray.data.ActorPoolStrategy(size=share.actors),
            num_cpus=0 if share.gpus else share.threads,
            num_gpus=share.gpus,
            runtime_env=threads,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )


def _mapped(rows: Dataset, work: Any, **how: Any) -> Dataset:
    with warnings.catch_warnings():  # it has no other way yet to bound how often a dead worker is started again
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        return rows.map_batches(work, batch_format="pyarrow", **how)


def _waves(pieces: Iterator[Piece]) -> Iterator[list[dict[str, Any]]]:
    """Yield the parts of ``pieces`` as rows for Ray, so many at a time; a piece is not divided."""
    wave: list[dict[str, Any]] = []
    for piece in pieces:
        both = zip(piece.parts, piece.starts, strict=True)
        wave += [{PIECE: piece.number, START: start, PART: to_text(part)} for part, start in both]
        if len(wave) >= WAVE:
            yield wave
            wave = []
    if wave:
        yield wave


def _seen(rows: RecordBatch) -> RecordBatch:
    """Return rows as they are. Raises DataError for a picture that is lacking where a worker runs, but not here.

    Otherwise a disk that one machine does not see would be written down as thousands of unreadable pictures.
    """
    failed = rows.filter(rows.column("error").is_valid()).select(["source", "error"])
    for row in failed.to_pylist():
        if row["error"].startswith(UNREAD):
            with suppress(ImageError):
                fetched(row["source"])
                what = f"a worker cannot read {row['source']}, which is there"
                raise DataError(what, "let every machine see the source, with credentials where it needs them")
    return rows


def spec_of(opening: Opening) -> Spec:
    """Return what workers will find the model to be: read from a bundle, or by opening it here. Raises ModelError."""
    if isinstance(opening.model, (str, Path)) and Path(opening.model).is_dir():
        return replace(open_bundle(Path(opening.model)).spec, precision=opening.precision or "fp32")
    return opening.open().spec


def _require_ray() -> None:
    """Raise ConfigError where the extra is not installed."""
    if find_spec("ray") is None or find_spec("ray.data") is None:
        raise ConfigError("--ray needs Ray, which is not installed", INSTALL)


@contextmanager
def _connected(cluster: Cluster, device: str) -> Iterator[Share]:
    """Start or join the cluster while the block runs; one that this process has joined already stays joined."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by the cluster that is started
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns that this will be so
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ part writes into the progress bar
    import ray

    owned = not ray.is_initialized()
    if owned:
        _start(cluster)
    try:
        with _quiet():
            yield _share(cluster if owned else replace(cluster, address="auto"), device)
    finally:
        if owned:
            ray.shutdown()


def _start(cluster: Cluster) -> None:
    import ray

    silent: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address == "local":
        cpus = cores() + max(cores(), cluster.workers)  # actors wait for what tasks decode on the same cores
        ray.init("local", num_cpus=cpus, object_store_memory=STORE, include_dashboard=False, **silent)
        return
    _require_listening(cluster.address)
    try:
        ray.init(cluster.address, **silent)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise DeviceError(f"no Ray cluster at {cluster.address} ({_first_line(error)})", NO_CLUSTER) from error


def _require_listening(address: str) -> None:
    """Raise DeviceError where nothing listens: Ray itself would go on trying for a minute."""
    if address.startswith("ray://"):  # rows cannot be iterated over through it
        raise DeviceError("Ray Data does not run through Ray's client", INSIDE)
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        if address != "auto":
            raise DeviceError(f"'{address}' is no address of a Ray cluster", NO_CLUSTER)
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise DeviceError(f"no Ray cluster at {address} ({_first_line(error)})", NO_CLUSTER) from error


def _share(cluster: Cluster, device: str) -> Share:
    """Return how many actors there are and what each gets. Raises DeviceError for a cluster that is too small."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = 0 if device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if gpus or device.startswith("cuda"):
        if max(1, cluster.workers) > gpus:
            raise DeviceError(f"the cluster has {gpus} GPUs", "ask for fewer --workers, or give --device cpu")
        return Share(cluster.workers or gpus, 1, 1)
    decoding = cores() if cluster.address == "local" else max(1, sum(cpus) // 4)
    actors = cluster.workers or max(1, (sum(cpus) - decoding) // 4)
    threads = max(0, sum(cpus) - decoding) // actors
    while threads and sum(there // threads for there in cpus) < actors:  # each must fit on one machine
        threads -= 1
    if not threads:
        what = f"{sum(cpus)} CPUs of the cluster are too few for {actors} workers and one that decodes"
        raise DeviceError(what, "ask for fewer --workers, or add machines")
    return Share(actors, 0, threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep rows in order, and Ray's own bars and logs off the terminal, while the block runs."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _one_line(cluster: Cluster) -> Iterator[None]:
    """Turn what goes wrong inside Ray into one SkumatchError; what workers have to say comes with their rows."""
    from ray.exceptions import RayError

    try:
        yield
    except SkumatchError:
        raise
    except (RayError, ConnectionError, ImportError) as error:
        own = getattr(error, "cause", None) or error  # Ray wraps what a worker raised
        if isinstance(own, ImportError):
            raise DeviceError(f"a worker lacks a package ({_first_line(own)})", SAME) from error
        raise DeviceError(f"Ray gave up at {cluster.address} ({_first_line(own)})", GOES_ON) from error


def _first_line(error: BaseException) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
