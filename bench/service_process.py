"""The service as a process of its own, the load on it as another, and what they say of themselves."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

START = 120.0  # seconds in which a service must be there
LISTENS = re.compile(r"listening on http://[^\s:]+:(\d+)")
TARGET = "/v1/match?k=1"


class Server:
    """A running service: ``command`` in ``folder``, what it says on stderr in ``log``. A context manager."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path) -> None:
        """Raises RuntimeError when it ends, or does not listen in time."""
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(list(command), cwd=folder, stdout=stream, stderr=stream)
        until = time.monotonic() + START
        while (found := LISTENS.search(log.read_text(errors="replace"))) is None:
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise RuntimeError(f"the service did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        self.port = int(found[1])
        while self.ask("GET", "/readyz")[0] != 200 and time.monotonic() < until:
            time.sleep(0.05)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, Any]:
        """Return the status and the JSON of an answer, None where it is no JSON. Raises OSError or HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Content-Type": kind or "application/octet-stream"} if body else {}
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(data)
        except ValueError:
            return answer.status, None

    def send(self, signal_number: int) -> None:
        """Send a signal."""
        self.process.send_signal(signal_number)

    def stop(self, seconds: float = 60.0) -> int:
        """Send SIGTERM and return how it ended. Raises TimeoutExpired."""
        self.send(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self.process.kill()
        self.process.wait()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def anonymous(self) -> float:
        """Return the MB that the process has for itself alone; 0 where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon:")), 0.0)

    def busy(self) -> float:
        """Return the seconds of processor time that it has used."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            return 0.0
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def complaints(self) -> int:
        """Return how many tracebacks it wrote."""
        return self.log.read_text(errors="replace").count("Traceback")


class Load:
    """Load on a service from a process of its own, which has begun when this is there."""

    def __init__(self, port: int, pictures: Sequence[Path], seconds: float, **how: Any) -> None:
        """``how``: ``clients`` that wait for answers, or a ``rate`` of random moments (with ``seed``); ``keep``: note
        what was answered; ``target``: what is asked."""
        plan = {"clients": 16, "rate": 0.0, "seed": 0, "keep": False, "target": TARGET, **how}
        plan |= {"port": port, "seconds": seconds, "pictures": [str(path) for path in pictures]}
        script = Path(__file__).with_name("service_load.py")
        self._process = subprocess.Popen([sys.executable, str(script), json.dumps(plan)], stdout=subprocess.PIPE)

    def result(self) -> dict[str, Any]:
        """Wait for its end and return what happened. Raises RuntimeError when it failed."""
        said, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError("the load generator failed")
        found: dict[str, Any] = json.loads(said)
        return found
