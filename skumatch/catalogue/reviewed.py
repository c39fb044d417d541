"""Matches and groups after review: what ``skumatch dedupe`` wrote, with people's decisions applied.

TO/matches.csv     every posting with all others of its group, 50 at most; alone where it has none
TO/groups.csv      as before; confidence 1 in groups that a person accepted or made
TO/dedupe.json     as before, with what the review changed

It knows nothing about how decisions are taken, and opens no picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from skumatch import artefact
from skumatch.catalogue import output
from skumatch.catalogue.decisions import Outcome, read_decisions, replay
from skumatch.catalogue.judged import MOST
from skumatch.catalogue.output import Listed
from skumatch.errors import ConfigError, DataError
from skumatch.readers_common import safe_text, shown
from skumatch.readers_tables import read_table


def apply_to(out: Path, decisions: Path, to: Path) -> tuple[int, int]:
    """Write the groups and matches of ``out``, a folder of ``skumatch dedupe``, into ``to`` as the file ``decisions``
    changes them; return how many groups were written and how many decisions applied.

    A posting matches all of its group: those that it matched before first, in that order. Raises DataError for a
    folder that is none, tables of different runs, or a decision that does not fit, naming its line; ConfigError where
    ``to`` is ``out``; ArtefactError when the disk refuses.
    """
    facts = output.read_facts(out)
    if to.exists() and to.samefile(out):
        raise ConfigError(f"{to} holds what the decisions are about", "name another folder with --to")
    listed = _listed(out / output.GROUPS)
    outcome = replay(_members(listed), read_decisions(decisions))
    several = {name: members for name, members in outcome.groups.items() if len(members) > 1}
    output.write_csv(to / output.MATCHES, output.MATCH_COLUMNS, _matches(out, several, listed))
    output.write_csv(to / output.GROUPS, output.GROUP_COLUMNS, _rows(several, listed, outcome))
    done = {"decisions": outcome.applied, "digest": artefact.file_digest(decisions), **_counts(several)}
    output.write_facts(to / output.FACTS, {**facts, "reviewed": done})
    return len(several), outcome.applied


def _listed(path: Path) -> dict[str, Listed]:
    """Return the postings in groups by their ids. Raises DataError for one in two groups."""
    found: dict[str, Listed] = {}
    for one in output.read_groups(path):
        first = found.setdefault(one.posting, one)
        if first is not one:
            what = f"{shown(path)} has the posting '{safe_text(one.posting)}' twice: {first.group} and {one.group}"
            raise DataError(what, "write it anew with `skumatch dedupe`")
    return found


def _members(listed: Mapping[str, Listed]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for one in listed.values():
        groups.setdefault(one.group, []).append(one.posting)
    return groups


def _rows(
    groups: Mapping[str, Sequence[str]], listed: Mapping[str, Listed], outcome: Outcome
) -> Iterator[Sequence[str]]:
    for name, members in groups.items():
        for posting in members:
            one = listed[posting]
            sure = 1.0 if name in outcome.decided else one.confidence
            yield name, posting, one.image, safe_text(one.title), f"{sure:.6f}"


def _matches(out: Path, groups: Mapping[str, Sequence[str]], listed: Mapping[str, Listed]) -> Iterator[Sequence[str]]:
    """Yield every posting of ``matches.csv`` with its matches. Raises DataError where grouped ones are not there."""
    of = dict(chain.from_iterable(((posting, name) for posting in members) for name, members in groups.items()))
    table = read_table(out / output.MATCHES)
    at, before = table.column("posting_id"), table.column("matches")
    there = 0
    for _, cells in table.records:
        posting = cells[at]
        there += posting in listed
        members = groups[of[posting]] if posting in of else (posting,)
        yield posting, " ".join(_ordered(posting, cells[before].split(), members))
    if there != len(listed):
        what = f"{shown(table.path)} and {output.GROUPS} beside it are not of the same postings"
        raise DataError(what, "write both anew with `skumatch dedupe`")


def _ordered(posting: str, before: Sequence[str], members: Sequence[str]) -> list[str]:
    """Return ``members`` with ``posting`` first, then those of ``before``, then the others; 50 at most."""
    left = dict.fromkeys(members)
    kept = dict.fromkeys([posting, *(one for one in before if one in left)])
    return list(kept | left)[:MOST]


def _counts(groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    sizes = [len(members) for members in groups.values()]
    return {"groups": len(sizes), "grouped": sum(sizes), "largest": max(sizes, default=0)}
