"""SIGKILL, a second writer, and readers in other processes: a gallery is the old version or the new one, and whole."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skumatch import lock
from skumatch.errors import ArtefactError, LockedError
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import add_views, remove_views, set_facts
from skumatch.gallery_compact import compact
from skumatch.gallery_versions import prune
from tests.skumatch.crash_operations import OPERATIONS
from tests.skumatch.crash_trials import Bench, Kill, judge, left_over
from tests.skumatch.crash_worker import ROOT
from tests.skumatch.gallery_oracle import fingerprint, views_of

TRIALS = 130
HOLD = """
import sys
from pathlib import Path
from skumatch import lock
with lock.writing(Path(sys.argv[1]), "a long import"):
    print("held", flush=True)
    sys.stdin.read()
"""
READ = """
import sys
from pathlib import Path
from skumatch.gallery import open_gallery
from tests.skumatch.gallery_oracle import fingerprint
gallery = open_gallery(Path(sys.argv[1]))
print("open", flush=True)
while not Path(sys.argv[2]).exists():
    gallery = gallery.refreshed()
    print(gallery.version, fingerprint(gallery), flush=True)
"""
ADD = """
import sys
from pathlib import Path
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import add_views
from tests.skumatch.gallery_oracle import views_of
gallery = open_gallery(Path(sys.argv[1]))
for step in range(12):
    gallery = add_views(gallery, views_of([f"one-{step}", f"two-{step}"], 3_000 + 10 * step))
    print(gallery.version, flush=True)
"""


def started(text: str, *arguments: Path) -> subprocess.Popen[str]:
    """Start Python with the program ``text``."""
    command = [sys.executable, "-c", text, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["add", "import", "prune"])
def test_a_kill_at_the_last_steps_leaves_the_old_or_the_new(operation: str, bench: Bench) -> None:
    """The import's very last step comes after it was published: run again, it must not add the same views twice."""
    events = bench.usual(operation).events
    states = []
    for at in (events // 2, *range(events - 2, events + 1)):
        verdict = bench.trial(Kill(operation, at, -1.0))
        assert verdict.killed and not verdict.done
        assert verdict.state in ("old", "new") and not verdict.lost, verdict
        states.append(verdict.state)
    assert states == sorted(states, key=["old", "new"].index)


def test_what_was_acknowledged_is_there_after_a_kill(bench: Bench) -> None:
    verdict = bench.trial(Kill("facts", 0, 20 * bench.usual("facts").seconds + 1))
    assert (verdict.killed, verdict.done, verdict.state) == (True, True, "new"), verdict


@pytest.mark.slow
def test_kills_at_every_step_and_at_random_moments(bench: Bench) -> None:
    verdicts = [bench.trial(kill) for kill in bench.kills(TRIALS, seed=1)]
    assert sum(verdict.killed for verdict in verdicts) == TRIALS
    assert {verdict.kill.operation for verdict in verdicts} == set(OPERATIONS)
    assert not [verdict for verdict in verdicts if verdict.state == "inconsistent" or verdict.lost]
    assert {"old", "new"} == {verdict.state for verdict in verdicts}


def test_a_judge_sees_what_is_wrong(bench: Bench) -> None:
    """A lost change, a mixture of versions and a leftover are called so."""
    past = bench.past
    store = bench.copy("add")
    add_views(open_gallery(store), views_of(["sku-1"], 999))
    state, why = judge(store, past, "add")
    assert state == "inconsistent" and "ids are" in why
    store = bench.copy("facts")
    set_facts(open_gallery(store), {"sku-1": {"title": "Wrong"}})
    state, why = judge(store, past, "facts")
    assert state == "inconsistent" and "the facts are" in why
    store = bench.copy("remove")
    (store / "segments" / ".junk").mkdir()
    assert judge(store, past, "remove") == ("inconsistent", "junk: ['segments/.junk']")
    store = bench.copy("remove")
    next((store / "segments").glob("*/thumbs.bin")).write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"thumbs\.bin"):
        judge(store, past, "remove")


