"""Groups under review: the queue, decisions and their undoing, kills, and the routes to them."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from starlette.testclient import TestClient

from skumatch.catalogue.decisions import Decision, apply, read_decisions
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, ConfigError, DataError
from skumatch.serve import catalogue_pairs
from skumatch.serve.catalogue_pairs import telling
from skumatch.serve.catalogue_store import GroupReviews, Kind, Wanted
from skumatch.serve.problems import Problem
from tests.skumatch.dedupe_results import write_pairs, write_results
from tests.skumatch.serving import client, make_gallery, make_service

GROUPS = {
    "g000001": [("a", 0.9), ("b", 0.8), ("c", 0.4)],
    "g000002": [("d", 0.9), ("e", 0.95)],
    "g000003": [("f", 0.3), ("x/../y", 0.3)],
    "g000004": [("h", 0.7), ("i", 0.6)],
}
PAIRS = [
    ("a", "b", 0.9), ("a", "c", 0.4), ("b", "c", 0.35), ("a", "d", 0.45), ("c", "e", 0.2), ("b", "h", 0.1),
    ("d", "e", 0.95), ("f", "x/../y", 0.3), ("h", "i", 0.65), ("a", "alone", 0.5),
]  # fmt: skip
Open = Callable[[], GroupReviews]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_results(tmp_path / "dedupe", GROUPS, PAIRS)


@pytest.fixture
def opened(out: Path, tmp_path: Path) -> Iterator[Open]:
    """Return what opens the test's file."""
    held: list[GroupReviews] = []

    def made() -> GroupReviews:
        held.append(GroupReviews(tmp_path / "state" / "groups.db", out))
        return held[-1]

    yield made
    for reviews in held:
        reviews.close()


def take(reviews: GroupReviews, kind: Kind, *names: str, parts: Any = (), id: str = "") -> str:
    """Decide on groups as they are now; return the decision's id."""
    versions = {name: reviews.group(name).version for name in names}
    return reviews.decide(Wanted(kind, versions, parts, id), "eva").decision.id


def now(reviews: GroupReviews) -> dict[str, set[str]]:
    """Return all groups as they are."""
    found = [*reviews.waiting(1000), *reviews.decided(1000)]
    return {one.name: {posting.posting for posting in reviews.postings(one.name)} for one in found}


def before() -> dict[str, list[str]]:
    return {name: [posting for posting, _ in members] for name, members in GROUPS.items()}


def exported(reviews: GroupReviews, folder: Path) -> list[Decision]:
    path = folder / "decisions.jsonl"
    path.write_bytes(b"".join(reviews.export()))
    return read_decisions(path)


def test_the_least_sure_comes_first(opened: Open, tmp_path: Path) -> None:
    reviews = opened()
    for again in (reviews, opened()):
        found = again.waiting(10)
        assert [(one.name, one.least, one.size) for one in found] == [
            ("g000003", 0.3, 2), ("g000001", 0.4, 3), ("g000004", 0.6, 2), ("g000002", 0.9, 2)
        ]  # fmt: skip
        assert {(one.version, one.decided, one.who, one.at) for one in found} == {(0, None, None, None)}
        assert again.waiting(2, found[1].rank) == found[2:]
    assert [one.posting for one in reviews.postings("g000001")] == ["a", "b", "c"]
    assert stat.S_IMODE((tmp_path / "state" / "groups.db").stat().st_mode) == 0o600


def test_why_and_what_else(opened: Open) -> None:
    reviews = opened()
    assert [(one.left, one.right) for one in reviews.reasons("g000001")] == [("a", "b"), ("a", "c"), ("b", "c")]
    (reason,) = reviews.reasons("g000003")
    assert reason.scores == pytest.approx({"hash": 0.3, "words": 0.15}) and reason.contradict and not reason.agree
    found = [(group.name, why.left, why.right) for group, why in reviews.suggested("g000001")]
    assert found == [("g000002", "a", "d"), ("g000004", "b", "h")]
    assert [group.name for group, _ in reviews.suggested("g000002")] == ["g000001"]
    assert reviews.suggested("g000003") == []


