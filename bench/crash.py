"""SIGKILL at every step of every operation that changes a gallery, and what is left of the gallery then.

Half of the kills hit one file-system event after the other, half a random moment. ``--trials`` says how many there
are.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, Result

sys.path.insert(0, str(ROOT))
from tests.skumatch.crash_trials import Bench, Verdict, table
from tests.skumatch.gallery_oracle import quick_disk

TRIALS, QUICK = 1000, 100
SHOWN = 20  # bad verdicts printed in full


def main() -> None:
    """Kill, look and print."""
    options = arguments()
    trials, started = QUICK if options.quick else options.trials, time.perf_counter()
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(dir=quick_disk()) as folder:
        os.environ["SKUMATCH_CACHE"] = str(Path(folder) / "cache")
        (Path(folder) / "stores").mkdir()
        with Bench(Path(folder) / "stores") as bench:
            for kill in bench.kills(trials, options.seed):
                verdicts.append(bench.trial(kill))
                if verdicts[-1].why and sum(bool(verdict.why) for verdict in verdicts) <= SHOWN:
                    print(verdicts[-1], flush=True)
    seconds = time.perf_counter() - started
    result = Result(options.quick)
    said(verdicts, seconds, result)
    result.write(options.json)
    if any(verdict.state == "inconsistent" or verdict.lost for verdict in verdicts):
        sys.exit("a gallery was left inconsistent, or a change was lost")


def arguments() -> argparse.Namespace:
    """Parse ``[--quick] [--trials N] [--seed N] --json OUT``; ``--data`` and ``--weights`` are not needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} trials, claims no bars")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, required=True, help="file for bars and figures")
    return parser.parse_args()


def said(verdicts: list[Verdict], seconds: float, result: Result) -> None:
    """Print the counts per operation and hold their sums against the bars."""
    rows = table(verdicts)
    names = [name for name in rows[0] if name != "operation"]
    print(f"{'operation':14}" + "".join(f"{name:>14}" for name in names))
    for row in rows:
        print(f"{row['operation']:14}" + "".join(f"{row[name]:14}" for name in names))
    killed = sum(verdict.killed for verdict in verdicts)
    after = sum(verdict.killed and verdict.done for verdict in verdicts)
    print(f"{killed} kills in {seconds:.0f} s, {after} of them after the change was acknowledged")
    result.figures |= {"operations": rows, "seconds": seconds, "killed after the acknowledgement": after}
    result.bar("SIGKILL trials", killed, TRIALS, "least")
    inconsistent = sum(verdict.state == "inconsistent" for verdict in verdicts)
    result.bar("galleries left inconsistent", inconsistent, 0, "most")
    result.bar("acknowledged changes lost", sum(verdict.lost for verdict in verdicts), 0, "most")


if __name__ == "__main__":
    main()
