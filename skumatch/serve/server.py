"""The process around the service: listens, reloads on SIGHUP, and on SIGTERM answers what it accepted, then ends.

Built on uvicorn's server, whose own end resets connections that wait to be accepted and closes idle ones without
looking whether a request has just come. Knows nothing about the application but its ASGI interface. Prints nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import FrameType
from typing import Any

import uvicorn

from skumatch.errors import SkumatchError
from skumatch.serve.listen import Door, bind, tls_of, url_of
from skumatch.serve.protocol import CLOSE, HEAD, Careful, fastest
from skumatch.serve.settings import Settings

MOMENT = 1.0  # seconds that an accepted connection has for its request, or its next, when the process ends
HANDSHAKE = 0.1  # seconds in which connections that are being made get here when no more are wanted
TICK = 0.02  # seconds between looks at whether everything is answered
LOG = logging.getLogger("skumatch.serve")

Hook = Callable[[], Awaitable[None]]


class Server(uvicorn.Server):
    """Serves ``app`` until SIGTERM, SIGINT or ``stop``; see ``run``."""

    def __init__(self, app: Any, settings: Settings, on_hup: Hook, on_drain: Hook) -> None:
        super().__init__(config_of(app, settings))
        self.settings = settings
        self.forced = False
        self._on_drain = on_drain
        self._hup = Coalesced(on_hup)
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._protocol = fastest()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(
        self, sockets: list[socket.socket] | None = None, ready: Callable[[str], None] | None = None
    ) -> None:
        """Listen on ``sockets`` (of the settings' host and port where None is given), call ``ready`` with the URL, and
        return when told to end and drained. Raises ConfigError for the address or the TLS files."""
        self._loop = asyncio.get_running_loop()
        self.config.load()
        tls = tls_of(self.settings)
        door = self._door(sockets or bind(self.settings.host, self.settings.port), tls)
        with self.capture_signals():
            ticks = asyncio.create_task(self._tick())
            try:
                await self._start()
                door.open()
                if ready is not None:
                    ready(url_of(door.sockets[0], tls is not None))
                await self._stop.wait()
                await self._end(door)
            finally:
                ticks.cancel()
                door.shut()
                await self._hup.cancel()

    def stop(self) -> None:
        """End as at SIGTERM; from any thread, once ``serve`` runs."""
        self.handle_exit(signal.SIGTERM, None)

    def _door(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> Door:
        def protocol() -> Careful:
            kind: Any = self._protocol
            made: Careful = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
            made.patience = self.settings.header_timeout
            return made

        return Door(sockets, protocol, lambda: len(self.server_state.connections), self.settings, tls)

    async def _start(self) -> None:
        self.lifespan = self.config.lifespan_class(self.config)
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SkumatchError("the service did not start", "see the lines above")
        self.started = True

    async def _tick(self) -> None:
        """Keep the Date of the answers right."""
        while True:
            await self.on_tick(0)
            await asyncio.sleep(1)

    async def _end(self, door: Door) -> None:
        """Drain, or be told a second time not to."""
        drained, forced = asyncio.create_task(self._drain(door)), asyncio.create_task(self._force.wait())
        await asyncio.wait({drained, forced}, return_when=asyncio.FIRST_COMPLETED)
        self.forced = not drained.done()
        for task in (drained, forced):
            task.cancel()
        await asyncio.gather(drained, forced, return_exceptions=True)
        await self._abort(door)
        if not self.forced:
            await self.lifespan.shutdown()

    async def _drain(self, door: Door) -> None:
        """Answer every request of every connection that a client takes for made, within the times of the settings."""
        try:
            await self._on_drain()
        except Exception:
            LOG.exception("marking the service as draining failed")
        self.config.encoded_headers = [*self.config.encoded_headers, CLOSE]
        await self.on_tick(0)
        for connection in self._connections():
            connection.say_goodbye()
        await asyncio.sleep(self.settings.drain)
        door.take_no_more()
        await asyncio.sleep(HANDSHAKE)
        door.close()
        end = asyncio.get_running_loop().time() + self.settings.grace
        state = self.server_state
        while door.opening or state.connections or state.tasks:
            if asyncio.get_running_loop().time() > end:
                LOG.error("%d requests were not answered in %g s", len(state.tasks), self.settings.grace)
                return
            for connection in self._connections():
                connection.retire(MOMENT)
            await asyncio.sleep(TICK)

    def _connections(self) -> list[Careful]:
        found: list[Any] = list(self.server_state.connections)
        return found

    async def _abort(self, door: Door) -> None:
        """End what is left: nothing, unless the time is up."""
        door.shut()
        for connection in self._connections():
            connection.transport.abort()
        tasks = [*self.server_state.tasks, *door.opening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take SIGTERM, SIGINT and SIGHUP while serving; uvicorn would raise them again at the end."""
        names = [name for name in ("SIGTERM", "SIGINT", "SIGBREAK", "SIGHUP") if hasattr(signal, name)]
        if threading.current_thread() is not threading.main_thread():
            names = []
        before = {name: signal.signal(getattr(signal, name), self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._signalled, sig)

    def _signalled(self, sig: int) -> None:
        if sig == getattr(signal, "SIGHUP", None):
            if not self._stop.is_set():
                self._hup.ring()
        elif self._stop.is_set() and sig == signal.SIGINT:
            self._force.set()
        else:
            self._stop.set()


class Coalesced:
    """Runs ``work`` once for each ``ring``, or once for all rings that come while it runs; it never runs twice at once.

    An exception is logged and ends nothing.
    """

    def __init__(self, work: Hook) -> None:
        self._work = work
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def ring(self) -> None:
        self._again = True
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._again:
            self._again = False
            try:
                await self._work()
            except SkumatchError as error:
                LOG.error("what was loaded before stays: %s", error)
            except Exception:
                LOG.exception("reloading failed; what was loaded before stays")
        self._task = None

    async def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def run(
    app: Any,
    settings: Settings,
    on_hup: Hook,
    on_drain: Hook,
    sockets: list[socket.socket] | None = None,
    *,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the ASGI ``app`` as ``settings`` say; return when it was told to end and every request is answered.

    SIGTERM and SIGINT: ``on_drain`` is awaited, requests are served for ``settings.drain`` seconds more with answers
    that close their connections, listening ends, and connections have a moment each for requests on their way and
    ``settings.grace`` seconds for the answers. A second SIGINT ends it at once: KeyboardInterrupt. SIGHUP: ``on_hup``.
    ``ready`` is called with the URL once it listens; ``sockets``: listening ones, in place of host and port. Raises
    ConfigError where it cannot listen or the TLS files are unfit.
    """
    server = Server(app, settings, on_hup, on_drain)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(server.serve(sockets, ready))
    if server.forced:
        raise KeyboardInterrupt


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the maker of uvloop's event loops, or of Python's where uvloop is not installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.SelectorEventLoop
    return uvloop.new_event_loop


def config_of(app: Any, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's settings: no logging set up, no WebSockets, no word about the server."""
    config = uvicorn.Config(
        app,
        http=fastest(),
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEAD,
    )
    config.timeout_keep_alive = settings.keep_alive  # type: ignore[assignment]  # typed int, used as float
    return config
