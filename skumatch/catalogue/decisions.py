"""What people decided on groups of postings: accepted, split, merged; and the groups that follow from it.

A file of decisions is JSON lines in the order in which they were taken; each tells the members that the person saw:

    {"decision": "accept", "group": "g000001", "postings": ["a", "b"]}
    {"decision": "split", "group": "g000001", "postings": ["a", "b", "c"], "parts": [["a", "b"], ["c"]]}
    {"decision": "merge", "groups": ["g000001", "g000007"], "postings": ["a", "b", "k", "l"]}
    {"decision": "undo", "undo": "<id of an earlier decision>"}

with "id", "who" and "at" (ISO 8601) where they are known. It knows nothing about pictures, titles or where groups come
from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Final, Literal, get_args

from skumatch.errors import DataError
from skumatch.readers_common import read_lines, safe_text, shown

Kind = Literal["accept", "split", "merge", "undo"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
NAMED: Final = 5  # postings or groups that a message names


@dataclass(frozen=True)
class Decision:
    """One decision.

    ``groups``: the one accepted or split, or those merged, the one that gives its name first. ``postings``: all their
    members as the person saw them. ``parts`` of a split. ``undo``: the id of the decision that this one withdraws.
    ``where`` it stands, for messages; it is no part of what was decided.
    """

    decision: Kind
    groups: tuple[str, ...] = ()
    postings: tuple[str, ...] = ()
    parts: tuple[tuple[str, ...], ...] = ()
    undo: str = ""
    id: str = ""
    who: str = ""
    at: str = ""
    where: str = field(default="", compare=False)

    @staticmethod
    def of(said: Mapping[str, Any], where: str = "a decision") -> Decision:
        """Return the decision that an object of JSON tells; further keys are ignored.

        Raises DataError, beginning with ``where``, for a key that lacks or holds something else.
        """
        keys = _Keys(said, where)
        kind = keys.kind()
        also: dict[str, Any] = {"id": keys.text("id"), "who": keys.text("who"), "at": keys.text("at"), "where": where}
        if kind == "undo":
            return Decision(kind, undo=keys.text("undo", needed=True), **also)
        groups = keys.texts("groups") if kind == "merge" else (keys.text("group", needed=True),)
        parts = keys.lists("parts") if kind == "split" else ()
        return Decision(kind, groups, keys.texts("postings"), parts, **also)

    def json(self) -> dict[str, Any]:
        """Return the object of JSON that ``of`` reads."""
        said: dict[str, Any] = {"decision": self.decision}
        if self.decision == "undo":
            said["undo"] = self.undo
        else:
            named: dict[str, Any] = {"group": self.groups[0]}
            if self.decision == "merge":
                named = {"groups": list(self.groups)}
            said |= {**named, "postings": list(self.postings)}
        if self.decision == "split":
            said["parts"] = [list(part) for part in self.parts]
        also: dict[str, Any] = {"id": self.id, "who": self.who, "at": self.at}
        return said | {key: value for key, value in also.items() if value}


@dataclass(frozen=True)
class Outcome:
    """Groups after ``applied`` decisions: the members of each by name, one of a split may have a single one;
    ``decided``: those that a person accepted or made."""

    groups: dict[str, list[str]]
    decided: frozenset[str]
    applied: int


def read_decisions(path: Path) -> list[Decision]:
    """Return the decisions of a file of JSON lines. Raises DataError, naming the line, for what is none."""
    found = []
    for number, line in read_lines(path):
        where = f"{shown(path)}, line {number},"
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON", "give the file that the review exported") from error
        if not isinstance(said, dict):
            raise DataError(f"{where} is no JSON object", "give the file that the review exported")
        found.append(Decision.of(said, where))
    return found


def apply(groups: Mapping[str, Sequence[str]], decisions: Sequence[Decision]) -> dict[str, list[str]]:
    """Return the members of each group after ``decisions``, by name. Raises DataError as ``replay`` does."""
    return replay(groups, decisions).groups


def replay(groups: Mapping[str, Sequence[str]], decisions: Sequence[Decision]) -> Outcome:
    """Apply ``decisions`` in their order, less those withdrawn, each to what the earlier ones made.

    A merged group keeps the name of the first. The first part of a split keeps the name, the others are called NAME-2,
    NAME-3 and so on; a name once given is not given again. A group stands where the one was whose name it has.

    Raises DataError, saying where, for a group that is not there, members that are not the group's, parts that are no
    partition, or an undo of what is not there.
    """
    state = _State(groups)
    stand = _standing(decisions)
    for one in stand:
        state.take(one)
    return Outcome(state.in_order(), frozenset(state.decided), len(stand))


def _standing(decisions: Sequence[Decision]) -> list[Decision]:
    """Return the decisions that no later one withdraws."""
    places: dict[str, int] = {}
    stand: dict[int, Decision] = {}
    for place, one in enumerate(decisions):
        if one.id and places.setdefault(one.id, place) != place:
            raise _refused(one, f"has the id '{safe_text(one.id)}' of an earlier decision")
        if one.decision != "undo":
            stand[place] = one
        elif stand.pop(places.get(one.undo, -1), None) is None:
            raise _refused(one, f"withdraws '{safe_text(one.undo)}', which is no earlier decision that stands")
    return list(stand.values())


class _State:
    """Groups while decisions are applied to them."""

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self.groups = {name: list(members) for name, members in groups.items()}
        # where each name that was ever used belongs
        self.order: dict[str, tuple[int, ...]] = {name: (place,) for place, name in enumerate(groups)}
        self.decided: set[str] = set()

    def take(self, one: Decision) -> None:
        self._check(one)
        if one.decision == "split":
            self._split(one)
        elif one.decision == "merge":
            self._merge(one)
        self.decided.add(one.groups[0])

    def in_order(self) -> dict[str, list[str]]:
        return {name: self.groups[name] for name in sorted(self.groups, key=self.order.__getitem__)}

    def _check(self, one: Decision) -> None:
        """Raise DataError unless the groups are there and have the members that the decision tells."""
        gone = [name for name in one.groups if name not in self.groups]
        if gone:
            raise _refused(one, f"names {_some('group', gone)}, which is not there any more or never was")
        if len(set(one.groups)) < len(one.groups) or (one.decision == "merge" and len(one.groups) < 2):
            raise _refused(one, "merges fewer than two different groups")
        members = list(chain.from_iterable(self.groups[name] for name in one.groups))
        other = set(members) ^ set(one.postings)
        if other:
            what = f"has other members than {_some('group', one.groups)} has by then"
            raise _refused(one, f"{what}: {_some('posting', sorted(other))}")
        if len(one.postings) != len(members):
            raise _refused(one, f"names {_some('posting', _twice(one.postings))} twice")

    def _split(self, one: Decision) -> None:
        placed = list(chain.from_iterable(one.parts))
        if len(placed) > len(set(placed)):
            raise _refused(one, f"puts {_some('posting', _twice(placed))} into two parts")
        if set(placed) != set(one.postings):
            other = sorted(set(placed) ^ set(one.postings))
            raise _refused(one, f"has parts that are not the group's: {_some('posting', other)}")
        if len(one.parts) < 2 or not all(one.parts):
            raise _refused(one, "has fewer than two parts, or an empty one")
        first, *others = one.parts
        self.groups[one.groups[0]] = list(first)
        for part in others:
            name = self._free(one.groups[0])
            self.groups[name] = list(part)
            self.decided.add(name)

    def _merge(self, one: Decision) -> None:
        first, *others = one.groups
        for name in others:
            self.groups[first] += self.groups.pop(name)
            self.decided.discard(name)

    def _free(self, name: str) -> str:
        """Return the first of NAME-2, NAME-3, ... that was never used, and use it."""
        number = next(number for number in count(2) if f"{name}-{number}" not in self.order)
        self.order[f"{name}-{number}"] = (*self.order[name], number)
        return f"{name}-{number}"


class _Keys:
    """The keys of one decision, read with a check of what they hold."""

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self.said, self.where = said, where

    def kind(self) -> Kind:
        for kind in KINDS:
            if self.said.get("decision") == kind:
                return kind
        raise self._wrong("decision", f"one of {', '.join(KINDS)}")

    def text(self, key: str, needed: bool = False) -> str:
        value = self.said.get(key)
        if value is None and not needed:
            return ""
        if not isinstance(value, str) or (needed and not value):
            raise self._wrong(key, "text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        return self._texts(key, self.said.get(key))

    def lists(self, key: str) -> tuple[tuple[str, ...], ...]:
        value = self.said.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list of lists of text")
        return tuple(self._texts(key, part) for part in value)

    def _texts(self, key: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of text")
        return tuple(value)

    def _wrong(self, key: str, wanted: str) -> DataError:
        return DataError(f"{self.where} needs '{key}': {wanted}", "give the file that the review exported")


def _refused(one: Decision, why: str) -> DataError:
    todo = "withdraw or remove it, and what was decided after it on the same groups"
    return DataError(f"{one.where or 'a decision'} {why}", todo)


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _some(noun: str, names: Sequence[str]) -> str:
    """Return "group g000001", or "postings a, b and 3 more"."""
    listed = ", ".join(safe_text(name) for name in names[:NAMED])
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{noun if len(names) == 1 else noun + 's'} {listed}{more}"
