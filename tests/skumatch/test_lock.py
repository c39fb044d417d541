"""One writer at a time: the second waits, then learns who holds the lock; a dead holder holds nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from skumatch import lock
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, GalleryError, LockedError
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import Change, apply, create_from, write_segment
from skumatch.gallery_versions import prune
from skumatch.segment import NewView, columns

HOLD = """
import sys
from pathlib import Path
from skumatch import lock
with lock.writing(Path(sys.argv[1]), "import of 3 pictures"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(store: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of ``store`` until its input ends, and wait until it does."""
    command = [sys.executable, "-c", HOLD, str(store)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "held\n"
    return started


def test_the_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    store = tmp_path / "deep" / "store"
    for _ in range(2):
        with lock.writing(store, "test", wait=0):
            facts = json.loads((store / lock.FILE).read_text())
            assert (facts["pid"], facts["host"], facts["what"]) == (os.getpid(), socket.gethostname(), "test")
        assert (store / lock.FILE).read_bytes() == b""
    with pytest.raises(ZeroDivisionError), lock.writing(store, "failing", wait=0):
        _ = 1 / 0
    with lock.writing(store, "test", wait=0):
        pass


def test_the_second_writer_learns_who_is_writing(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        said = rf"{re.escape(str(tmp_path))} is being written by process {other.pid} on \S+ for \d+ s"
        with (
            pytest.raises(LockedError, match=said + r" \(import of 3 pictures\) - wait for it to end"),
            lock.writing(tmp_path, "mine", wait=0.1),
        ):
            pytest.fail("the lock was given twice")
        assert issubclass(LockedError, GalleryError)
        (tmp_path / lock.FILE).write_text("no facts")
        for text in ("no facts", "[]", "{}", ""):
            (tmp_path / lock.FILE).write_text(text)
            with pytest.raises(LockedError, match="written by another process -"), lock.writing(tmp_path, "x", wait=0):
                pytest.fail("the lock was given twice")
        other.communicate()
    with lock.writing(tmp_path, "mine", wait=0):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with lock.writing(tmp_path, "mine", wait=0):
        pass


def test_a_thread_waits_for_another(tmp_path: Path) -> None:
    entered, order = threading.Event(), []

    def second() -> None:
        entered.set()
        with lock.writing(tmp_path, "second", wait=60):
            order.append("second")

    thread = threading.Thread(target=second)
    with lock.writing(tmp_path, "first", wait=0):
        thread.start()
        entered.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match=r"cannot write .*LOCK"), lock.writing(tmp_path / "file", "x"):
        pytest.fail("a file is no folder")


def test_a_full_disk_can_be_locked_to_free_it(tiny_disk: Path) -> None:
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))
    with lock.writing(tiny_disk, "prune", wait=0):
        (tiny_disk / "filler").unlink()


def test_many_prepare_at_a_time_and_then_nothing_is_idle(tmp_path: Path) -> None:
    with lock.idle(tmp_path) as alone:
        assert alone
    with lock.preparing(tmp_path), lock.preparing(tmp_path), lock.idle(tmp_path) as alone:
        assert not alone
    with lock.idle(tmp_path) as alone:
        assert alone


def test_pieces_that_are_to_be_published_are_not_cleared_away(tmp_path: Path, encoder: Encoder) -> None:
    vector = np.eye(1, encoder.spec.dim, dtype=np.float32)[0]
    gallery = create_from(tmp_path / "g", encoder.spec, [NewView("a", "", "", b"", vector)])
    other = [NewView("b", "", "", b"", -vector)]
    with lock.preparing(gallery.store):
        segment = write_segment(gallery.store, encoder.spec.dim, [columns(other, encoder.spec.dim)])
        prune(gallery.store)
        gallery = apply(gallery, Change("add", (segment,)))
    assert list(gallery.skus) == ["a", "b"]
    orphan = write_segment(gallery.store, encoder.spec.dim, [columns([NewView("c", "", "", b"", vector)], 32)])
    prune(gallery.store)
    assert not (gallery.store / "segments" / orphan[0]).exists() and len(open_gallery(gallery.store, full=True)) == 2
