"""The engine on Ray: a real local cluster gives the plain engine's rows, survives being killed, and fails in one line.

Each job runs in a process group of its own, as a user's would.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL.Image import Image
from pyarrow import parquet

from skumatch.bulk.cluster import WAVE, Cluster, OnRay, Share, _seen, _share, _waves, spec_of
from skumatch.bulk.parts import Files, Piece, Tar, to_text
from skumatch.bulk.worker import Embedder, Opening, checked, decoded
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, DataError, DeviceError, ModelError, SpecMismatch
from skumatch.model import Contents, save_bundle
from skumatch.runtime.torch import make_spec
from skumatch.towers.build import ModelSource, build

SKUS, VIEWS, SHARD = 12, 25, 4
LOST = """
import os, sys
from pathlib import Path
from skumatch.bulk.run import embed_source
from skumatch.bulk.cluster import Cluster, OnRay, spec_of
from skumatch.bulk.sources import BulkOptions
from skumatch.bulk.worker import Opening
from skumatch.errors import SkumatchError
class Dying(Opening):
    def open(self):
        os._exit(1)
class Lacking(Opening):
    def open(self):
        import a_package_that_is_not_there
model, photos, out, kind = sys.argv[1:]
opening = {"dying": Dying, "lacking": Lacking}[kind](Path(model), "cpu", "torch")
engine = OnRay(spec_of(Opening(Path(model))), opening, Cluster("local", 1))
try:
    embed_source(photos, Path(out), engine, BulkOptions(100))
except SkumatchError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small network with random weights as a bundle, which other processes can open."""
    tower = build(ModelSource("timm:test_efficientnet", random_init=True, size=32))
    store = tmp_path_factory.mktemp("bundle") / "model"
    save_bundle(store, tower, None, make_spec(tower), Contents({}, tower.model.state_dict()))
    return store


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, draw_view: Callable[[int, int], Image]) -> Path:
    """Return a folder of 300 pictures and one that is none."""
    root = tmp_path_factory.mktemp("photos")
    for sku in range(SKUS):
        (root / f"sku-{sku:02d}").mkdir()
        for view in range(VIEWS):
            draw_view(sku, view).save(root / f"sku-{sku:02d}" / f"{view:02d}.png")
    (root / "sku-05" / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return root


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a command in a process group of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, *map(str, words)]
        said, log = tmp_path / f"out-{len(started)}", tmp_path / f"err-{len(started)}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with said.open("w") as out, log.open("w") as err:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, text=True, start_new_session=True, env=environment
            )
        started.append(process)
        return process

    yield start
    for process in started:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """End a job as a power failure would: itself, its group, and what Ray started for it elsewhere."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def embed(photos: Path, out: Path, model: Path, *more: str) -> list[str | Path]:
    words = ["--model", str(model), "--runtime", "torch", "--device", "cpu", "--shard-rows", str(SHARD), "--json"]
    return ["-m", "skumatch.cli.app", "embed", photos, "--out", out, "--sku-from", "folder", "--thumbs", *words, *more]


def table(out: Path) -> Any:
    return pa.concat_tables([parquet.read_table(path) for path in sorted(out.glob("shard-*.parquet"))])


def compare(one: Any, other: Any) -> float:
    """Return the smallest cosine between the vectors of two tables that are the same in all else."""
    names = [name for name in one.column_names if name != "vector"]
    assert one.select(names).equals(other.select(names))
    assert one["row"].to_pylist() == list(range(len(one)))
    pairs = zip(one["vector"].to_pylist(), other["vector"].to_pylist(), strict=True)
    cosines = [float(np.dot(a, b)) for a, b in pairs if a is not None and b is not None]
    assert len(cosines) == SKUS * VIEWS and one["vector"].null_count == other["vector"].null_count == 1
    return min(cosines)


