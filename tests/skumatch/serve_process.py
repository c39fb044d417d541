"""Run a service over the fake encoder in a process of its own: serve_process.py GALLERY STATE PORT [NAME=VALUE...].

Values are settings, or calibration=FILE; it prints "listening on URL" on stderr.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def fake_encoder() -> Any:
    """Return the encoder of tests/conftest.py."""
    spec = importlib.util.spec_from_file_location("fakes", ROOT / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fakes"] = module
    spec.loader.exec_module(module)
    return module.FakeEncoder()


def main(gallery: str, state: str, port: str, *given: str) -> None:
    from skumatch.backend import backend
    from skumatch.calibration import Calibration
    from skumatch.search import Search
    from skumatch.serve import access
    from skumatch.serve.app import make_app
    from skumatch.serve.loaded import Opened, Untouched
    from skumatch.serve.server import run
    from skumatch.serve.service import Service
    from skumatch.serve.settings import Settings

    class Calibrated(Untouched):
        """The fake encoder with a decision rule."""

        def open(self) -> Opened:
            encoder = self.make()
            return Opened(encoder, rule, Search(), lambda: encoder)

    values = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in given)}
    file = values.pop("calibration", None)
    rule = Calibration.read(Path(file).read_bytes()) if file else None
    settings = Settings(**{"port": int(port), **values})
    service = Service(settings, Calibrated(fake_encoder), backend(Path(gallery)), Path(state))
    service.load()

    async def on_hup() -> None:
        await service.reload("SIGHUP")

    def ready(url: str) -> None:
        sys.stderr.write(f"listening on {url}\n")

    with access.to(sys.stderr):
        run(make_app(service), settings, on_hup, service.drain, ready=ready)


if __name__ == "__main__":
    main(*sys.argv[1:])
