"""What of Gradio's routes the page needs, and nothing else of them.

Gradio brings an API of its own, a proxy, file routes, uploads of any kind, saved sessions, and inputs that name a path of
the server or a URL to be fetched. The API of this service is /v1/segment, so that the gate lets through what a browser
with the page open asks for, with small bodies, and of files only those that were uploaded for the page.
"""

import json
import re
import time
from pathlib import Path
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY = 64 << 10  # bytes of an event's JSON; the page's own have a few kilobytes
HELD = 256 << 20  # bytes of uploads that wait to be read or deleted; more are refused
AGE = 60  # seconds after which an upload that was not deleted by Gradio's own schedule is

READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?|/(assets|static|svelte)/[\w./-]+"
    r"|/gradio_api/(info|upload_progress|queue/data|file=.+)"
)
EVENTS = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
UPLOAD = "/gradio_api/upload"

# No origin but the page's own. Gradio's components compile their templates ('unsafe-eval') and style themselves.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class Gate:
    """ASGI middleware around Gradio's application; `folder` is where it puts uploads."""

    def __init__(self, app: ASGIApp, folder: Path):
        self.app, self.folder = app, folder.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # Gradio has no web sockets; a close before the accept is a refusal
            return await send({"type": "websocket.close", "code": 1008})
        scope = dict(scope)
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope, path)
        if refusal is None and path in EVENTS:
            receive, refusal = await self._checked(receive)
        if refusal is not None:
            return await refusal(scope, receive, guarded)
        if path == "/":
            scope["query_string"] = b""  # `deep_link` would load a saved session
        return await self.app(scope, receive, guarded)

    def _refusal(self, scope: Scope, path: str) -> PlainTextResponse | None:
        """The answer to a request that Gradio shall not see, from its head alone."""
        if scope["method"] in ("GET", "HEAD"):
            if not READ.fullmatch(path):
                return PlainTextResponse("There is nothing here; the page is at /, the API at /v1/segment.", 404)
            if path.startswith("/gradio_api/file=") and not self._ours(path.split("=", 1)[1]):
                return PlainTextResponse("That file is not one of the page's.", 403)
            return None
        if scope["method"] != "POST" or path not in (*EVENTS, UPLOAD):
            return PlainTextResponse("There is nothing here to send to; the API is at /v1/segment.", 404)
        if path == UPLOAD and self._held() > HELD:
            return PlainTextResponse(
                "Too many uploads wait to be read; try again in a minute.", 503, {"retry-after": "60"}
            )
        return None

    async def _checked(self, receive: Receive) -> tuple[Receive, PlainTextResponse | None]:
        """An event's body read to its end, given again by the `receive` returned, or the answer that refuses it."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return receive, PlainTextResponse("The client has gone.", 400)
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > BODY:
                return receive, PlainTextResponse(f"An event has at most {BODY >> 10} KiB; shorten the prompts.", 413)
        try:
            content = json.loads(body)
            foreign = not isinstance(content, dict) or self._foreign(content)
        except (ValueError, RecursionError):
            return receive, PlainTextResponse("An event is a JSON object.", 400)
        if foreign:
            return receive, PlainTextResponse("An event may name no file but one uploaded for it, and no URL.", 403)
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return pending.pop() if pending else await receive()

        return again, None

    def _foreign(self, value: object) -> bool:
        """Whether there is a file object in it, at any depth, that is no upload of the page's."""
        if isinstance(value, list):
            return any(map(self._foreign, value))
        if not isinstance(value, dict):
            return False
        path, url = value.get("path"), value.get("url")
        if isinstance(path, str) and path and not self._ours(path):
            return True
        # The page's own are "http://host/gradio_api/file=<path>", and data URIs of what it shows.
        if isinstance(url, str) and url:
            named = unquote(url.partition("/gradio_api/file=")[2])
            if not (url.startswith("data:image/") or (named and self._ours(named))):
                return True
        return any(map(self._foreign, value.values()))

    def _ours(self, path: str) -> bool:
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError):  # a name too long, or with a null character
            return False

    def _held(self) -> int:
        """Bytes in the folder, once what was left behind there is deleted."""
        total, now = 0, time.time()
        for file in [each for each in self.folder.rglob("*") if each.is_file()]:
            try:
                status = file.stat()
                if now - status.st_mtime > AGE:
                    file.unlink()
                else:
                    total += status.st_size
            except OSError:  # deleted meanwhile
                continue
        return total
