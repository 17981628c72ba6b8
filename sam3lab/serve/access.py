"""Who may ask: the service's own names, its own page, and where there is an API key those who send it."""

import base64
import binascii
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sam3lab.serve import problems
from sam3lab.serve.settings import LOOPBACK, Settings

OPEN = ("/healthz", "/readyz")  # what a supervisor probes without the key


class Access:
    """ASGI middleware that refuses before a byte of the body is read.

    Host: a page of another site can have its own name resolve to 127.0.0.1 and so pass for the same origin (DNS
    rebinding). Origin: a browser sends it with what another site's page asks for; without a look at it that page could
    keep the service busy, and with a key that the browser has saved read the answers too. The key comes as
    `Authorization: Bearer`, as `X-API-Key`, or as the password of HTTP Basic, which browsers ask their user for and then
    send for the page and all that it loads.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.hosts, self.key = app, frozenset(settings.hosts), settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})  # there are none
        refusal = self._refusal(scope, Headers(scope=scope))
        if refusal is None:
            return await self.app(scope, receive, send)
        return await refusal(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> problems.JSONResponse | None:
        hosts = headers.getlist("host")
        host = _name(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return problems.response(scope, 400, "the request must have one header Host that names this service")
        if self.hosts and host not in self.hosts:
            sentence = "this service does not go by the name in the header Host; start it with --allowed-host NAME"
            return problems.response(scope, 421, sentence)
        origins = headers.getlist("origin")
        if origins and not self._ours(origins, hosts[0]):
            sentence = "a page of another site may not use this service; ask it from a program, or from its own page"
            return problems.response(scope, 403, sentence)
        if self.key and scope["path"] not in OPEN and not any(map(self._is_key, _keys(headers))):
            sentence = "an API key is needed: send it as 'Authorization: Bearer KEY', or in a browser as the password"
            challenge = {"WWW-Authenticate": 'Basic realm="sam3lab", charset="UTF-8", Bearer realm="sam3lab"'}
            return problems.response(scope, 401, sentence, headers=challenge)
        return None

    def _ours(self, origins: list[str], host: str) -> bool:
        """Whether the page is the service's own: same host and port, or by a name that a proxy in front has."""
        if len(origins) != 1 or not origins[0].startswith(("http://", "https://")):
            return False  # "null" too, which a sandboxed frame sends
        own = origins[0].partition("://")[2]
        if own.lower() == host.lower():
            return True
        # A proxy may have replaced the header Host; a name is told by --allowed-host then, and never one of loopback's,
        # where every port may belong to someone else.
        return _name(own) in self.hosts - set(LOOPBACK)

    def _is_key(self, given: bytes) -> bool:
        return hmac.compare_digest(given, self.key)


def _name(netloc: str) -> str | None:
    """The host in "host:port", lower case, without brackets; None where it makes no sense."""
    try:
        split = urlsplit("//" + netloc)
        name, _ = split.hostname, split.port
    except ValueError:
        return None
    return name if name and split.netloc == netloc and "@" not in netloc else None


def _keys(headers: Headers) -> list[bytes]:
    """What the request offers as the key."""
    given = [value.encode("latin-1") for value in headers.getlist("x-api-key")]
    for value in headers.getlist("authorization"):
        kind, _, content = value.partition(" ")
        if kind.lower() == "bearer":
            given.append(content.strip().encode("latin-1"))
        elif kind.lower() == "basic":
            try:
                given.append(base64.b64decode(content.strip(), validate=True).partition(b":")[2])
            except (binascii.Error, ValueError):
                continue
    return given
