"""uvicorn's HTTP protocol with the limits that it lacks: of a request's head in time and size, and of slow readers."""

import asyncio
import itertools

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sam3lab.serve.settings import Settings

HEAD_BYTES = 65_536  # of request line and headers; of what frames a chunked body, as much again as the body itself
WRITE_SECONDS = 60.0  # for the end of an answer to reach the client


class GuardedProtocol(HttpToolsProtocol):
    """A connection that has not sent a whole head within `settings.header_seconds` is closed: from when it was opened, or
    from the last answer on it. That bounds as well how long the rest of a body is read, and thrown away, that was refused
    before its end: the client, still sending, sees the answer instead of a reset.

    With more than `settings.connections` open, those go first that have been waited for the longest, and of these those
    that never sent a request before those that did.
    """

    settings: Settings
    # connections without a request, in the order since when: those that never had one, and the others
    waiting: "tuple[dict[GuardedProtocol, None], dict[GuardedProtocol, None]]"

    _timer: asyncio.TimerHandle | None = None
    _overhead = _body = 0  # bytes of the current message
    _served = False
    _last_chance = True

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.settings.connections:
            new, served = self.waiting
            oldest = next(itertools.chain((each for each in new if each is not self), served), self)
            oldest._stop_waiting()  # at once, since several connections may come before this one is gone
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > HEAD_BYTES + self._body and not self.transport.is_closing():
            if self._timer:
                self.send_400_response("The request's head is too large.")
            else:
                self.transport.abort()

    def on_message_begin(self) -> None:
        self._overhead = self._body = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._served = True
        if self.cycle.response_complete and self.parser is not None:  # else the next request has begun already
            self._wait()

    def shutdown(self) -> None:
        super().shutdown()
        # An open page keeps a stream open for as long as it is there, in which nothing is awaited.
        if self.cycle and not self.cycle.response_complete and "/heartbeat/" in self.cycle.scope["path"]:
            self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._last_chance = True
        self.waiting[self._served][self] = None
        self._timer = self.loop.call_later(self.settings.header_seconds, self._expire)

    def _stop_waiting(self) -> None:
        for each in self.waiting:
            each.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        if self.transport.get_write_buffer_size() and self._last_chance:
            self._last_chance = False
            self._timer = self.loop.call_later(WRITE_SECONDS, self._expire)
        else:
            self.transport.abort()


def protocol(settings: Settings) -> type[GuardedProtocol]:
    """The class for one server."""
    return type("Protocol", (GuardedProtocol,), {"settings": settings, "waiting": ({}, {})})
