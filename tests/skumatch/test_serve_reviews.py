"""Crops kept for review: limits, verdicts, kills, and the routes to them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from hashlib import sha256
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from starlette.testclient import TestClient

from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError
from skumatch.serve.problems import Problem
from skumatch.serve.reviews import DAY, Reviews, Verdict
from skumatch.serve.settings import Settings
from tests.skumatch.serving import Clock, client, make_gallery, make_service

FACTS: dict[str, Any] = {
    "name": "crop.png",
    "probability": 0.4,
    "candidates": [{"sku": "sku-1", "score": 0.8, "view": 5}, {"sku": "sku-2", "score": 0.7, "view": 9}],
    "model": "0" * 64,
    "gallery": "v000001",
}
NUMBERS = count()
Open = Callable[..., Reviews]


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """Return what opens the test's file."""
    held = []

    def made(**settings: Any) -> Reviews:
        held.append(Reviews(tmp_path / "state" / "reviews.db", Settings(**settings), clock))
        return held[-1]

    yield made
    for reviews in held:
        reviews.close()


def kept(reviews: Reviews, crop: bytes = b"", facts: dict[str, Any] = FACTS) -> str:
    made = reviews.keep(crop or f"crop {next(NUMBERS)}".encode(), "review", facts)
    assert made is not None
    return made


def waiting(reviews: Reviews) -> list[str]:
    return [one.id for one in reviews.pending(1000)]


def test_what_is_kept_comes_back(opened: Open, tmp_path: Path) -> None:
    reviews = opened()
    made = kept(reviews, b"picture")
    for again in (reviews, opened()):
        found = again.get(made)
        nothing = dict.fromkeys(("session", "until", "verdict", "sku", "who", "judged", "state", "change"))
        assert asdict(found) == {
            "number": 1,
            "id": made,
            "sha256": sha256(b"picture").hexdigest(),
            "kept": 1_000_000.0,
            "bytes": 7,
            "decision": "review",
            "facts": FACTS,
            **nothing,
        }
        assert again.crop(made) == b"picture" and again.pending(5) == [found] and again.waiting() == 1
        assert list(again.verdicts()) == []
    assert re.fullmatch("[0-9a-f]{32}", made)
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_pages(opened: Open) -> None:
    reviews = opened()
    made = [kept(reviews) for _ in range(7)]
    reviews.verdict(made[2], "reject", "", "eva")
    first = reviews.pending(3)
    rest = reviews.pending(9, first[-1].number)
    assert [one.id for one in (*first, *rest)] == made[:2] + made[3:] and reviews.waiting() == 6


@pytest.mark.parametrize(
    ("verdict", "sku", "kept_sku"),
    [("accept", "", "sku-1"), ("accept", "sku-1", "sku-1"), ("correct", "sku-2", "sku-2"), ("correct", "tea", "tea"),
     ("new", "", None), ("new", "tea", "tea"), ("reject", "", None)],
)  # fmt: skip
def test_verdicts(opened: Open, clock: Clock, verdict: Verdict, sku: str, kept_sku: str | None) -> None:
    reviews = opened()
    made = kept(reviews)
    clock.now += 60
    judged = reviews.verdict(made, verdict, sku, "eva")
    assert (judged.verdict, judged.sku, judged.who, judged.judged) == (verdict, kept_sku, "eva", clock.now)
    assert list(opened().verdicts()) == [judged] == list(reviews.verdicts()) and waiting(reviews) == []
    for other in ("accept", "reject"):
        with pytest.raises(Problem, match=f"has the verdict {verdict} by eva") as refused:
            reviews.verdict(made, other, "", "tom")
        assert refused.value.status == 409
    assert reviews.get(made) == judged


@pytest.mark.parametrize(("verdict", "sku"), [("accept", "sku-2"), ("correct", ""), ("reject", "sku-1")])
def test_verdicts_that_do_not_fit(opened: Open, verdict: Verdict, sku: str) -> None:
    reviews = opened()
    made = kept(reviews)
    with pytest.raises(Problem) as refused:
        reviews.verdict(made, verdict, sku, "eva")
    assert refused.value.status == 422 and reviews.get(made).verdict is None