@pytest.mark.slow
def test_a_killed_job_on_ray_goes_on_to_the_plain_rows(
    model: Path, photos: Path, tmp_path: Path, apart: Callable[..., subprocess.Popen[str]]
) -> None:
    plain = apart(*embed(photos, tmp_path / "plain", model))
    assert plain.wait() == 0, (tmp_path / "err-0").read_text()
    command = embed(photos, tmp_path / "ray", model, "--ray", "local", "--workers", "2")
    first = apart(*command)
    until = time.monotonic() + 300
    while not list((tmp_path / "ray").glob("shard-*")) and first.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    kill(first)
    done = len(list((tmp_path / "ray").glob("shard-*")))
    assert 0 < done < 76, (tmp_path / "err-1").read_text()
    assert not (tmp_path / "ray" / "done.json").exists()
    second = apart(*command)
    second.wait()
    errors = (tmp_path / "err-2").read_text()
    assert second.returncode == 0, errors
    report = json.loads((tmp_path / "out-2").read_text())
    assert report == {**report, "pictures": 301, "unreadable": 1, "shards": 76, "resumed": done * SHARD}
    assert compare(table(tmp_path / "plain"), table(tmp_path / "ray")) >= 0.99999
    assert "Traceback" not in errors and "WARN" not in errors and "(raylet)" not in errors
    assert not list((tmp_path / "ray").glob(".*tmp"))


@pytest.mark.slow
def test_a_worker_that_dies_once_costs_nothing(
    model: Path, photos: Path, tmp_path: Path, apart: Callable[..., subprocess.Popen[str]]
) -> None:
    """The actor is started again and its batches are done again; each picture is there once."""
    job = apart(*embed(photos, tmp_path / "out", model, "--ray", "local", "--workers", "1"))
    killed = False
    while job.poll() is None and not killed:
        for child in psutil.Process(job.pid).children(recursive=True):
            try:
                if "Embedder" in " ".join(child.cmdline()):
                    child.kill()
                    killed = True
                    break
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.01)
    job.wait()
    assert killed and job.returncode == 0, (tmp_path / "err-0").read_text()
    assert json.loads((tmp_path / "out-0").read_text())["pictures"] == 301
    found = table(tmp_path / "out")
    assert found["row"].to_pylist() == list(range(301)) and found["vector"].null_count == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [("dying", "Ray gave up at local (ActorDiedError"), ("lacking", "lacks a package (No module named")],
)
def test_workers_that_never_work_are_one_line(
    kind: str, said: str, model: Path, photos: Path, tmp_path: Path, apart: Callable[..., subprocess.Popen[str]]
) -> None:
    job = apart("-c", LOST, model, photos, tmp_path / "out", kind)
    assert job.wait() == 2
    lines = [line for line in (tmp_path / "err-0").read_text().splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and said in lines[0] and "Traceback" not in lines[0]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", r"no Ray cluster at 127.0.0.1:1 \(ConnectionRefusedError"),
        ("ray://127.0.0.1:1", "does not run through Ray's client - run the command on a machine of the cluster"),
        ("nowhere", "'nowhere' is no address of a Ray cluster"),
        ("127.0.0.1:99999", "no Ray cluster at"),
    ],
)
def test_a_wrong_address_is_one_line(address: str, said: str, encoder: Encoder) -> None:
    pytest.importorskip("ray")
    engine = OnRay(encoder.spec, Opening("fake"), Cluster(address))
    piece = Piece(0, "", 1, (Files((("/a.png", None),)),), (0,))
    with pytest.raises(DeviceError, match=said):
        next(engine.embed(iter([piece]), thumbs=False))


def test_nothing_to_do_needs_no_cluster(encoder: Encoder) -> None:
    pytest.importorskip("ray")
    assert list(OnRay(encoder.spec, Opening("fake"), Cluster("127.0.0.1:1")).embed(iter([]), thumbs=False)) == []
    with pytest.raises(ConfigError, match="-1 workers"):
        Cluster("local", -1)


def test_a_picture_that_only_a_worker_lacks_stops_the_job(photos: Path) -> None:
    """It is no unreadable picture: that machine does not see the disk."""
    there, gone = str(photos / "sku-00" / "00.png"), str(photos / "gone.png")
    why = "cannot be read (No such file or directory) - check"

    def rows(sources: list[str], errors: list[str | None]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"source": sources, "error": pa.array(errors, pa.string())})

    fine = rows([there, gone, there], [None, why, "corrupt or truncated jpeg"])
    assert _seen(fine) is fine
    with pytest.raises(DataError, match=r"a worker cannot read .*00.png, which is there - let every machine see"):
        _seen(rows([gone, there], [why, why]))


