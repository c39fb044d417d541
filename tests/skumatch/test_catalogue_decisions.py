"""Decisions on groups, against an oracle that moves single postings; what does not fit; the reviewed tables."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from skumatch.catalogue import output
from skumatch.catalogue.decisions import Decision, apply, read_decisions, replay
from skumatch.catalogue.reviewed import apply_to
from skumatch.errors import ConfigError, DataError

GROUPS = {"g1": ["a", "b", "c"], "g2": ["d", "e"], "g3": ["f", "g"]}
ACCEPT = {"decision": "accept", "group": "g2", "postings": ["e", "d"]}
SPLIT = {"decision": "split", "group": "g1", "postings": ["a", "b", "c"], "parts": [["c", "a"], ["b"]]}
MERGE = {"decision": "merge", "groups": ["g3", "g2"], "postings": ["d", "e", "f", "g"]}


def decided(*said: Mapping[str, Any]) -> list[Decision]:
    return [Decision.of(one, f"d.jsonl, line {number},") for number, one in enumerate(said, start=1)]


def test_what_each_decision_makes() -> None:
    assert apply(GROUPS, []) == GROUPS
    assert apply(GROUPS, decided(ACCEPT)) == GROUPS
    assert apply(GROUPS, decided(SPLIT)) == {"g1": ["c", "a"], "g1-2": ["b"], "g2": ["d", "e"], "g3": ["f", "g"]}
    assert apply(GROUPS, decided(MERGE)) == {"g1": ["a", "b", "c"], "g3": ["f", "g", "d", "e"]}
    outcome = replay(GROUPS, decided(SPLIT, ACCEPT, MERGE))
    assert outcome.decided == frozenset({"g1", "g1-2", "g3"}) and outcome.applied == 3
    assert list(outcome.groups) == ["g1", "g1-2", "g3"]
    assert GROUPS["g1"] == ["a", "b", "c"]  # what was given is as it was


def test_later_decisions_are_about_what_earlier_ones_made() -> None:
    again = {"decision": "merge", "groups": ["g2", "g1-2"], "postings": ["b", "d", "e"]}
    more = {"decision": "split", "group": "g1", "postings": ["a", "c"], "parts": [["a"], ["c"]]}
    found = apply(GROUPS, decided(SPLIT, again, more))
    assert found == {"g1": ["a"], "g1-3": ["c"], "g2": ["d", "e", "b"], "g3": ["f", "g"]}  # g1-2 is not given again


def test_names_that_are_taken_are_not_given() -> None:
    groups = {"g1": ["a", "b"], "g1-2": ["c", "d"]}
    split = {"decision": "split", "group": "g1", "postings": ["a", "b"], "parts": [["a"], ["b"]]}
    assert set(apply(groups, decided(split))) == {"g1", "g1-2", "g1-3"}


def test_an_undo_withdraws_a_decision_and_no_other() -> None:
    first, second = {**SPLIT, "id": "1"}, {**MERGE, "id": "2"}
    outcome = replay(GROUPS, decided(first, second, {"decision": "undo", "undo": "1"}))
    assert outcome.groups == apply(GROUPS, decided(MERGE)) and outcome.applied == 1
    assert outcome.decided == frozenset({"g3"})
    once_more = decided(first, {"decision": "undo", "undo": "1"}, {**SPLIT, "id": "3"})
    assert apply(GROUPS, once_more) == apply(GROUPS, decided(SPLIT))


def drawn(state: Mapping[str, str], rng: random.Random) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """Return a random decision on the groups that ``state`` tells posting by posting, and the sets that it makes."""
    groups: dict[str, set[str]] = {}
    for posting, name in state.items():
        groups.setdefault(name, set()).add(posting)
    names = rng.sample(sorted(groups), min(len(groups), rng.choice([1, 2, 3])))
    members = sorted(set().union(*(groups[name] for name in names)))
    if len(names) > 1:
        return {"decision": "merge", "groups": names, "postings": members}, {names[0]: set(members)}
    if len(members) == 1:
        return {"decision": "accept", "group": names[0], "postings": members}, {names[0]: set(members)}
    rng.shuffle(members)
    cut = rng.randrange(1, len(members))
    parts = [members[:cut], members[cut:]]
    said = {"decision": "split", "group": names[0], "postings": sorted(members), "parts": parts}
    return said, {names[0]: set(parts[0]), "": set(parts[1])}


@pytest.mark.parametrize("seed", range(20))
def test_random_reviews_keep_every_posting_once(seed: int) -> None:
    rng = random.Random(seed)
    groups = {f"g{n}": [f"p{n}x{k}" for k in range(rng.randrange(2, 6))] for n in range(8)}
    state = {posting: name for name, members in groups.items() for posting in members}
    said: list[dict[str, Any]] = []
    for number in range(25):
        one, made = drawn(state, rng)
        said.append({**one, "id": str(number)})
        for name, members in made.items():
            state.update(dict.fromkeys(members, name or f"new{number}"))
        after = apply(groups, decided(*said))
        oracle = {frozenset(p for p in state if state[p] == name) for name in state.values()}
        assert {frozenset(members) for members in after.values()} == oracle
        assert sorted(p for members in after.values() for p in members) == sorted(state)
        names = {posting: name for name, members in after.items() for posting in members}
        state = {posting: names[posting] for posting in state}
    undone = [{"decision": "undo", "undo": one["id"]} for one in reversed(said)]
    assert apply(groups, decided(*said, *undone)) == groups


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"decision": "accept", "group": "g9", "postings": ["a"]}, "names group g9, which is not there"),
        ({"decision": "accept", "group": "g2", "postings": ["d"]}, "other members than group g2 .* by then: posting e"),
        ({"decision": "accept", "group": "g2", "postings": ["d", "e", "x"]}, "other members .*: posting x"),
        ({"decision": "accept", "group": "g2", "postings": ["d", "e", "d"]}, "names posting d twice"),
        ({**SPLIT, "parts": [["a", "b"], ["b", "c"]]}, "puts posting b into two parts"),
        ({**SPLIT, "parts": [["a"], ["b"]]}, "parts that are not the group's: posting c"),
        ({**SPLIT, "parts": [["a", "b", "c"]]}, "fewer than two parts"),
        ({**SPLIT, "parts": [["a", "b", "c"], []]}, "or an empty one"),
        ({**MERGE, "groups": ["g2"], "postings": ["d", "e"]}, "fewer than two different groups"),
        ({**MERGE, "groups": ["g2", "g2"], "postings": ["d", "e"]}, "fewer than two different groups"),
        ({**MERGE, "groups": []}, "fewer than two different groups"),
        ({**ACCEPT, "id": "0"}, "has the id '0' of an earlier decision"),
        ({"decision": "undo", "undo": "7"}, "withdraws '7', which is no earlier decision"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(said: dict[str, Any], why: str) -> None:
    fine = {"decision": "accept", "group": "g1", "postings": ["a", "b", "c"], "id": "0"}
    with pytest.raises(DataError, match=f"^d.jsonl, line 2, .*{why}"):
        apply(GROUPS, decided(fine, said))


def test_nothing_is_withdrawn_twice_nor_what_others_stand_on() -> None:
    undo = {"decision": "undo", "undo": "1"}
    with pytest.raises(DataError, match="line 3, withdraws '1'"):
        apply(GROUPS, decided({**SPLIT, "id": "1"}, undo, undo))
    stands_on = {"decision": "accept", "group": "g1", "postings": ["a", "c"]}
    with pytest.raises(DataError, match="line 2, has other members"):
        apply(GROUPS, decided({**SPLIT, "id": "1"}, stands_on, undo))


def test_a_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    said: list[Mapping[str, Any]] = [{**ACCEPT, "id": "1", "who": "Åsa", "at": "2026-01-02T03:04:05Z"}, SPLIT, MERGE]
    said.append({"decision": "undo", "undo": "1"})
    path.write_text("\ufeff" + "\n\n".join(json.dumps(one) for one in said) + "\n", encoding="utf-8")
    found = read_decisions(path)
    assert [one.json() for one in found] == said
    assert found == decided(*said)
    assert found[1].where == f"{path}, line 3,"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no JSON object"),
        ("{}", "needs 'decision': one of accept, split, merge, undo"),
        ('{"decision": ["accept"]}', "needs 'decision'"),
        ('{"decision": "accept", "postings": []}', "needs 'group': text"),
        ('{"decision": "accept", "group": "", "postings": []}', "needs 'group': text"),
        ('{"decision": "accept", "group": "g1", "postings": "a"}', "needs 'postings': a list of text"),
        ('{"decision": "accept", "group": "g1", "postings": [1]}', "needs 'postings': a list of text"),
        ('{"decision": "split", "group": "g1", "postings": [], "parts": ["a"]}', "needs 'parts'"),
        ('{"decision": "merge", "groups": "g1", "postings": []}', "needs 'groups': a list of text"),
        ('{"decision": "undo"}', "needs 'undo': text"),
        ('{"decision": "undo", "undo": "1", "id": 3}', "needs 'id': text"),
    ],
)
def test_a_line_that_is_no_decision_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(ACCEPT) + "\n" + line + "\n")
    with pytest.raises(DataError, match=rf"d\.jsonl, line 2, {why}"):
        read_decisions(path)
    with pytest.raises(DataError, match="cannot read"):
        read_decisions(tmp_path / "none.jsonl")


def write_out(folder: Path, groups: Mapping[str, Sequence[str]], alone: Sequence[str] = ()) -> Path:
    """Write what a search for duplicates leaves: matches in reverse order, and postings alone."""
    folder.mkdir(exist_ok=True)
    rows = [(name, one, "pics/1.jpg", "=1+1", "0.500000") for name, members in groups.items() for one in members]
    output.write_csv(folder / output.GROUPS, output.GROUP_COLUMNS, rows)
    matches = [(one, " ".join(groups[name][::-1])) for name, one, *_ in rows]
    output.write_csv(folder / output.MATCHES, output.MATCH_COLUMNS, [*matches, *((one, one) for one in alone)])
    output.write_facts(folder / output.FACTS, {"catalogue": "c.csv", "groups": len(groups)})
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def written(path: Path, *said: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in said))
    return path


def test_reviewed_tables(tmp_path: Path) -> None:
    out = write_out(tmp_path / "out", {**GROUPS, "g4": ["h", "i"]}, ["z"])
    decisions = written(tmp_path / "d.jsonl", SPLIT, MERGE, {**ACCEPT, "group": "g4", "postings": ["h", "i"]})
    also = write_out(tmp_path / "also", {**GROUPS, "g5": ["k", "l"]})
    to = tmp_path / "to"
    assert apply_to(out, decisions, to) == (3, 3)
    matches = output.read_matches(to / output.MATCHES)
    assert list(matches) == [*"abcdefghi", "z"]
    assert matches["a"] == ["a", "c"] and matches["b"] == ["b"] and matches["z"] == ["z"]
    assert matches["d"] == ["d", "e", "f", "g"] and matches["f"] == ["f", "g", "d", "e"]  # those of before first
    listed = [(one.group, one.posting, one.confidence) for one in output.read_groups(to / output.GROUPS)]
    expected = [("g1", "c"), ("g1", "a"), ("g3", "f"), ("g3", "g"), ("g3", "d"), ("g3", "e"), ("g4", "h"), ("g4", "i")]
    assert listed == [(*one, 1.0) for one in expected]
    row = rows_of(to / output.GROUPS)[0]
    assert tuple(row) == output.GROUP_COLUMNS
    assert row["image"] == str(out / "pics/1.jpg") and row["title"] == "'=1+1"
    facts = output.read_facts(to)
    assert (facts["catalogue"], facts["groups"]) == ("c.csv", 4)
    assert {key: facts["reviewed"][key] for key in ("decisions", "groups", "grouped", "largest")} == {
        "decisions": 3,
        "groups": 3,
        "grouped": 8,
        "largest": 4,
    }
    assert apply_to(also, written(decisions), tmp_path / "same") == (4, 0)  # no decisions: all stays
    assert (tmp_path / "same" / output.GROUPS).read_text() == (
        (also / output.GROUPS).read_text().replace("pics/1.jpg", str(also / "pics/1.jpg"))
    )


def test_of_a_large_merged_group_fifty_match(tmp_path: Path) -> None:
    groups = {name: [f"{name}{k}" for k in range(40)] for name in ("g", "h")}
    out = write_out(tmp_path / "out", groups)
    merge = {"decision": "merge", "groups": ["g", "h"], "postings": [*groups["g"], *groups["h"]]}
    apply_to(out, written(tmp_path / "d.jsonl", merge), tmp_path / "to")
    for posting, found in output.read_matches(tmp_path / "to" / output.MATCHES).items():
        own = groups[posting[0]]
        assert len(found) == 50 and found[0] == posting and set(own) <= set(found) <= set(groups["g"] + groups["h"])


def test_what_cannot_be_reviewed(tmp_path: Path) -> None:
    out = write_out(tmp_path / "out", GROUPS)
    decisions = written(tmp_path / "d.jsonl", SPLIT)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(ConfigError, match="name another folder"):
        apply_to(out, decisions, tmp_path / "link")
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}
    for other in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="was not written by `skumatch dedupe`"):
            apply_to(other, decisions, tmp_path / "to")
    with pytest.raises(DataError, match=r"d\.jsonl, line 1, names group g9"):
        apply_to(out, written(decisions, {**ACCEPT, "group": "g9"}), tmp_path / "to")
    output.write_csv(out / output.MATCHES, output.MATCH_COLUMNS, [("a", "a")])
    with pytest.raises(DataError, match="are not of the same postings"):
        apply_to(out, written(decisions, SPLIT), tmp_path / "to")
    assert not (tmp_path / "to" / output.MATCHES).exists()
    write_out(out, {**GROUPS, "g9": ["a", "y"]})
    with pytest.raises(DataError, match="has the posting 'a' twice: g1 and g9"):
        apply_to(out, decisions, tmp_path / "to")


@pytest.mark.parametrize("row", [("", "a", "", "", "1"), ("g", "", "", "", "1"), ("g", "a", "", "", "1.5")])
def test_a_bad_line_of_groups_is_named(tmp_path: Path, row: tuple[str, ...]) -> None:
    for last in (row, ("g", "a", "", "", "nan"), ("g", "a", "", "", "sure")):
        output.write_csv(tmp_path / "g.csv", output.GROUP_COLUMNS, [("g", "b", "", "", "0.5"), last])
        with pytest.raises(DataError, match=r"g\.csv, line 3, has no group"):
            list(output.read_groups(tmp_path / "g.csv"))
