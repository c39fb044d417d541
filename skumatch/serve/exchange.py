"""One request and its answer: the headers that every answer has, errors as JSON, and what the access log says.

Sits between the server's ``send`` and the app. It knows nothing about keys or limits.
"""

from __future__ import annotations

import json
import time
from typing import Any

from starlette.types import Message, Scope, Send

from skumatch.serve import head
from skumatch.serve.keys import Principal
from skumatch.serve.limits import Body
from skumatch.serve.problems import Problem
from skumatch.serve.problems import body as words
from skumatch.serve.problems import headers as hints

LINGER = 2.0  # seconds for which a refused body is still read: closing at once would lose the answer on its way
GONE = 499  # logged where the client left before it was answered
_POLICY = {
    "default-src": "'none'",
    "img-src": "'self' blob:",  # pictures that were dropped, or came with a key
    "style-src": "'self'",
    "script-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
ALWAYS = {
    "content-security-policy": "; ".join(f"{what} {where}" for what, where in _POLICY.items()),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}
TLS = {"strict-transport-security": "max-age=31536000"}


class Exchange:
    """A request, its ``body`` and what was answered so far. ``extra``: headers beside those that all answers have."""

    def __init__(self, scope: Scope, body: Body, send: Send, extra: dict[str, str]) -> None:
        self.scope = scope
        self.headers = head.headers_of(scope)
        self.id = head.request_id(self.headers)
        self.body = body
        self.principal: Principal | None = None
        self.error = ""
        self.started = False
        self._send = send
        self._extra = {**ALWAYS, **extra, "x-request-id": self.id}
        self._held: list[Message] = []
        self._status = GONE
        self._bytes = 0
        self._begun = time.perf_counter()

    async def send(self, message: Message) -> None:
        """Pass a message of the app on to the server.

        What follows a refused body is dropped: the app may have called it something else. A 500 waits for the app's
        end, since Starlette sends its own page before it raises what happened.
        """
        if self.started:
            await self._pass(message)
        elif self.body.problem is None:
            if self._held or message.get("status") == 500:
                self._held.append(message)
            else:
                await self._pass(message)

    async def finish(self) -> None:
        """Send what was held back: the app came to its end. Raises Problem where the body was refused."""
        if self.body.problem and not self.started:
            raise self.body.problem
        held, self._held = self._held, []
        for message in held:
            await self._pass(message)

    async def refuse(self, problem: Problem) -> None:
        """Answer with ``problem``, and let the client end what it is sending. Only before the answer has begun."""
        data = json.dumps(words(problem, self.id)).encode()
        about = {"content-type": "application/json", "content-length": str(len(data)), **hints(problem)}
        headers = [(name.lower().encode(), value.encode()) for name, value in about.items()]
        unread = self._unread()
        await self._pass({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self._pass({"type": "http.response.body", "body": data, "more_body": unread})
        if unread:
            await self.body.discard(LINGER)
            await self._pass({"type": "http.response.body", "body": b"", "more_body": False})

    def record(self) -> dict[str, Any]:
        """Return what the access log says; the path without its query, which may hold what is nobody's business."""
        client = self.scope.get("client")
        facts = {
            "request": self.id,
            "method": self.scope["method"],
            "path": self.scope["path"],
            "route": getattr(self.scope.get("route"), "path", ""),
            "status": self._status,
            "ms": round((time.perf_counter() - self._begun) * 1000, 2),
            "bytes": self._bytes,
            "who": self.principal.name if self.principal else None,
            "client": client[0] if client else None,
        }
        return {**facts, "error": self.error} if self.error else facts

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if not self.body.gone:
                self._status = int(message["status"])
            message = {**message, "headers": self._completed(message)}
        elif message["type"] == "http.response.body":
            self._bytes += len(message.get("body", b""))
        await self._send(message)

    def _completed(self, message: Message) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer with those that all answers have."""
        fixed = dict(self._extra)
        if message["status"] == 401:
            fixed["www-authenticate"] = "Bearer"
        if self._unread():
            fixed["connection"] = "close"
        given = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", [])]
        kept = [(name, value) for name, value in given if name.decode("latin-1") not in fixed]
        if not any(name == b"cache-control" for name, _ in kept):
            fixed["cache-control"] = "no-store"
        return kept + [(name.encode(), value.encode()) for name, value in fixed.items()]

    def _unread(self) -> bool:
        """Return whether part of the body is still to come."""
        announced = "transfer-encoding" in self.headers or self.headers.get("content-length", ["0"]) != ["0"]
        return announced and not self.body.done and not self.body.gone
