"""The guard around the service: every request passes here first, and every answer last.

It looks at the head, asks for a key, counts requests, bounds the body, gives each answer its headers and turns what
is raised into JSON. It knows nothing about routes beyond the two that anybody may ask.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from skumatch.errors import ArtefactError, ConfigError, SkumatchError
from skumatch.serve import head
from skumatch.serve.exchange import TLS, Exchange
from skumatch.serve.keys import LOCAL, Keys, Principal
from skumatch.serve.limits import HELD, Body, Buckets, Store, too_large
from skumatch.serve.page_routes import is_page
from skumatch.serve.problems import Problem, problem_of
from skumatch.serve.settings import Settings

OPEN = ("/healthz", "/readyz")  # asked by address, without a key, and they tell nothing but yes or no
WRONG_KEYS = 20  # per minute and address
HOW = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`"


class Guard:
    """ASGI middleware around ``app``; ``log`` is given the facts of each request after its answer.

    The app finds ``principal`` (Principal or None) and ``request_id`` in ``scope["state"]``.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, log: Callable[[dict[str, Any]], None]) -> None:
        self.app = app
        self._settings = settings
        self._keys = keys
        self._log = log
        self._names = frozenset(name.strip("[]") for name in settings.names)
        self._rates = Buckets(settings.rate, max(1.0, 2 * settings.rate)) if settings.rate else None
        self._wrong = Buckets(WRONG_KEYS / 60, WRONG_KEYS)
        self._store = Store(max(HELD, settings.max_body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises what the app raised if its answer had begun, so that the connection is cut."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        extra = TLS if self._settings.tls_cert else {}
        exchange = Exchange(scope, Body(receive, self._settings, self._store), send, extra)
        try:
            await self._serve(exchange)
        finally:
            exchange.body.release()
            self._log(exchange.record())

    async def _serve(self, exchange: Exchange) -> None:
        try:
            self._admit(exchange)
            await self.app(exchange.scope, exchange.body.receive, exchange.send)
            await exchange.finish()
        except Exception as error:
            if isinstance(error, ClientDisconnect) and exchange.body.gone:
                return
            problem = _problem(error) if exchange.body.problem is None else exchange.body.problem
            unexplained = problem.status == 500 or (problem.status > 500 and error.__cause__)
            exchange.error = traceback.format_exc() if unexplained else problem.what
            if exchange.started:
                raise
            await exchange.refuse(problem)

    def _admit(self, exchange: Exchange) -> None:
        """Look at all that is known before the body comes. Raises Problem."""
        scope, headers = exchange.scope, exchange.headers
        state = scope.setdefault("state", {})
        state.update(principal=None, request_id=exchange.id)
        head.check_size(scope)
        length = head.declared(headers)
        if scope["path"] not in OPEN:
            head.check_host(headers, self._names)
            head.check_origin(scope["method"], headers)
            if not is_page(scope["path"]):
                state["principal"] = exchange.principal = self._who(exchange)
                self._pace(exchange)
        if length > self._settings.max_body:
            raise too_large(self._settings.max_body)

    def _who(self, exchange: Exchange) -> Principal:
        """Return who asks. Raises Problem 401, 429 after too many wrong keys, 503 where the keys cannot be read.

        A right key is let in however many wrong ones came from its address: behind a gateway all have the same.
        """
        token = head.token_of(exchange.headers)
        try:
            required = self._keys.required
            principal = self._keys.check(token) if token is not None and required else None
        except ArtefactError as error:  # its words name a path, and whoever asks is not known
            raise Problem(503, "the API keys cannot be read", "the log of the service says why", 5.0) from error
        if not required and self._settings.local:
            return LOCAL
        if principal is not None:
            return principal
        if token is not None and (wait := self._wrong.take(head.network_of(exchange.scope))):
            raise Problem(429, "too many wrong API keys came from this address", HOW, wait)
        raise Problem(401, "the request has no valid API key", HOW)

    def _pace(self, exchange: Exchange) -> None:
        """Count a request of its key, or of its address where there are no keys. Raises Problem 429."""
        if self._rates is None or exchange.principal is None:
            return
        keyless = exchange.principal is LOCAL
        name = f"address {head.network_of(exchange.scope)}" if keyless else f"key {exchange.principal.name}"
        if wait := self._rates.take(name):
            what = f"more than {self._settings.rate:g} requests per second came from this {name.partition(' ')[0]}"
            raise Problem(429, what, "send them more slowly", wait)


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, SkumatchError):
        return problem_of(error)
    return Problem(500, "an internal error", "the log of the service has it under this request's id")


def require(request: Request, scope: str) -> Principal:
    """Return who asks, if its key has ``scope``. Raises Problem 401 or 403."""
    principal: Principal | None = request.scope.get("state", {}).get("principal")
    if principal is None:
        raise Problem(401, "the request has no valid API key", HOW)
    if scope not in principal.scopes:
        raise Problem(403, f"the key {principal.name} has not the scope {scope}", "use a key that has it")
    return principal


def check_exposure(settings: Settings, keys: Keys) -> None:
    """Raise ConfigError where other machines could ask without a key, ArtefactError for a damaged key file."""
    if len(keys) == 0 and not settings.local:
        what = f"the service would listen on {settings.host} without API keys"
        raise ConfigError(what, "make one with `skumatch keys add NAME --scope match`, or listen on 127.0.0.1")