def test_a_second_writer_is_told_who_writes(bench: Bench) -> None:
    store = bench.copy("add")
    with started(HOLD, store) as holder:
        assert line_of(holder) == "held"
        who = rf"process {holder.pid} on {re.escape(socket.gethostname())} for \d+ s \(a long import\)"
        refused = pytest.raises(LockedError, match=rf"{re.escape(str(store))} is being written by {who} - wait for it")
        with refused, lock.writing(store, "mine", wait=0.1):
            pytest.fail("two writers")
        assert len(open_gallery(store)) == len(bench.past.world.views)  # reading needs no lock
        holder.send_signal(signal.SIGKILL)
    assert (store / lock.FILE).read_text()  # what the dead one had signed
    with lock.writing(store, "mine", wait=0.1):
        assert json.loads((store / lock.FILE).read_text())["what"] == "mine"
    assert (store / lock.FILE).read_text() == ""


@pytest.mark.slow
def test_a_change_waits_for_the_lock_and_then_gives_up(bench: Bench) -> None:
    store = bench.copy("add")
    gallery = open_gallery(store)
    with started(HOLD, store) as holder:
        assert line_of(holder) == "held"
        with pytest.raises(LockedError, match="a long import"):
            remove_views(gallery, [1])
        assert holder.stdin is not None
        holder.stdin.close()
    assert open_gallery(store).version == gallery.version
    assert len(remove_views(gallery, [1])) == len(gallery) - 1


def test_readers_elsewhere_see_one_version_at_a_time(bench: Bench, tmp_path: Path) -> None:
    """While versions come and old ones are pruned under the readers."""
    store, stop = bench.copy("add"), tmp_path / "stop"
    gallery = open_gallery(store)
    expected = {gallery.version: fingerprint(gallery)}
    with started(READ, store, stop) as one, started(READ, store, stop) as other:
        readers = (one, other)
        assert [line_of(reader) for reader in readers] == ["open", "open"]
        for step in range(12):
            if step % 3 == 0:
                gallery = add_views(gallery, views_of(["sku-1", f"new-{step}"], 2_000 + 10 * step))
            elif step % 3 == 1:
                gallery = remove_views(gallery, gallery.ids[:1].tolist())
            else:
                gallery = compact(gallery, full=True)
            expected[gallery.version] = fingerprint(gallery)
            prune(store, keep=1)
        seen = [lines_up_to(gallery.version, reader) for reader in readers]
        stop.touch()
        for lines, reader in zip(seen, readers, strict=True):
            lines.update((reader.communicate()[0] or "").splitlines())
            assert reader.returncode == 0
    for lines in seen:
        answers = [line.split() for line in lines]
        assert [version for version, answer in answers if answer != expected[version]] == []
        assert gallery.version in {version for version, _ in answers}


def lines_up_to(version: str, reader: subprocess.Popen[str]) -> set[str]:
    """Return what a reader says until it has seen ``version``, or has had ample time for it."""
    lines, until = set[str](), time.monotonic() + 120
    while time.monotonic() < until:
        lines.add(line_of(reader))
        if any(line.startswith(version) for line in lines):
            break
    return lines


@pytest.mark.slow
def test_additions_beside_prunes_lose_nothing(bench: Bench) -> None:
    """A prune must not take what another process has written and not yet published."""
    store = bench.copy("add")
    with started(ADD, store) as writer:
        while writer.poll() is None:
            prune(store, keep=1)
        published = (writer.communicate()[0] or "").split()
        assert writer.returncode == 0 and len(published) == 12
    prune(store, keep=1)
    gallery = open_gallery(store, full=True)
    assert gallery.version == published[-1] and len(gallery) == len(bench.past.world.views) + 24
    assert not left_over(gallery)
