"""The end of a server, step by step, in the test's own event loop: what the system holds is not lost."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest

from skumatch.errors import GalleryError
from skumatch.serve.listen import Door, bind
from skumatch.serve.protocol import Careful
from skumatch.serve.server import Coalesced, Server
from skumatch.serve.settings import Settings
from tests.skumatch.small_server import app, head

Address = tuple[str, int]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def nothing() -> None:
    pass


def with_server(body: Callable[[Server, socket.socket], Awaitable[None]]) -> None:
    """Run ``body`` with a server that serves, and its listening socket."""

    async def main() -> None:
        sockets, ready = bind("127.0.0.1", 0), asyncio.Event()
        server = Server(app, Settings(drain=0), nothing, nothing)
        serving = asyncio.create_task(server.serve(sockets, lambda url: ready.set()))
        await ready.wait()
        try:
            await body(server, sockets[0])
        finally:
            server.stop()
            await serving

    asyncio.run(main())


async def ask(streams: Streams, path: str) -> bytes:
    """Ask and return the head of the answer; the body is read too."""
    reader, writer = streams
    writer.write(head(path))
    return await answer(reader)


async def answer(reader: asyncio.StreamReader) -> bytes:
    first = await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"}}")
    return first


def only(server: Server) -> Careful:
    """Return the one connection there is."""
    (connection,) = server._connections()
    return connection


def test_a_connection_is_retired_when_it_is_silent_and_read() -> None:
    async def body(server: Server, sock: socket.socket) -> None:
        streams = await asyncio.open_connection(*sock.getsockname())
        await ask(streams, "/1")
        connection = only(server)
        connection.retire(60)
        assert not connection.transport.is_closing()
        streams[1].write(head("/2"))  # it is sent at once, and the loop has not read it
        connection.retire(0)
        connection.timeout_keep_alive_handler()
        assert not connection.transport.is_closing()
        assert await answer(streams[0])
        streams[1].write(b"GET /3")
        while not connection._partial:
            await asyncio.sleep(0)
        connection.retire(0)
        assert not connection.transport.is_closing()
        streams[1].write(head("/3")[6:])
        assert await answer(streams[0])
        connection.retire(0)
        assert connection.transport.is_closing() and await streams[0].read() == b""
        streams[1].close()

    with_server(body)


def test_an_idle_connection_has_a_moment_after_listening_ended() -> None:
    async def body(server: Server, sock: socket.socket) -> None:
        streams = await asyncio.open_connection(*sock.getsockname())
        assert b"close" not in await ask(streams, "/before")
        server.stop()
        while sock.fileno() >= 0:
            await asyncio.sleep(0.005)
        assert b"connection: close" in await ask(streams, "/after") and await streams[0].read() == b""
        streams[1].close()

    with_server(body)


def test_an_answer_that_has_not_begun_says_that_the_connection_closes() -> None:
    async def body(server: Server, sock: socket.socket) -> None:
        streams = await asyncio.open_connection(*sock.getsockname())
        asking = asyncio.create_task(ask(streams, "/1"))
        while not server.server_state.tasks:
            await asyncio.sleep(0)
        server.stop()
        assert b"connection: close" in await asking and await streams[0].read() == b""
        streams[1].close()

    with_server(body)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can ignore who asks for a connection")
def test_nobody_gets_in_between_the_last_look_and_the_end() -> None:
    async def main() -> None:
        sock = bind("127.0.0.1", 0)[0]
        address: Address = sock.getsockname()
        door = Door([sock], asyncio.Protocol, lambda: 0, Settings(), None)
        sock.setblocking(False)
        waiting = [socket.create_connection(address, timeout=5) for _ in range(10)]
        door.take_no_more()
        with pytest.raises(TimeoutError):  # it is neither made nor refused
            await asyncio.to_thread(socket.create_connection, address, 0.2)
        for connection in waiting:
            connection.sendall(b"what was made goes on")
        door.close()
        await asyncio.gather(*door.opening)
        for connection in waiting:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):  # open, and nothing was said
                connection.recv(1)
            connection.close()
        await asyncio.sleep(0.05)

    asyncio.run(main())


def test_a_door_that_closes_takes_in_who_waits_and_nobody_else() -> None:
    async def main() -> None:
        sock = bind("127.0.0.1", 0)[0]
        address: Address = sock.getsockname()
        made: list[asyncio.Protocol] = []

        def make() -> asyncio.Protocol:
            made.append(asyncio.Protocol())
            return made[-1]

        door = Door([sock], make, lambda: 0, Settings(), None)
        sock.setblocking(False)  # and nothing accepts
        waiting = [socket.create_connection(address, timeout=5) for _ in range(100)]
        door.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(socket.create_connection, address, 5)
        await asyncio.gather(*door.opening)
        assert len(made) == len(waiting)
        for connection in waiting:
            connection.close()
        await asyncio.sleep(0.05)

    asyncio.run(main())


def test_a_reload_that_cannot_be_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise GalleryError("no gallery there", "build one")

    async def main() -> None:
        bell = Coalesced(fail)
        bell.ring()
        while not caplog.records:
            await asyncio.sleep(0)

    asyncio.run(main())
    (record,) = caplog.records
    assert record.getMessage() == "what was loaded before stays: no gallery there - build one" and not record.exc_info