def test_nothing_to_accept(opened: Open) -> None:
    reviews = opened()
    made = kept(reviews, facts={**FACTS, "candidates": []})
    with pytest.raises(Problem, match="best candidate is ''"):
        reviews.verdict(made, "accept", "", "eva")
    assert reviews.verdict(made, "new", "", "eva").verdict == "new"


def test_unknown_crops(opened: Open) -> None:
    reviews = opened()
    calls: list[Callable[[], object]] = [
        lambda: reviews.get("0" * 32),
        lambda: reviews.crop("' OR 1=1 --"),
        lambda: reviews.verdict("", "reject", "", "eva"),
    ]
    for call in calls:
        with pytest.raises(Problem) as refused:
            call()
        assert refused.value.status == 404


def test_of_two_at_once_one_is_first(opened: Open) -> None:
    reviews = opened()
    made = [kept(reviews) for _ in range(10)]
    start, said = threading.Barrier(4), list[str]()

    def judge(who: str) -> None:
        start.wait()
        for crop in made:
            try:
                said.append(f"{crop} {reviews.verdict(crop, 'reject', '', who).who}")
            except Problem as error:
                assert error.status == 409

    threads = [threading.Thread(target=judge, args=(f"judge-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == sorted(f"{one.id} {one.who}" for one in reviews.verdicts()) and len(said) == 10


def test_the_oldest_without_a_verdict_go_first(opened: Open) -> None:
    reviews = opened(review_limit=4)
    made = [kept(reviews) for _ in range(4)]
    reviews.verdict(made[0], "reject", "", "eva")
    reviews.verdict(made[2], "accept", "", "eva")
    more = [kept(reviews) for _ in range(3)]
    assert waiting(reviews) == more[1:] and [one.id for one in reviews.verdicts()] == [made[0], made[2]]


def test_bytes_are_limited(opened: Open) -> None:
    reviews = opened(review_megabytes=0.001)
    made = [kept(reviews, bytes([n] * 300)) for n in range(5)]
    assert waiting(reviews) == made[2:]
    big = kept(reviews, bytes(900))
    assert waiting(reviews) == [big]
    assert reviews.keep(bytes(1001), "review", FACTS) is None and waiting(reviews) == []


def test_a_verdict_never_goes_for_room(opened: Open) -> None:
    reviews = opened(review_limit=2)
    made = [kept(reviews) for _ in range(2)]
    for crop in made:
        reviews.verdict(crop, "new", "", "eva")
    assert reviews.keep(b"x", "review", FACTS) is None and [one.id for one in reviews.verdicts()] == made


def test_crops_and_verdicts_grow_old(opened: Open, clock: Clock) -> None:
    reviews = opened(review_days=30)
    old, judged = kept(reviews), kept(reviews)
    clock.now += 29 * DAY
    reviews.verdict(judged, "accept", "", "eva")
    young = kept(reviews)
    clock.now += 2 * DAY
    assert waiting(reviews) == [young] and reviews.waiting() == 1 and [one.id for one in reviews.verdicts()] == [judged]
    with pytest.raises(Problem, match=old):
        reviews.crop(old)
    clock.now += 27.5 * DAY
    assert [one.id for one in reviews.verdicts()] == [judged] and waiting(reviews) == [young]
    clock.now += DAY
    assert list(reviews.verdicts()) == [] == waiting(reviews)
    last = kept(reviews)
    with sqlite3.connect(reviews.path) as raw:
        assert raw.execute("SELECT id FROM crops").fetchall() == [(last,)]
    raw.close()


def test_big_crops_are_kept_smaller(opened: Open) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 1400, 3), np.uint8)
    buffer = BytesIO()
    PILImage.fromarray(noise).save(buffer, "PNG")
    reviews = opened()
    made = reviews.crop(kept(reviews, buffer.getvalue()))
    assert len(buffer.getvalue()) > 1_000_000 > len(made)
    with PILImage.open(BytesIO(made)) as picture:
        assert picture.format == "JPEG" and picture.size == (1024, 512)


def test_a_name_that_is_no_text(opened: Open) -> None:
    reviews = opened()
    assert reviews.get(kept(reviews, facts={**FACTS, "name": "a\udce9\ud800"})).facts["name"].isprintable()


def test_a_file_that_is_none_of_ours(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "state" / "reviews.db"
    opened().close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE format SET version = 1")
    raw.close()
    with pytest.raises(ArtefactError, match="written by another version"):
        opened()
    for name in ("reviews.db-wal", "reviews.db-shm"):
        (path.parent / name).unlink(missing_ok=True)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ArtefactError, match="cannot be used"):
        opened()


def test_a_full_disk_is_said_and_changes_nothing(tiny_disk: Path) -> None:
    reviews = Reviews(tiny_disk / "reviews.db", Settings())
    made = kept(reviews)
    with pytest.raises(ArtefactError, match="full"):
        for _ in range(20):
            reviews.keep(os.urandom(200_000), "review", FACTS)
    assert made in waiting(reviews)
    reviews.close()


def test_what_cannot_be_kept_is_answered(
    patterns: Path, encoder: Encoder, tmp_path: Path, tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tiny_disk, reviews=True)
    with client(service) as api:
        (tiny_disk / "filler").write_bytes(b"0" * shutil.disk_usage(tiny_disk).free)
        picture = (patterns / "test" / "sku-1" / "4.png").read_bytes()
        answer = api.post("/v1/match", content=picture, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200
        (result,) = answer.json()["results"]
        assert result["decision"] == "review" and result["matches"] and result["review"] is None
        assert "skumatch_reviews_lost_total 1.0" in api.get("/metrics").text
    assert "a crop was not kept for review" in caplog.text


JUDGE = """
import itertools
import sys
from pathlib import Path
from skumatch.serve.reviews import Reviews
from skumatch.serve.settings import Settings
from tests.skumatch.serving import client, make_gallery, make_service
reviews = Reviews(Path(sys.argv[1]), Settings())
facts, count = {"candidates": [{"sku": "sku-1"}]}, itertools.count()
while True:
    made = reviews.keep(b"crop of " + str(next(count)).encode() + sys.argv[2].encode(), "review", facts)
    print("kept", made, flush=True)
    reviews.verdict(made, "accept", "", "eva")
    print("judged", made, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "reviews.db"
    said: dict[str, set[str]] = {"kept": set(), "judged": set()}
    for run in range(3):
        command = [sys.executable, "-c", JUDGE, str(path), str(run)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as judge:
            assert judge.stdout is not None
            for _ in range(rng.randrange(1, 80)):
                what, crop = judge.stdout.readline().split()
                said[what].add(crop)
            judge.send_signal(signal.SIGKILL)
            for line in judge.stdout:  # what it said until it died
                what, crop = line.split()
                said[what].add(crop)
        reviews = Reviews(path, Settings())
        judged = {one.id for one in reviews.verdicts()}
        there = judged | {one.id for one in reviews.pending(1000)}
        assert said["judged"] <= judged and said["kept"] <= there
        assert len(judged) <= len(said["judged"]) + run + 1  # the one that it died with, each time
        assert all(reviews.crop(crop).startswith(b"crop of ") for crop in there)
        with sqlite3.connect(path) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        raw.close()
        reviews.close()


@pytest.fixture
def api(patterns: Path, encoder: Encoder, tmp_path: Path) -> Iterator[TestClient]:
    """Return a client of a service that keeps doubtful crops; without a calibration all are for review."""
    service = make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tmp_path, reviews=True)
    with client(service) as found:
        yield found


def sent(api: TestClient, path: Path) -> str:
    """Let the service match a picture; return the id under which it is kept."""
    answer = api.post("/v1/match", content=path.read_bytes(), headers={"Content-Type": "image/png"}).json()
    return str(answer["results"][0]["review"])


def test_a_doubtful_crop_waits_for_a_verdict(api: TestClient, patterns: Path, tmp_path: Path) -> None:
    crop = patterns / "test" / "sku-1" / "4.png"
    made = sent(api, crop)
    listed = api.get("/v1/review").json()
    (one,) = listed["reviews"]
    assert (one["id"], one["decision"], one["verdict"], one["gallery"]) == (made, "review", None, "v000001")
    assert (listed["waiting"], listed["next"]) == (1, None) and api.get(f"/v1/review/{made}").json() == one
    assert one["candidates"][0]["sku"] == "sku-1"
    picture = api.get(one["url"])
    assert picture.content == crop.read_bytes() and picture.headers["content-type"] == "image/png"
    judged = api.post(f"/v1/review/{made}", json={"verdict": "accept", "enrol": False}).json()["review"]
    assert (judged["verdict"], judged["sku"], judged["who"]) == ("accept", "sku-1", "local")
    assert api.get(f"/v1/review/{made}").json() == judged and api.get("/v1/review").json()["reviews"] == []
    audit = (tmp_path / "state" / "audit.jsonl").read_text()
    assert made in audit and '"review.verdict"' in audit
    assert api.get("/v1/gallery").json()["gallery"]["version"] == "v000001"  # it was not asked for


def test_pages_of_crops(api: TestClient, patterns: Path) -> None:
    made = [sent(api, patterns / "test" / f"sku-{sku}" / "4.png") for sku in range(3)]
    first = api.get("/v1/review?limit=2").json()
    rest = api.get("/v1/review", params={"limit": 2, "after": first["next"]}).json()
    assert [one["id"] for one in (*first["reviews"], *rest["reviews"])] == made
    assert (first["waiting"], rest["next"]) == (3, None)


BODIES: list[tuple[Any, int]] = [
    ({"verdict": "maybe"}, 422), ({}, 422), ({"verdict": "correct"}, 422), ({"verdict": "reject", "x": 1}, 422),
    ({"verdict": "correct", "sku": "sku-9"}, 422), ({"verdict": "accept", "sku": "sku-9"}, 422),
    ({"verdict": "new", "sku": "\ud800"}, 400), ({"verdict": "new", "sku": "a\x00"}, 422), ([], 422),
]  # fmt: skip


def test_verdicts_that_are_refused(api: TestClient, patterns: Path) -> None:
    made = sent(api, patterns / "test" / "sku-1" / "4.png")
    for body, status in BODIES:
        kind = {"Content-Type": "application/json"}
        answer = api.post(f"/v1/review/{made}", content=json.dumps(body), headers=kind)
        assert answer.status_code == status and answer.json()["error"], answer.text
    assert api.get(f"/v1/review/{made}").json()["verdict"] is None


def test_a_second_verdict_is_a_conflict(api: TestClient, patterns: Path) -> None:
    made = sent(api, patterns / "test" / "sku-1" / "4.png")
    assert (
        api.post(f"/v1/review/{made}", json={"verdict": "correct", "sku": "sku-2"}).json()["review"]["sku"] == "sku-2"
    )
    assert api.post(f"/v1/review/{made}", json={"verdict": "reject"}).status_code == 409


def test_ids_are_checked(api: TestClient) -> None:
    for crop in ("..%2f..%2freviews.db", "%2Fetc%2Fpasswd", "a%00", "A" * 32, "0" * 31, "0" * 33):
        for path in (f"/v1/review/{crop}", f"/v1/review/{crop}/image"):
            assert api.get(path).status_code in (404, 422), path
        assert api.post(f"/v1/review/{crop}", json={"verdict": "reject"}).status_code in (404, 422)


def test_unknown_ids(api: TestClient) -> None:
    for path in ("/v1/review/" + "0" * 32, f"/v1/review/{'0' * 32}/image"):
        assert api.get(path).status_code == 404
    assert api.post("/v1/review/" + "0" * 32, json={"verdict": "reject"}).status_code == 404


def test_where_no_crops_are_kept(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    service = make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tmp_path)
    with client(service) as api:
        assert sent(api, patterns / "test" / "sku-1" / "4.png") == "None"
        answer = api.get("/v1/review")
        assert answer.status_code == 404 and "reviews = true" in answer.json()["todo"]
        assert api.post("/v1/review/" + "0" * 32, json={"verdict": "reject"}).status_code == 404
    assert not (tmp_path / "state" / "reviews.db").exists()


def test_scopes(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    service = make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tmp_path, reviews=True)
    tokens = {scope: service.keys.add(scope, [scope]) for scope in ("read", "match", "write")}
    asked = {"GET": ("/v1/review", f"/v1/review/{'0' * 32}"), "POST": (f"/v1/review/{'0' * 32}",)}
    allowed = {"GET": "read", "POST": "write"}
    with client(service) as api:
        for method, paths in asked.items():
            for path in paths:
                assert api.request(method, path, content=b"no JSON").status_code == 401
                for scope, token in tokens.items():
                    answer = api.request(method, path, headers={"X-API-Key": token}, content=b"no JSON")
                    assert (answer.status_code == 403) == (scope != allowed[method]), (method, path, scope)
