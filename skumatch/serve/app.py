"""The HTTP application over a Service: routes, errors as JSON, health and metrics, all behind the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import skumatch
from skumatch.serve import (
    access,
    catalogue_routes,
    gallery_routes,
    match_routes,
    metrics,
    page_routes,
    review_routes,
    sku_routes,
    view_routes,
)
from skumatch.serve.guard import Guard, require
from skumatch.serve.match_routes import gallery_said, id_of
from skumatch.serve.problems import Problem, body, headers
from skumatch.serve.schemas import Failure, Health, ModelSaid, ReloadSaid, failures

if TYPE_CHECKING:
    from skumatch.serve.service import Service

ABOUT = "Recognises which SKU a crop of a shop shelf shows. Errors are JSON: what is wrong, and what to do about it."
UNREADY: dict[int | str, dict[str, Any]] = {503: {"model": Failure, "description": "Not ready, or going away."}}
ROUTERS = (page_routes, match_routes, sku_routes, view_routes, gallery_routes, review_routes, catalogue_routes)


def make_app(service: Service) -> Guard:
    """Return the guarded ASGI application; its ``app`` is the FastAPI one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="skumatch",
        version=skumatch.__version__,
        description=ABOUT,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.include_router(own)
    for module in ROUTERS:
        app.include_router(module.router)

    def log(facts: dict[str, Any]) -> None:
        service.metrics.request(facts["route"] or "none", facts["status"], facts["ms"] / 1000)
        access.write(facts)

    return Guard(app, service.settings, service.keys, log)


own = APIRouter()


@own.get("/healthz", response_model=Health, operation_id="healthz", summary="Whether the process answers")
async def healthz() -> Health:
    """Say that the process answers; a supervisor may restart one that does not."""
    return Health(status="ok")


@own.get(
    "/readyz",
    response_model=Health,
    responses=UNREADY,
    operation_id="readyz",
    summary="Whether requests should be sent here",
)
async def readyz(request: Request) -> Health:
    """Say whether a gallery is loaded and the service is not going away."""
    service: Service = request.app.state.service
    if not service.ready:
        raise Problem(503, "not ready" if not service.draining else "going away", "ask another instance", 1.0)
    return Health(status="ok")


@own.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **failures()},
    operation_id="metrics",
    summary="Figures for Prometheus",
)
async def figures(request: Request) -> Response:
    """Return latency by stage, batch sizes, decisions, the queue and the gallery's age."""
    require(request, "read")
    return Response(request.app.state.service.metrics.render(), headers={"Content-Type": metrics.TYPE})


@own.post(
    "/v1/reload",
    response_model=ReloadSaid,
    responses=failures(409),
    operation_id="reload",
    tags=["gallery"],
    summary="Take up the current model and gallery",
)
async def reload(request: Request) -> ReloadSaid:
    """Open the current model and gallery beside those in use and swap them; requests go on being answered."""
    principal = require(request, "write")
    service: Service = request.app.state.service
    changed = await service.reload(f"reload by {principal.name}")
    loaded = service.loaded
    return ReloadSaid(changed=changed, model=ModelSaid(**loaded.model), gallery=gallery_said(loaded))


def answer(request: Request, problem: Problem) -> JSONResponse:
    """Return a Problem as it is answered."""
    return JSONResponse(body(problem, id_of(request)), problem.status, headers(problem))


async def on_invalid(request: Request, error: Exception) -> Response:
    """Answer values that are not of their type, naming the first."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) and error.errors() else {}
    where = " ".join(str(part) for part in first.get("loc", ())[1:]) or "the body"
    status = 400 if first.get("type") == "json_invalid" else 422
    return answer(request, Problem(status, f"{where}: {first.get('msg', 'is invalid')}", "see /openapi.json"))


async def on_http(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: an unknown path, another method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = str(error.detail) if isinstance(error, HTTPException) else "an internal error"
    found = answer(request, Problem(status, said.lower(), "see /openapi.json"))
    found.headers.update(getattr(error, "headers", None) or {})
    return found
