"""The service on this machine: broken pictures, throughput, latency, a gallery that changes under load, signals.

python bench/service.py [--quick] [--soak SECONDS] [--data DIR] [--weights FILE] [--work DIR] --json OUT

Throughput is held against matching files with the same model in one process, in turns. The load comes from another
process on the same cores; its share is among the figures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import SHARED, Result, kept
from service_mutants import figures as broken_pictures
from service_process import Server
from service_rates import rates
from service_soak import ended, killed, soak
from service_space import Space, fast, small

SOAK = 1800.0
MUTANTS, WARM, KILLS = 10_000, 2_000, 10


def main() -> None:
    """Run the rungs, print the bars and write JSON."""
    options = arguments()
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)) / ("quick" if options.quick else "service")
        work.mkdir(parents=True, exist_ok=True)
        if options.quick:
            result.figures = kept(work / "smoke.json", lambda: smoke(small(work, "smoke"), options.soak))
        else:
            for name, step in rungs(work, options).items():
                result.figures[name] = kept(work / f"{name}.json", step)
    say(result.figures)
    claim(result)
    result.write(options.json)


def rungs(work: Path, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return what is measured, by name; each on services of its own."""

    def served(space: Space, run: Callable[[Space, Server], Any]) -> Any:
        with space.start() as server:
            return run(space, server)

    def speed(name: str) -> Any:
        return served(fast(work, options.data, options.weights, name), lambda space, at: rates(space, at, False))

    return {
        "rates": lambda: speed("rates"),
        "light": lambda: speed("light"),
        "mutants": lambda: served(small(work, "mutants"), lambda space, at: broken_pictures(at, MUTANTS, WARM)),
        "soak": lambda: served(small(work, "soak"), lambda space, at: soak(at, space.shop(), options.soak)),
        "ended": lambda: [served(small(work, "ended"), lambda space, at: ended(at, space.crops)) for _ in range(5)],
        "killed": lambda: kills(small(work, "killed")),
    }


def kills(space: Space) -> dict[str, Any]:
    """Kill services that are being written to."""
    return killed(space.start, space.crops, KILLS)


def smoke(space: Space, seconds: float) -> dict[str, Any]:
    """Return a little of everything, most of it of one service: to start one takes long."""
    with space.start() as server:
        return {
            "rates": rates(space, server, True),
            "mutants": broken_pictures(server, 300, 100),
            "soak": soak(server, space.shop(), seconds, pause=seconds / 4),
            "ended": [ended(server, space.crops, 1.0)],
            "killed": killed(space.start, space.crops, 1),
        }


def arguments() -> argparse.Namespace:
    """Parse the arguments of the other scripts, and ``--soak SECONDS``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smoke version, claims no bars")
    parser.add_argument("--soak", type=float, help=f"seconds under load while the gallery changes ({SOAK:g})")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="data root with grocery-store/ in it")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "mobilenetv2_100_imagenet.safetensors")
    parser.add_argument("--work", type=Path, help="keep finished rungs here, so that a second run resumes")
    parser.add_argument("--json", type=Path, required=True, help="file for bars and figures")
    options = parser.parse_args()
    for name in ("data", "weights", "work", "json"):  # commands run in other folders
        given = getattr(options, name)
        setattr(options, name, given and given.resolve())
    options.soak = options.soak or (3.0 if options.quick else SOAK)
    return options


def say(figures: dict[str, Any]) -> None:
    """Print what was measured."""
    broken, soaked = (figures[name] for name in ("mutants", "soak"))
    print()
    for name in ("rates", "light"):
        if name in figures:
            say_rates(figures[name])
    print(f"mutants: {broken['pictures']:,} in {broken['statuses']}, {broken['decisions']}")
    print(f"memory after some and after all: {broken['MB before']:.0f} MB, {broken['MB after']:.0f} MB")
    print(f"soak: {soaked['answered']:,} answers of {soaked['versions']} versions in {soaked['seconds']:.0f} s")
    print(
        f"changes: {soaked['changes']}; memory early and late: {soaked['MB early']:.0f} MB, {soaked['MB after']:.0f} MB"
    )
    for one in figures["ended"]:
        print(f"SIGTERM: {one['answered']:,} answered, {one['statuses']}, exit {one['exit code']}")
    print(f"SIGKILL: {figures['killed']['acknowledged']:,} changes acknowledged\n")


def say_rates(rate: dict[str, Any]) -> None:
    """Print how many were answered and how soon."""
    half = rate["half the rate"]
    print(f"{rate['model']}: files {rate['files/s']:.1f}/s, requests of 16 clients {rate['requests/s']:.1f}/s")
    print(f"load generator: {rate['load']:.0%} of a core; one client alone: {rate['single ms']:.1f} ms (median)")
    parts = ", ".join(f"{name} {half[f'{name} ms']:.1f} ms" for name in ("p50", "p95", "p99", "p100"))
    print(f"{half['asked a second']:.1f} requests a second at random moments: {parts}")


def claim(result: Result) -> None:
    """Hold the figures against what the service promises."""
    rate, broken, soaked = (result.figures[name] for name in ("rates", "mutants", "soak"))
    over = rate["half the rate"]["p99 ms"] / rate["single ms"]
    grown = broken["MB after"] / broken["MB before"] if broken["MB before"] else 0.0
    result.bar("16 clients: share of the rate of matching files", rate["fraction"], 0.85, "least")
    result.bar("half the load: p99, times one request alone", over, 6, "most")
    result.bar("requests that failed while rates were measured", rate["failed"], 0, "most")
    result.bar("mutants sent", broken["pictures"], 10_000, "least")
    result.bar("mutants: 5xx or lost", broken["5xx or lost"], 0, "most")
    result.bar("mutants: wrong answers", broken["wrong count"], 0, "most")
    result.bar("mutants: memory at the end, times that after the first 2,000", grown, 1.1, "most")
    result.bar("soak: seconds", soaked["seconds"], SOAK, "least")
    result.bar("soak: requests that failed", soaked["failed"], 0, "most")
    result.bar("soak: changes that failed", len(soaked["changes failed"]), 0, "most")
    result.bar("soak: answers that are not their version's", len(soaked["inconsistent"]), 0, "most")
    tracebacks = sum(one["tracebacks"] for one in (rate, broken, soaked, *result.figures["ended"]))
    result.bar(
        "soak: memory at the end, times that after a tenth", soaked["MB after"] / (soaked["MB early"] or 1), 1.1, "most"
    )
    result.bar("tracebacks in the services' logs", tracebacks, 0, "most")
    result.bar("SIGTERM: requests lost", sum(one["lost"] for one in result.figures["ended"]), 0, "most")
    result.bar("SIGKILL: acknowledged changes lost", len(result.figures["killed"]["lost"]), 0, "most")


if __name__ == "__main__":
    main()