def test_accept_split_merge_and_back(opened: Open, tmp_path: Path) -> None:
    reviews = opened()
    accepted = take(reviews, "accept", "g000003")
    split = take(reviews, "split", "g000001", parts=[["a", "b"], ["c"]])
    merged = take(reviews, "merge", "g000001", "g000002")
    assert now(reviews) == {
        "g000003": {"f", "x/../y"}, "g000001": {"a", "b", "d", "e"}, "g000001-2": {"c"}, "g000004": {"h", "i"}
    }  # fmt: skip
    assert [one.name for one in reviews.waiting(10)] == ["g000004"]
    assert reviews.counts() == {"groups": 3, "waiting": 1, "accept": 1, "split": 1, "merge": 1}
    assert ("a", "d") in [(one.left, one.right) for one in reviews.reasons("g000001")]
    group = reviews.group("g000001")
    assert (group.decided, group.who, group.size) == ("merge", "eva", 4) and group.least == pytest.approx(0.8)
    with pytest.raises(Problem, match=f"later decision, {merged}") as refused:
        reviews.undo(split, "tom")
    assert refused.value.status == 409
    for one in (accepted, merged, split):  # what was decided on other groups meanwhile does not matter
        assert reviews.undo(one, "tom").withdrawn
    assert now(reviews) == {name: set(members) for name, members in before().items()} and len(reviews.waiting(9)) == 4
    with pytest.raises(Problem, match="withdrawn already"):
        reviews.undo(split, "tom")
    said = exported(reviews, tmp_path)
    assert [(one.decision, one.who) for one in said] == [
        ("accept", "eva"), ("split", "eva"), ("merge", "eva"), *[("undo", "tom")] * 3
    ]  # fmt: skip
    assert [(one.decision.id, one.withdrawn) for one in reviews.latest(2)] == [(merged, True), (split, True)]


def test_names_are_those_of_a_replay(opened: Open, tmp_path: Path) -> None:
    reviews = opened()
    take(reviews, "split", "g000001", parts=[["a"], ["b"], ["c"]])
    take(reviews, "merge", "g000001", "g000001-2")
    take(reviews, "split", "g000001", parts=[["b"], ["a"]])
    assert now(reviews)["g000001-4"] == {"a"} and "g000001-2" not in now(reviews)
    there = apply(before(), exported(reviews, tmp_path))
    assert {name: set(members) for name, members in there.items()} == now(reviews)


@pytest.mark.parametrize("seed", range(3))
def test_any_decisions_lead_to_what_their_export_leads_to(opened: Open, tmp_path: Path, seed: int) -> None:
    rng, reviews = random.Random(seed), opened()
    together = {frozenset(pair) for members in before().values() for pair in combinations(members, 2)}
    stack = [(together, "")]  # what was one group before each decision that may be undone
    for _ in range(25):
        if len(stack) > 1 and rng.random() < 0.3:
            reviews.undo(stack.pop()[1], "eva")
        else:
            stack.append(_random_decision(rng, reviews, stack[-1][0]))
        groups = now(reviews)
        pairs = {frozenset(pair) for members in groups.values() for pair in combinations(members, 2)}
        assert pairs == stack[-1][0]
        assert sorted(posting for members in groups.values() for posting in members) == [*sorted("abcdefhi"), "x/../y"]
    replayed = apply(before(), exported(reviews, tmp_path))
    assert {name: set(members) for name, members in replayed.items()} == groups


def _random_decision(
    rng: random.Random, reviews: GroupReviews, together: set[frozenset[str]]
) -> tuple[set[frozenset[str]], str]:
    groups = now(reviews)
    several = [name for name, members in groups.items() if len(members) > 1]
    kind = rng.choice(["accept", "split", "merge"])
    if kind == "merge" and len(groups) > 1:
        names = rng.sample(sorted(groups), 2)
        both = groups[names[0]] | groups[names[1]]
        return together | {frozenset(pair) for pair in combinations(both, 2)}, take(reviews, "merge", *names)
    if kind == "split" and several:
        name = rng.choice(several)
        members = rng.sample(sorted(groups[name]), len(groups[name]))
        cut = rng.randrange(1, len(members))
        apart = {frozenset((a, b)) for a in members[:cut] for b in members[cut:]}
        return together - apart, take(reviews, "split", name, parts=[members[:cut], members[cut:]])
    return together, take(reviews, "accept", rng.choice(sorted(groups)))


def test_a_group_that_changed_meanwhile_is_a_conflict(opened: Open) -> None:
    reviews, other = opened(), opened()
    take(reviews, "merge", "g000001", "g000002")
    for name in ("g000001", "g000002"):
        with pytest.raises(Problem, match=f"{name} was changed by eva meanwhile") as refused:
            other.decide(Wanted("accept", {name: 0}), "tom")
        assert refused.value.status == 409
    undone = take(reviews, "split", "g000004", parts=[["h"], ["i"]])
    reviews.undo(undone, "eva")
    with pytest.raises(Problem) as refused:
        other.decide(Wanted("accept", {"g000004": 0}), "tom")
    assert refused.value.status == 409 and other.group("g000004").decided is None


