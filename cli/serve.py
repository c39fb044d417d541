"""``skumatch serve``: the matcher behind HTTP."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import (
    Device,
    GalleryOption,
    ModelOption,
    PrecisionOption,
    RuntimeOption,
    encoder_of,
    gallery_home,
    model_of,
    note,
    workspace_or_none,
)

if TYPE_CHECKING:
    from skumatch.encoder import Encoder
    from skumatch.serve.loaded import ModelHome
    from skumatch.serve.service import Service
    from skumatch.serve.settings import Settings
    from skumatch.workspace import Workspace

StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="Folder of keys, audit log, uploads.", show_default="the workspace's service/"),
]


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0: any free one.", show_default="8080")
    ] = None,
    model: ModelOption = None,
    gallery: GalleryOption = None,
    state: StateOption = None,
    device: Device = None,
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Decode threads.", show_default="one per core")] = None,
    urls: Annotated[bool | None, typer.Option("--urls", help="Pictures may be named by public URL.")] = None,
    reviews: Annotated[bool | None, typer.Option("--reviews", help="Keep doubtful crops for review.")] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="Results of `skumatch dedupe` whose groups are reviewed.", show_default="none")
    ] = None,
    watch: Annotated[
        float | None, typer.Option(min=0, help="Seconds between looks for a newer gallery or model; 0: when told.")
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Its private key, PEM.")] = None,
) -> None:
    """Answer crops over HTTP until SIGTERM; SIGHUP takes up a newer model or gallery. See docs/service.md.

    Limits and the rest stand in the section "service" of skumatch.toml.
    """
    from skumatch.errors import ConfigError

    try:
        from skumatch.serve import access
        from skumatch.serve.app import make_app
        from skumatch.serve.guard import check_exposure
        from skumatch.serve.server import run
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed", "pip install 'skumatch[serve]'") from error
    workspace = workspace_or_none()
    given = {"host": host, "port": port, "workers": workers, "urls": urls, "reviews": reviews, "watch": watch}
    given["catalogue"] = str(catalogue.absolute()) if catalogue is not None else None
    settings = settings_of(workspace, {**given, "tls_cert": tls_cert, "tls_key": tls_key})
    if settings.catalogue:
        note(f"groups of {settings.catalogue}, which are read when they are new")
    service = service_of(workspace, settings, state, (model, gallery), (device, runtime, precision))
    check_exposure(settings, service.keys)
    service.load()
    loaded = service.loaded
    note(f"{loaded.model['name']}, gallery {service.home} {loaded.gallery.version}: {len(loaded.gallery):,} views")

    async def on_hup() -> None:
        await service.reload("SIGHUP")

    with access.to(sys.stderr):
        run(make_app(service), settings, on_hup, service.drain, ready=lambda url: note(f"listening on {url}"))


def settings_of(workspace: Workspace | None, given: dict[str, Any]) -> Settings:
    """Return the workspace's ``[service]`` with what was ``given`` (not None) in its place. Raises ConfigError."""
    from skumatch.serve.settings import Settings

    base = workspace.service if workspace is not None else Settings()
    if workspace is not None and base.catalogue:
        base = replace(base, catalogue=str(workspace.folder / base.catalogue))
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def state_of(workspace: Workspace | None, state: Path | None, settings: Settings) -> Path:
    """Return the folder of keys, audit log and uploads."""
    return state or (workspace.folder if workspace is not None else Path.cwd()) / settings.state


def service_of(
    workspace: Workspace | None,
    settings: Settings,
    state: Path | None,
    what: tuple[str | None, str | None],
    how: tuple[str | None, str | None, str | None],
) -> Service:
    """Return the Service over the (model, gallery) that were asked for, else the workspace's, run as ``how`` (device,
    runtime, precision) says."""
    from skumatch.serve.service import Service

    models = models_of(workspace, what[0], how)
    home = gallery_home(workspace, what[1])
    return Service(settings, models, home, state_of(workspace, state, settings))


def models_of(
    workspace: Workspace | None, model: str | None, how: tuple[str | None, str | None, str | None]
) -> ModelHome:
    """Return where the model comes from: a folder, whose newer versions are taken up, or an untouched encoder."""
    from skumatch.serve.loaded import Store, Untouched

    device, runtime, precision = how
    wanted = device or (workspace.runtime.device if workspace else "auto")
    folder = model_of(workspace, model)
    if folder is not None:
        engine = runtime or (workspace.runtime.engine if workspace else "auto")
        return Store(folder, wanted, engine, precision)

    def make() -> Encoder:
        return encoder_of(workspace, model, device)

    return Untouched(make)
