"""The HTTP API: POST /v1/segment, /healthz, /readyz, /metrics and /openapi.json, as one ASGI application."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from email.message import Message
from typing import Annotated, TypeVar

import starlette.requests
from fastapi import FastAPI, Form, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sam3lab import __version__
from sam3lab.serve import problems, work
from sam3lab.serve.access import Access
from sam3lab.serve.body import BodyLimits
from sam3lab.serve.container import Picture
from sam3lab.serve.decode import MAX_BYTES, examine, normalise_prompts, pixels
from sam3lab.serve.observe import PATHS, Metrics, Observe
from sam3lab.serve.request import Answer, Late, NotReady
from sam3lab.serve.request import Request as Question
from sam3lab.serve.schema import FORM_LIMITS, PROBLEM, REFUSALS, Segmentation, SegmentForm, describe_problems
from sam3lab.serve.settings import Settings

GRACE = 2.0  # seconds after a request's deadline in which the service has to say that it is late

T = TypeVar("T")


def create_app(
    service, settings: Settings | None = None, failed: Callable[[BaseException], None] = lambda error: None
) -> FastAPI:
    """The application around a `Service`, which it starts in a thread, so that /readyz answers meanwhile, and closes.

    `failed` is called, in that thread, with what the start ended in where it fails. In the application's
    `state.pools` all of its images are decoded, the page's too; it closes them when it ends.
    """
    settings = settings or Settings()
    metrics = Metrics(service)
    pools = work.Pools(settings.decoders, settings.decodes_waiting, settings.timeout)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        def start() -> None:
            try:
                work.warm_up()
                service.start()
                if ready := [name for name, each in service.status()["engines"].items() if each["state"] == "ready"]:
                    problems.log.info("ready: %s", ", ".join(ready))
            except BaseException as error:
                failed(error)

        threading.Thread(target=start, name="service-start", daemon=True).start()
        yield
        await asyncio.to_thread(service.close)
        pools.close()

    app = FastAPI(
        title="sam3lab",
        version=__version__,
        description="SAM 3: the things in an image that words name. Masks, boxes and scores, and how long each took.",
        lifespan=lifespan,
        docs_url=None,  # their scripts come from other hosts; any client reads /openapi.json
        redoc_url=None,
        responses={"default": {"description": "a problem", "content": PROBLEM}},
    )
    describe_problems(app)
    guards = [Security(HTTPBearer(auto_error=False)), Security(APIKeyHeader(name="X-API-Key", auto_error=False))]
    guarded = guards if settings.api_key else []  # for the description; Access is what guards
    app.state.pools = pools
    problems.add_handlers(app)
    # the last one added is the first one asked
    app.add_middleware(BodyLimits, settings=settings)
    app.add_middleware(Access, settings=settings)
    app.add_middleware(Observe, metrics=metrics)

    class Admitted(APIRoute):
        """A route that asks whether the service has room, and looks at the content type, before it reads the body."""

        def get_route_handler(self):
            handle = super().get_route_handler()

            async def admit(request: starlette.requests.Request) -> Response:
                _check_form(request.headers.get("content-type", ""))
                service.check_admission()
                return await handle(request)

            return admit

    async def segment(form: Annotated[SegmentForm, Form(media_type="multipart/form-data")], request: Request):
        begun, gone, size = time.monotonic(), threading.Event(), 0
        deadline = begun + settings.timeout
        if (form.image.size or 0) > MAX_BYTES:
            raise HTTPException(413, f"the image has more than {MAX_BYTES // 10**6} MB; send a smaller one")
        prompts = normalise_prompts(form.prompt)
        earlier: dict[str, float] = {}

        def read() -> Picture:
            with form.image.file as file:
                return examine(file.read())

        def late() -> Late:
            wait = max(pools.decoding(size).wait, pools.encoding(size).wait)
            return Late(f"there was no answer within {settings.timeout:g} s", wait)

        def submit(picture: Picture) -> "Future[Answer]":
            photograph = pixels(picture)
            decoded = time.monotonic()
            earlier["decode"] = (decoded - begun) * 1000
            if gone.is_set():
                raise problems.ClientGone
            if decoded >= deadline:
                raise late()
            return service.submit(Question(photograph, prompts, form.threshold, form.engine, deadline - decoded))

        try:
            picture = await _while_wanted(request, pools.decoding(0).run(read), deadline, late)
            size = math.prod(picture.size)
            pending = await _while_wanted(request, pools.decoding(size).run(submit, picture), deadline, late)
            del picture  # which may be 20 MB
            answer = await _while_wanted(request, asyncio.wrap_future(pending), deadline + GRACE, late)
            parts = form.threshold, form.mask_threshold, earlier, begun, deadline, gone
            encoding = pools.encoding(size).run(_encoded, answer, *parts)
            found, content = await _while_wanted(request, encoding, deadline, late)
        finally:
            gone.set()
        metrics.answered(found.milliseconds)
        return Response(content, media_type="application/json")

    app.router.add_api_route(
        "/v1/segment",
        segment,
        methods=["POST"],
        route_class_override=Admitted,
        response_model=Segmentation,
        form_limits=FORM_LIMITS,
        summary="Find what prompts name in an image",
        responses=REFUSALS,
        dependencies=guarded,
    )

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Whether the process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="Whether a request would be taken", responses={503: REFUSALS[503]})
    def readyz(request: Request) -> dict[str, str | bool]:
        status = service.status()
        if not status["ready"]:
            raise NotReady(status["reason"] or "the service is starting")
        return {"ready": True, "engine": status["engine"], "reason": status["reason"]}

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", summary="Prometheus' metrics", response_class=PlainTextResponse, dependencies=guarded)
    def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), media_type=content_type)

    for path in PATHS:  # before the page's route, which takes every other
        methods = {method for route in app.routes if route.path == path for method in route.methods}
        app.router.routes.append(Route(path, _NotAllowed(methods)))
    return app


class _NotAllowed:
    """ASGI application of a path, for what it is asked by other methods than those."""

    def __init__(self, methods: Iterable[str]):
        self.headers = {"Allow": ", ".join(sorted(methods))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(405, headers=self.headers)


def _encoded(*arguments) -> tuple[Segmentation, bytes]:
    found = work.segmentation(*arguments)
    return found, found.model_dump_json().encode()


def _check_form(content_type: str) -> None:
    """Raises for a body that is no multipart form in UTF-8."""
    header = Message()
    header["content-type"] = content_type
    if header.get_content_type() != "multipart/form-data" or not header.get_param("boundary"):
        raise HTTPException(415, "the body must be multipart/form-data, with a file 'image' and fields 'prompt'")
    if str(header.get_param("charset", "utf-8")).lower() not in ("utf-8", "utf8"):
        raise HTTPException(415, "the form's text must be in UTF-8")


async def _while_wanted(request: Request, result: Awaitable[T], deadline: float, late: Callable[[], Late]) -> T:
    """The result; or where there is none at the deadline what `late` gives, raised; or ClientGone. It is cancelled then.

    deadline: in time.monotonic()'s seconds.
    """
    wanted = asyncio.ensure_future(result)
    left = asyncio.ensure_future(_disconnect(request))
    try:
        timeout = max(0.0, deadline - time.monotonic())
        await asyncio.wait((wanted, left), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        if left.done():
            raise problems.ClientGone
        raise late()
    finally:
        wanted.cancel()
        left.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
