"""Fetching single files from the Hugging Face hub, with a deadline instead of minutes of retries.

The only module that downloads. It knows nothing about what the files hold.
"""

from __future__ import annotations

import os
import socket
import threading
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from skumatch.errors import HubError

PROBE_SECONDS = 5.0
SUPPLY = "supply a local file with --weights FILE, or connect to the hub once"


def fetch(repo: str, filename: str) -> Path:
    """Return the local path of ``filename`` in hub repository ``repo``, downloading it if it is not cached.

    Raises HubError within seconds when it is neither cached nor to be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, filename, local_files_only=True))
    except HFValidationError:
        raise HubError(f"'{repo}' is not a hub repository", "name it as owner/name") from None
    except LocalEntryNotFoundError:
        pass
    probe()
    try:
        return Path(hf_hub_download(repo, filename))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(f"the hub did not deliver {repo}/{filename} ({reason})", SUPPLY) from error


def probe() -> None:
    """Return when the hub accepts a connection (through the proxy where one is set). Raises HubError otherwise."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubError("the weights are not on this machine and HF_HUB_OFFLINE is set", SUPPLY)
    endpoint = urlsplit(constants.ENDPOINT)
    proxy = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")
    target = urlsplit(proxy) if proxy else endpoint
    reason = _obstacle(target.hostname or "", target.port or (80 if target.scheme == "http" else 443))
    if reason:
        raise HubError(f"the weights are not on this machine and the hub cannot be reached ({reason})", SUPPLY)


@cache
def _obstacle(host: str, port: int) -> str:
    """Return what stands between here and ``host`` ("" for nothing), found out once per process.

    In a thread of its own: a name lookup obeys no timeout.
    """
    found = ["no answer in time"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
            found[0] = ""
        except OSError as error:
            found[0] = str(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return found[0]
