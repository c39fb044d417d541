"""Broken pictures for a running service: it must refuse them in its own words, go on, and keep no memory of them.

They come alone or up to four in a form, from several connections at once. What was right among them must be answered
right.
"""

from __future__ import annotations

import json
import random
import selectors
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import ROOT
from service_client import Answer, Client, events, form, request
from service_process import TARGET, Server

sys.path.insert(0, str(ROOT))
from tests.skumatch.mutants import SKUS, draw, mutants, sku_of

CONNECTIONS = 8
TOGETHER = 4  # pictures of one request at most
VIEWS = 4  # of each SKU in the gallery


def write_patterns(folder: Path) -> Path:
    """Write the pictures of which mutants are other views, as a data set of one folder per SKU."""
    for sku in range(SKUS):
        for view in range(VIEWS):
            path = folder / ("train" if view + 1 < VIEWS else "test") / f"sku-{sku}" / f"{view}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(sku, view).save(path)
    return folder


def figures(server: Server, count: int, warm: int, seed: int = 0) -> dict[str, Any]:
    """Send ``count`` mutants and return what became of them; memory is that after ``warm`` of them and at the end."""
    judge = Judge()
    asked = requests(seed, count)
    send(server.port, asked, judge, until=warm)
    before = server.anonymous()
    send(server.port, asked, judge, until=count)
    after = server.anonymous()
    return {
        "pictures": judge.pictures,
        "fine": judge.fine,
        "statuses": dict(judge.statuses),
        "decisions": dict(judge.decisions),
        "wrong": judge.wrong[:50],
        "wrong count": len(judge.wrong),
        "5xx or lost": sum(n for status, n in judge.statuses.items() if not status.startswith(("2", "4"))),
        "alive": server.alive and server.ask("GET", "/healthz")[0] == 200,
        "MB before": before,
        "MB after": after,
        "tracebacks": server.complaints(),
    }


def requests(seed: int, count: int) -> Iterator[tuple[list[str], bytes]]:
    """Yield requests, each with the names of its pictures."""
    rng, group, size = random.Random(seed), list[tuple[str, bytes]](), 1
    for number, mutant in enumerate(mutants(seed, count), start=1):
        group.append(mutant)
        if len(group) < size and number < count:
            continue
        names = [name for name, _ in group]
        body, kind = (group[0][1], "application/octet-stream") if size == 1 else form(group)
        yield names, request(TARGET, body, kind)
        group, size = [], rng.choice((1, 1, 1, TOGETHER))


class Judge:
    """Holds answers against what was sent."""

    def __init__(self) -> None:
        self.pictures = self.fine = 0
        self.statuses: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.wrong: list[str] = []

    def look(self, names: list[str], answer: Answer) -> None:
        """Count one answer and note what is wrong with it."""
        self.pictures += len(names)
        self.statuses[str(answer.status) if answer.status else answer.body.decode()] += 1
        wanted = [sku_of(name) for name in names]
        self.fine += sum(sku is not None for sku in wanted)
        try:
            said = json.loads(answer.body) if answer.status else {}
        except ValueError:
            said = {}
        if answer.status == 200:
            self._results(names, wanted, said.get("results", []))
        elif 400 <= answer.status < 500:
            if any(wanted):
                self.wrong.append(f"{answer.status} for {names}: {answer.body[:200]!r}")
            elif not all(isinstance(said.get(key), str) for key in ("error", "todo", "request")):
                self.wrong.append(f"{names[0]}: an error without its words: {answer.body[:200]!r}")
        else:
            self.wrong.append(f"{answer.status} for {names}: {answer.body[:200]!r}")

    def _results(self, names: list[str], wanted: list[str | None], results: list[dict[str, Any]]) -> None:
        if len(results) != len(names):
            self.wrong.append(f"{len(results)} answers for {names}")
            return
        for name, sku, result in zip(names, wanted, results, strict=True):
            self.decisions[result["decision"]] += 1
            best = result["matches"][0]["sku"] if result["matches"] else None
            if result["name"] not in ("", name):
                self.wrong.append(f"{name} is answered as {result['name']}")
            if (result["decision"] == "error") != (best is None) or (best is None) != bool(result["error"]):
                self.wrong.append(f"{name}: {result}")
            if sku is not None and best != sku:
                self.wrong.append(f"{name} is taken for {best}")


def send(port: int, asked: Iterator[tuple[list[str], bytes]], judge: Judge, until: int) -> None:
    """Send requests from several connections until ``until`` pictures are answered or none is left."""
    selector = selectors.DefaultSelector()
    clients = [Client(port, selector) for _ in range(CONNECTIONS)]
    named: dict[int, list[str]] = {}
    under_way = judge.pictures

    def ask(client: Client) -> None:
        nonlocal under_way
        if under_way < until and (following := next(asked, None)) is not None:
            names, data = following
            under_way += len(names)
            named[id(client)] = names
            client.ask(data, 0, 0.0)

    for client in clients:
        ask(client)
    while any(client.busy for client in clients):
        for client, which, _since, answer in events(selector, 60.0):
            if which >= 0:
                judge.look(named[id(client)], answer)
            if not client.busy:
                ask(client)
    for client in clients:
        client.close()
    selector.close()
