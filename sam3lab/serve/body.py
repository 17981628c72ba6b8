"""How much of a body is taken, and how long it may last: before anything buffers or parses it."""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sam3lab.serve import problems
from sam3lab.serve.request import Busy
from sam3lab.serve.settings import Settings


class BodyLimits:
    """ASGI middleware: a body has at most so many bytes, whatever it announced, comes within so many seconds without
    long pauses, and is not compressed; all bodies that are held at a time have at most so many bytes together.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings, self.held = app, settings, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        body = _Body(self, receive)
        try:
            self._check(Headers(scope=scope))
            await self.app(scope, body.receive, watched)
        except HTTPException as refusal:  # from here, or from `receive` through an application that lets it pass
            if started:
                raise
            status, sentence = refusal.status_code, str(refusal.detail)
            await problems.response(scope, status, sentence, headers=refusal.headers)(scope, receive, send)
        finally:
            self.held -= body.taken
            if body.gone:
                problems.gone(scope)

    def _check(self, headers: Headers) -> None:
        """Refuse what the head alone tells."""
        if any(value.strip().lower() != "identity" for value in headers.getlist("content-encoding")):
            raise HTTPException(415, "the body is compressed; send it as it is", {"Accept-Encoding": "identity"})
        with contextlib.suppress(ValueError):
            if int(headers.get("content-length", "0")) > self.settings.body_bytes:
                raise self.too_large()

    def too_large(self) -> HTTPException:
        return HTTPException(413, f"the request has more than {self.settings.body_bytes} bytes; send a smaller image")


class _Body:
    """One request's body, how much of it was taken, and whether its client went before its end."""

    def __init__(self, limits: BodyLimits, receive: Receive):
        self.limits, self.settings, self._receive = limits, limits.settings, receive
        self.taken, self.complete, self.gone = 0, False, False
        self.deadline = asyncio.get_running_loop().time() + self.settings.body_seconds

    async def receive(self) -> Message:
        if self.complete:  # what comes now says that the client has gone, and may take its time
            return await self._receive()
        try:
            pause = asyncio.get_running_loop().time() + self.settings.body_idle
            async with asyncio.timeout_at(min(pause, self.deadline)):
                message = await self._receive()
        except TimeoutError:
            sentence = f"the body came too slowly; send it within {self.settings.body_seconds:g} s"
            raise HTTPException(408, sentence, {"Connection": "close"}) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.taken += size
            self.limits.held += size
            if self.taken > self.settings.body_bytes:
                raise self.limits.too_large()
            if self.limits.held > self.settings.held_bytes:
                raise HTTPException(429, *problems.told(Busy("too many images are being sent")))
            self.complete = not message.get("more_body", False)
        self.gone = message["type"] == "http.disconnect"
        return message