def test_waves_are_bounded_and_do_not_divide_pieces() -> None:
    def pieces() -> Iterator[Piece]:
        for number in range(1000):
            parts = tuple(Files(((f"/{number}-{part}", None),)) for part in range(7))
            yield Piece(number, "", 7, parts, tuple(range(7)))

    waves = list(_waves(pieces()))
    assert [len(wave) for wave in waves] == [4102, 2898] and WAVE == 4096
    assert [row["piece"] for wave in waves for row in wave] == [number for number in range(1000) for _ in range(7)]


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": one} for one in resources])


@pytest.mark.parametrize(
    ("cpus", "workers", "share"),
    [
        ([16], 0, Share(3, 0, 4)),
        ([16], 6, Share(6, 0, 2)),
        ([2, 2], 0, Share(1, 0, 2)),
        ([2, 2, 2, 2], 3, Share(3, 0, 2)),
        ([8, 8], 4, Share(4, 0, 3)),
    ],
)
def test_how_cpus_are_shared(cpus: list[int], workers: int, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every actor fits on one machine, and some cores are left to decode."""
    nodes(monkeypatch, *({"CPU": float(one)} for one in cpus))
    assert _share(Cluster("auto", workers), "auto") == share


def test_how_gpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 2.0})
    assert _share(Cluster("auto"), "auto") == Share(6, 1, 1)
    assert _share(Cluster("auto", 2), "cuda") == Share(2, 1, 1)
    assert _share(Cluster("auto", 2), "cpu").gpus == 0
    with pytest.raises(DeviceError, match="the cluster has 6 GPUs - ask for fewer --workers"):
        _share(Cluster("auto", 7), "auto")
    nodes(monkeypatch, {"CPU": 2.0})
    with pytest.raises(DeviceError, match="the cluster has 0 GPUs"):
        _share(Cluster("auto"), "cuda")
    with pytest.raises(DeviceError, match="2 CPUs of the cluster are too few for 4 workers"):
        _share(Cluster("auto", 4), "auto")


def test_the_driver_knows_what_workers_will_open(model: Path) -> None:
    """Without opening the network; the precision asked for is noted."""
    for precision in ("fp32", "bf16"):
        opening = Opening(model, "cpu", "torch", precision)
        assert spec_of(opening) == opening.open().spec


def test_a_worker_by_itself(model: Path, photos: Path) -> None:
    """Decoding hands on blocks; the embedder gives the encoder's vectors, and what is unreadable stays null."""
    opening = Opening(model, "cpu", "torch")
    spec = spec_of(opening)
    paths = tuple((str(path), "s") for path in sorted((photos / "sku-05").iterdir()) * 4)
    part = pa.table({"piece": [3], "start": [7], "part": [to_text(Files(paths))]})
    blocks = list(decoded(part, spec, thumbs=True, max_pixels=10**6))
    assert [len(block) for block in blocks] == [64, 40]
    given = Embedder(opening, spec, batch=8)(pa.concat_tables(blocks))
    rows = checked(given.combine_chunks().to_batches()[0])
    assert rows.column("at").to_pylist() == list(range(7, 111)) and rows.column("error").null_count == 100
    assert rows.column("vector").null_count == 4 and rows.schema.names == [*blocks[0].schema.names[:7], "vector"]


def test_what_must_stop_the_job_travels_as_a_row(
    model: Path, photos: Path, make_encoder: Callable[[int], Encoder]
) -> None:
    spec = spec_of(Opening(model))
    part = pa.table(
        {"piece": [0], "start": [0], "part": [to_text(Files(((str(photos / "sku-00" / "00.png"), None),)))]}
    )
    block = next(decoded(part, spec, thumbs=False, max_pixels=10**6))
    for opening, wanted, kind, said in (
        (Opening("nowhere"), spec, ModelError, "model folder nowhere does not exist"),
        (Opening(model, "cpu", "torch"), make_encoder(0).spec, SpecMismatch, "is not the one that was opened here"),
    ):
        stopped = Embedder(opening, wanted, batch=8)(block)
        with pytest.raises(kind, match=said):
            checked(stopped.to_batches()[0])
    gone = pa.table({"piece": [0], "start": [0], "part": [to_text(Tar("/nowhere.tar"))]})
    block = next(decoded(gone, spec, thumbs=False, max_pixels=10**6))
    rows = Embedder(Opening(model, "cpu", "torch"), spec, batch=8)(block)
    with pytest.raises(DataError, match=r"/nowhere.tar cannot be read"):
        checked(rows.to_batches()[0])
