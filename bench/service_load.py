"""A load generator for the service that takes little of the machine itself.

As a program it is given a plan as JSON and prints what happened as JSON: it runs beside the service, in its own
process, so that neither waits for the other's interpreter.
"""

from __future__ import annotations

import json
import random
import selectors
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service_client import PATIENCE, Answer, Client, events, request

MOST = 400  # connections of an open loop at most


@dataclass
class Tally:
    """What happened: seconds from (planned) asking to the answer, answers by status, failures in words (the first 50),
    and, where asked for, the best SKU and view by version and picture."""

    keep: bool = False
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    answers: dict[str, dict[str, list[list[Any]]]] = field(default_factory=dict)

    def note(self, which: int, since: float, answer: Answer) -> None:
        """Count an answer to request ``which``."""
        self.statuses[str(answer.status) if answer.status else answer.body.decode()] += 1
        if answer.status != 200:
            if len(self.failures) < 50:
                self.failures.append(f"{answer.status} {answer.body[:300].decode('utf-8', 'replace')}")
            return
        self.seconds.append(time.perf_counter() - since)
        if self.keep:
            said = json.loads(answer.body)
            best = said["results"][0]["matches"][0]
            seen = self.answers.setdefault(said["gallery"]["version"], {}).setdefault(str(which), [])
            entry = [best["sku"], best["view"], round(best["score"], 4)]
            if entry not in seen:
                seen.append(entry)


def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float, tally: Tally) -> None:
    """Let each of ``clients`` ask, wait for the answer and ask again, for ``seconds``; then wait for what is under way.

    A client whose connection is gone opens another, and ends where nobody listens any more.
    """
    selector = selectors.DefaultSelector()
    turn, until = iter_turns(len(requests)), time.perf_counter() + seconds

    def ask(client: Client) -> None:
        which = turn()
        try:
            client.ask(requests[which], which, time.perf_counter())
        except OSError as error:
            tally.statuses[f"refused {type(error).__name__}"] += 1

    every = [Client(port, selector) for _ in range(clients)]
    for client in every:
        ask(client)
    while any(client.busy for client in every) and time.perf_counter() < until + PATIENCE:
        for client, which, since, answer in events(selector, 0.5):
            if which >= 0:
                tally.note(which, since, answer)
            if time.perf_counter() < until and not client.busy:
                ask(client)
    tally.statuses["never answered"] += sum(client.busy for client in every)
    for client in every:
        client.close()
    selector.close()


def iter_turns(count: int) -> Callable[[], int]:
    """Return a function that gives 0, 1, ... ``count`` - 1, 0, ... in turn."""
    queue = deque(range(count))

    def turn() -> int:
        queue.rotate(-1)
        return queue[-1]

    return turn


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int, tally: Tally) -> None:
    """Ask at random moments, ``rate`` times a second on average (Poisson), whether or not answers have come.

    Seconds count from the planned moment: what the service or this process is late by is in them.
    """
    rng, selector, turn = random.Random(seed), selectors.DefaultSelector(), iter_turns(len(requests))
    every: list[Client] = []
    begun = time.perf_counter()
    following = begun + rng.expovariate(rate)
    while following < begun + seconds or any(client.busy for client in every):
        for _client, which, since, answer in events(selector, min(0.5, following - time.perf_counter())):
            if which >= 0:
                tally.note(which, since, answer)
        while following < begun + seconds and following <= time.perf_counter():
            client = next((one for one in every if not one.busy), None)
            if client is None:
                if len(every) == MOST:
                    sys.exit(f"{MOST} requests are under way: the service does not keep up with {rate:.1f} a second")
                client = Client(port, selector)
                every.append(client)
            which = turn()
            client.ask(requests[which], which, following)
            following += rng.expovariate(rate)
        if time.perf_counter() > begun + seconds + PATIENCE:
            break
    tally.statuses["never answered"] += sum(client.busy for client in every)
    for client in every:
        client.close()
    selector.close()


def main() -> None:
    """Do what the plan, the only argument, says, and print what happened."""
    plan = json.loads(sys.argv[1])
    bodies = [Path(path).read_bytes() for path in plan["pictures"]]
    requests = [request(plan["target"], body) for body in bodies]
    tally = Tally(plan["keep"])
    begun, used = time.perf_counter(), time.process_time()
    if plan["rate"]:
        open_loop(plan["port"], requests, plan["rate"], plan["seconds"], plan["seed"], tally)
    else:
        closed_loop(plan["port"], requests, plan["clients"], plan["seconds"], tally)
    wall, used = time.perf_counter() - begun, time.process_time() - used
    ranked = sorted(tally.seconds)
    found = {
        "answered": len(ranked),
        "rate": len(ranked) / wall,
        "load": used / wall,
        "statuses": {name: count for name, count in tally.statuses.items() if count},
        "failures": tally.failures,
        "answers": tally.answers,
    }
    for share in (50, 95, 99, 100):
        found[f"p{share} ms"] = 1000 * ranked[min(len(ranked) - 1, len(ranked) * share // 100)] if ranked else None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
