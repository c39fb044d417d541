"""One request to a service and its answer: addresses, keys, errors, and what may be tried again.

Knows HTTP and nothing about pictures or SKUs. What is tried again does no harm twice: see ``Wire.send``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from skumatch.errors import ConfigError, SkumatchError

if TYPE_CHECKING:
    import httpx2

PAUSE = 0.1  # seconds before a connection is tried again, doubled each time
File = tuple[str, tuple[str, bytes, str]]  # name of the part, and the file's name, content and type


class ServiceError(SkumatchError):
    """A request that was not answered as asked: ``status`` of the answer (0 where none came), ``what`` went wrong,
    ``todo``, and ``request``, the id under which the service logged it ("" where it gave none)."""

    def __init__(self, status: int, what: str, todo: str = "", request: str = "") -> None:
        self.status = status
        self.request = request
        super().__init__(what, todo)


@dataclass(frozen=True)
class Ask:
    """One request. ``again``: whether it may reach the service twice, as what changes nothing may."""

    method: str
    path: str
    again: bool
    params: Sequence[tuple[str, str]] = ()
    files: Sequence[File] = ()
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Wire:
    """Connections to one service, for any number of threads."""

    def __init__(self, url: str, key: str | None, timeout: float, retries: int) -> None:
        """See ``Client``. Raises ConfigError for values that cannot be used."""
        if not 0 < timeout < math.inf or retries < 0:
            raise ConfigError(f"timeout is {timeout}, retries {retries}", "give more than 0 seconds, 0 or more retries")
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if key is not None:
            headers["Authorization"] = f"Bearer {_usable(key)}"
        import httpx2

        self.url = _address(url)
        self.timeout = timeout
        self.retries = retries
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"'{url}' is no address ({error})", "give http://HOST:PORT or https://HOST") from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, ask: Ask) -> httpx2.Response:
        """Return the answer. Raises ServiceError for one with another status than 2xx, and where none came.

        Tried again, at most ``retries`` times and while ``timeout`` seconds have not passed: connections that were
        refused; what was answered by 429 with Retry-After, for it was not begun; and, where ``ask.again``, 503 with
        Retry-After and connections closed before the answer. A change is never sent twice otherwise.
        """
        if self._http.is_closed:
            raise ServiceError(0, "the client is closed", "make another one")
        until = time.monotonic() + self.timeout
        for attempt in range(self.retries + 1):
            pause, answer = self._try(ask, attempt)
            if pause is None or attempt == self.retries or time.monotonic() + pause > until:
                break
            time.sleep(pause)
        if isinstance(answer, ServiceError):
            raise answer
        return answer

    def _try(self, ask: Ask, attempt: int) -> tuple[float | None, httpx2.Response | ServiceError]:
        """Send it once; return the answer or what went wrong, and the seconds after which another try makes sense."""
        import httpx2

        pause = PAUSE * 2**attempt
        try:
            answer = self._once(ask)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            return pause, ServiceError(0, f"{self.url} cannot be reached ({error})", "see that the service runs")
        except httpx2.TimeoutException:
            return None, ServiceError(
                0, f"{self.url} did not answer in {self.timeout:g} s", "allow it a longer timeout"
            )
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            todo = "try again" if ask.again else "look whether the change was made before trying again"
            broken = ServiceError(0, f"{self.url} closed the connection without an answer ({error})", todo)
            return pause if ask.again else None, broken
        except httpx2.HTTPError as error:
            return None, ServiceError(0, f"{self.url} cannot be asked ({error})", "check the address")
        except (httpx2.InvalidURL, UnicodeError) as error:
            return None, ServiceError(0, f"the request cannot be written ({error})", "check names and values in it")
        if answer.is_success:
            return None, answer
        later = answer.status_code == 429 or (answer.status_code == 503 and ask.again)
        return _retry_after(answer) if later else None, _refusal(answer)

    def _once(self, ask: Ask) -> httpx2.Response:
        params: list[tuple[str, str | int | float | bool | None]] = [*ask.params]
        files = list(ask.files) or None
        return self._http.request(ask.method, ask.path, params=params, files=files, json=ask.body, headers=ask.headers)


def _address(url: str) -> str:
    """Return ``url`` as what paths are appended to. Raises ConfigError unless it is a plain http(s) address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"'{url}' is no address", "give http://HOST:PORT or https://HOST") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"'{url}' is no address", "give http://HOST:PORT or https://HOST")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("the address holds more than scheme, host, port and path", "give the key as `key`")
    return url.rstrip("/") + "/"


def _usable(key: str) -> str:
    """Return ``key``. Raises ConfigError, without repeating it, where no header can carry it."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the key is empty or holds characters that no key has", "give it as `skumatch keys add` did")
    return key


def _retry_after(answer: httpx2.Response) -> float | None:
    """Return the seconds that an answer asks to wait; None where it does not say."""
    try:
        seconds = float(answer.headers.get("Retry-After", ""))
    except ValueError:  # a date, which this service never sends
        return None
    return seconds if 0 <= seconds < math.inf else None


def _refusal(answer: httpx2.Response) -> ServiceError:
    """Return an answer that is not 2xx as an error, in the service's words where it gave some."""
    status, request = answer.status_code, answer.headers.get("X-Request-Id", "")
    try:
        told = json.loads(answer.content)
        return ServiceError(status, str(told["error"]), str(told["todo"]), str(told.get("request", request)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # what stands in front of it answered
    if answer.is_redirect:
        target = answer.headers.get("Location", "")
        return ServiceError(status, f"{answer.url.host} redirects to {target}", "give the client the address it has")
    what = f"{answer.url.host} answered {status} {answer.reason_phrase}".rstrip()
    return ServiceError(status, what, "see the log of the service or of the gateway in front of it", request)