REFUSED: list[tuple[Kind, dict[str, int], Any, int]] = [
    ("accept", {"g000009": 0}, (), 404),
    ("accept", {"g000001": 0, "g000002": 0}, (), 422),
    ("accept", {"g000001": 0}, [["a"], ["b", "c"]], 422),
    ("merge", {"g000001": 0}, (), 422),
    ("split", {"g000001": 0}, (), 422),
    ("split", {"g000001": 0}, [["a", "b", "c"]], 422),
    ("split", {"g000001": 0}, [["a", "b"], ["c", "c"]], 422),
    ("split", {"g000001": 0}, [["a", "b"], ["d"]], 422),
    ("split", {"g000001": 0}, [["a"], ["b"]], 422),
]


@pytest.mark.parametrize(("kind", "versions", "parts", "status"), REFUSED)
def test_nonsense_is_refused_and_changes_nothing(
    opened: Open, kind: Kind, versions: dict[str, int], parts: Any, status: int
) -> None:
    reviews = opened()
    with pytest.raises((Problem, DataError)) as refused:
        reviews.decide(Wanted(kind, versions, parts), "eva")
    assert (refused.value.status if isinstance(refused.value, Problem) else 422) == status
    assert b"".join(reviews.export()) == b"" and now(reviews) == {name: set(of) for name, of in before().items()}


def test_asked_twice_with_one_id_it_is_taken_once(opened: Open) -> None:
    reviews = opened()
    wanted = Wanted("split", {"g000001": 0}, [["a"], ["b", "c"]], "0" * 32)
    assert reviews.decide(wanted, "eva") == reviews.decide(wanted, "eva")
    with pytest.raises(Problem, match="another decision has the id"):
        reviews.decide(Wanted("accept", {"g000002": 0}, (), "0" * 32), "eva")
    assert len(reviews.latest(9)) == 1


def test_of_two_at_once_one_is_first(opened: Open) -> None:
    reviews, start, said = opened(), threading.Barrier(4), list[str]()

    def judge(who: str) -> None:
        start.wait()
        for name in GROUPS:
            try:
                said.append(f"{name} {reviews.decide(Wanted('accept', {name: 0}), who).decision.who}")
            except Problem as error:
                assert error.status == 409

    threads = [threading.Thread(target=judge, args=(f"judge-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == sorted(f"{one.name} {one.who}" for one in reviews.decided(9)) and len(said) == 4


def test_other_results_and_no_results(opened: Open, out: Path, tmp_path: Path) -> None:
    opened()
    state = tmp_path / "state" / "groups.db"
    write_results(out, {"g000001": [("a", 0.5), ("b", 0.5)]})
    with pytest.raises(ConfigError, match="other groups than"):
        GroupReviews(state, out)
    with pytest.raises(DataError, match="was not written by"):
        GroupReviews(state, tmp_path)
    write_results(out, {"g000001": [("a", 0.5), ("b", 0.5)], "g000002": [("a", 0.5), ("c", 0.5)]})
    fresh = tmp_path / "fresh.db"
    with pytest.raises(DataError, match="names 1 of its postings twice"):
        GroupReviews(fresh, out)
    (write_results(out, GROUPS) / "pairs.parquet").write_bytes(b"no parquet")
    with pytest.raises(ArtefactError, match=r"pairs\.parquet cannot be read"):
        GroupReviews(fresh, out)
    (out / "pairs.parquet").unlink()
    reviews = GroupReviews(fresh, out)  # what failed left nothing behind
    assert len(reviews.waiting(9)) == 4 and reviews.reasons("g000001") == [] == reviews.suggested("g000001")
    reviews.close()


@pytest.mark.parametrize("batch", [7, 1_000_000])
def test_the_pairs_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    rng = np.random.default_rng(5)
    ids, codes = [f"p{n}" for n in range(60)], np.repeat(np.arange(12, dtype=np.int32), 5)
    every = [(a, b) for a, b in combinations(range(63), 2) if rng.random() < 0.3]
    rows = [(f"p{a}", f"p{b}", float(p)) for (a, b), p in zip(every, rng.permutation(len(every)) / 1000, strict=True)]
    write_pairs(tmp_path / "pairs.parquet", rows, rows=50)
    monkeypatch.setattr(catalogue_pairs, "BATCH", batch)
    found = {(one.left, one.right) for one in telling(tmp_path / "pairs.parquet", ids, codes)}
    of = dict(zip(ids, codes.tolist(), strict=True))
    wanted: set[tuple[str, str]] = set()
    sure = sorted((row for row in rows if row[0] in of and row[1] in of), key=lambda row: -row[2])
    for code in range(12):
        inside = [row[:2] for row in sure if of[row[0]] == of[row[1]] == code]
        wanted |= {*inside[:3], *inside[-1:]}
        best: dict[int, tuple[str, str]] = {}
        for left, right, _ in sure:
            if (of[left] == code) != (of[right] == code):
                best.setdefault(of[right] if of[left] == code else of[left], (left, right))
        wanted |= set(list(best.values())[:5])
    assert found == wanted and len(wanted) > 60


def test_no_pairs_at_all(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", [])
    assert list(telling(tmp_path / "pairs.parquet", ["a"], np.zeros(1, np.int32))) == []


DECIDE = """
import sys
from pathlib import Path
from skumatch.serve.catalogue_store import GroupReviews, Wanted
reviews = GroupReviews(Path(sys.argv[1]), Path(sys.argv[2]))
while True:
    parts = [["a"], ["b", "c"]]
    versions = {"g000001": reviews.group("g000001").version}
    made = reviews.decide(Wanted("split", versions, parts), "eva").decision.id
    print("split", made, flush=True)
    reviews.undo(made, "eva")
    print("undo", made, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_survives_a_kill(out: Path, tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "groups.db"
    said: dict[str, set[str]] = {"split": set(), "undo": set()}
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", DECIDE, str(path), str(out)], stdout=subprocess.PIPE, text=True
        ) as judge:
            assert judge.stdout is not None
            for line in (judge.stdout.readline() for _ in range(rng.randrange(1, 60))):
                said[line.split()[0]].add(line.split()[1])
            judge.send_signal(signal.SIGKILL)
            for line in judge.stdout:
                said[line.split()[0]].add(line.split()[1])
        reviews = GroupReviews(path, out)
        for one in exported(reviews, tmp_path):
            said["split"].discard(one.id)
            said["undo"].discard(one.undo)
        assert said == {"split": set(), "undo": set()}
        replayed = apply(before(), exported(reviews, tmp_path))
        assert {name: set(members) for name, members in replayed.items()} == now(reviews)
        for one in exported(reviews, tmp_path)[-1:]:
            if one.decision == "split":
                reviews.undo(one.id, "eva")
        with sqlite3.connect(path) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        raw.close()
        reviews.close()


@pytest.fixture
def api(patterns: Path, encoder: Encoder, out: Path, tmp_path: Path) -> Iterator[TestClient]:
    """Return a client of a service that has groups for review."""
    gallery = make_gallery(patterns, encoder, tmp_path / "gallery")
    with client(make_service(gallery, encoder, tmp_path, catalogue=str(out))) as found:
        yield found


def test_from_the_queue_to_the_export(api: TestClient, tmp_path: Path) -> None:
    listed = api.get("/v1/catalogue/groups?limit=3").json()
    assert [one["group"] for one in listed["groups"]] == ["g000003", "g000001", "g000004"] and listed["waiting"] == 4
    rest = api.get(f"/v1/catalogue/groups?limit=3&after={listed['next']}").json()
    assert [one["group"] for one in rest["groups"]] == ["g000002"] and rest["next"] is None
    one = api.get("/v1/catalogue/groups/g000001").json()
    assert {"group": one["group"], "version": one["version"], "size": one["size"]} == {
        "group": "g000001", "version": 0, "size": 3
    }  # fmt: skip
    assert [word["text"] for word in one["reasons"][0]["says"]] == ["amounts agree"]
    (other, _) = one["suggestions"]
    both = [{"group": found["group"], "version": found["version"]} for found in (one, other)]
    made = api.post("/v1/catalogue/decisions", json={"decision": "merge", "groups": both})
    assert made.status_code == 200 and made.json()["groups"] == ["g000001", "g000002"] and made.json()["who"] == "local"
    assert api.get("/v1/catalogue/groups/g000002").status_code == 404
    assert api.post("/v1/catalogue/decisions", json={"decision": "accept", "groups": both[1:]}).status_code == 409
    decided = api.get("/v1/catalogue/groups?state=decided").json()
    assert [found["group"] for found in decided["groups"]] == ["g000001"] and decided["waiting"] == 2
    lines = api.get("/v1/catalogue/export")
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    (line,) = map(json.loads, lines.text.splitlines())
    assert line["decision"] == "merge" and sorted(line["postings"]) == list("abcde") and line["id"] == made.json()["id"]
    undone = api.post(f"/v1/catalogue/decisions/{made.json()['id']}/undo")
    assert undone.json() == {**made.json(), "withdrawn": True}
    assert api.get("/v1/catalogue/decisions").json()["decisions"] == [undone.json()]
    assert api.get("/v1/catalogue/stats").json() == {"groups": 4, "waiting": 4, "accept": 0, "split": 0, "merge": 0}
    audit = [json.loads(text) for text in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert [entry["action"] for entry in audit] == ["group.merge", "group.undo"]


def test_pictures_are_those_of_postings_and_no_other_files(api: TestClient, out: Path) -> None:
    first, *_ = api.get("/v1/catalogue/groups/g000001").json()["postings"]
    picture = api.get(first["url"])
    assert picture.status_code == 200 and picture.headers["content-type"] == "image/jpeg"
    with PILImage.open(out / "g000001-0.png") as drawn:
        assert max(drawn.size) <= 320
    unpictured = api.get("/v1/catalogue/groups/g000003").json()["postings"][1]
    assert unpictured["posting"] == "x/../y" and unpictured["url"] is None
    (out / "g000002-0.png").unlink()
    (out / "g000002-1.png").write_text("no picture")
    names = [
        "g000001-0.png",
        "../dedupe/g000001-0.png",
        str(out / "g000001-0.png"),
        "/etc/passwd",
        "file:///etc/passwd",
    ]
    for posting in (*names, "x/../y", "", "a\0", "\udce9", "nobody", "d", "e"):
        params = {"posting": os.fsencode(posting)}
        answer = api.get("/v1/catalogue/image", params=params)
        assert answer.status_code in (404, 422) and str(out) not in answer.text, posting


BODIES: list[tuple[Any, int]] = [
    ({"decision": "maybe", "groups": [{"group": "g000001", "version": 0}]}, 422),
    ({"decision": "accept", "groups": []}, 422),
    ({"decision": "accept", "groups": [{"group": "g000001"}]}, 422),
    ({"decision": "accept", "groups": [{"group": "g000001", "version": -1}]}, 422),
    ({"decision": "accept", "groups": [{"group": "g000001", "version": 7}]}, 409),
    ({"decision": "accept", "groups": [{"group": "nobody", "version": 0}]}, 404),
    ({"decision": "merge", "groups": [{"group": "g000001", "version": 0}] * 2}, 422),
    ({"decision": "split", "groups": [{"group": "g000001", "version": 0}], "parts": [["a", "b", "c"], []]}, 422),
    ({"decision": "split", "groups": [{"group": "g000001", "version": 0}], "parts": [["a", "b"], ["d"]]}, 422),
    ({"decision": "accept", "groups": [{"group": "g000001", "version": 0}], "id": "x"}, 422),
    ({"decision": "accept", "groups": [{"group": "\ud800", "version": 0}]}, 400),
    ([], 422),
]


def test_decisions_that_are_refused(api: TestClient) -> None:
    for body, status in BODIES:
        kind = {"Content-Type": "application/json"}
        answer = api.post("/v1/catalogue/decisions", content=json.dumps(body), headers=kind)
        assert answer.status_code == status and answer.json()["error"], (body, answer.text)
    for path in ("0" * 31, "0" * 32, "..%2fx", "A" * 32):
        assert api.post(f"/v1/catalogue/decisions/{path}/undo").status_code in (404, 405, 422)
    assert api.get("/v1/catalogue/export").text == ""


def test_where_no_groups_are(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    with client(make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tmp_path)) as api:
        for path in ("groups", "groups/g000001", "image?posting=a", "decisions", "export", "stats"):
            answer = api.get(f"/v1/catalogue/{path}")
            assert answer.status_code == 404 and "--catalogue" in answer.json()["todo"]
    assert not (tmp_path / "state" / "groups.db").exists()


def test_scopes(patterns: Path, encoder: Encoder, out: Path, tmp_path: Path) -> None:
    gallery = make_gallery(patterns, encoder, tmp_path / "gallery")
    service = make_service(gallery, encoder, tmp_path, catalogue=str(out))
    tokens = {scope: service.keys.add(scope, [scope]) for scope in ("read", "match", "write")}
    reads = ("groups", "groups/g000001", "image?posting=a", "decisions", "export", "stats")
    asked = [("GET", path, "read") for path in reads]
    asked += [("POST", "decisions", "write"), ("POST", f"decisions/{'0' * 32}/undo", "write")]
    with client(service) as api:
        for method, path, allowed in asked:
            assert api.request(method, f"/v1/catalogue/{path}", content=b"no JSON").status_code == 401
            for scope, token in tokens.items():
                headers = {"X-API-Key": token}
                answer = api.request(method, f"/v1/catalogue/{path}", headers=headers, content=b"no JSON")
                assert (answer.status_code == 403) == (scope != allowed), (method, path, scope)
