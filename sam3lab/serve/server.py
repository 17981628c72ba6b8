"""The process around the application: its port, its signals, its log and its end."""

import logging
import signal
import socket
import sys
import threading
from dataclasses import replace
from types import FrameType

import uvicorn

from sam3lab.errors import UserError
from sam3lab.serve.api import create_app
from sam3lab.serve.protocol import protocol as guarded
from sam3lab.serve.settings import Settings

BACKLOG = 2048
FILES = 65_536  # descriptors that this process asks for
OWN_FILES = 200  # of which connections leave so many: for libraries, workers, uploads


def run(service, settings: Settings, host: str, port: int, page: bool = True) -> None:
    """Serve until SIGTERM or Ctrl-C; returns when every request that was taken is answered.

    Port 0 takes a free one. The URL is printed when connections are taken, before the service is ready. Raises UserError
    for a port that cannot be had, and what the service's start ended in where it failed.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("sam3lab").setLevel(logging.INFO)
    settings = replace(settings, connections=min(settings.connections, _open_files() - OWN_FILES))
    failure: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failure.append(error)
        server.should_exit = True

    with _listener(host, port) as listener:
        app = create_app(service, settings, failed)
        if page:
            from sam3lab.serve.page import mount

            app = mount(app, service, settings)
        address, bound = listener.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        config = uvicorn.Config(
            app,
            http=guarded(settings),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,  # the application has a line of its own, without addresses
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=round(settings.timeout + settings.body_seconds),
        )
        server = _Server(config, service, f"http://{name}:{bound}")
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            if not failure:
                raise
    if failure:
        raise failure[0]


class _Server(uvicorn.Server):
    """Prints its address; and at the second Ctrl-C has the service give up what it holds, at the third leaves it all."""

    def __init__(self, config: uvicorn.Config, service, url: str):
        super().__init__(config)
        self._service, self._url = service, url
        self._closing: threading.Thread | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn raises the signal again when it has shut down: exit as a program that has done its work then.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"{self._url} takes requests; GET /readyz tells when the model is loaded", flush=True)
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and self.should_exit and self._closing is None:
            # in a thread, since what the signal has interrupted may hold the service's lock
            self._closing = threading.Thread(target=self._service.close, name="service-close", daemon=True)
            self._closing.start()
        else:
            super().handle_exit(sig, frame)


def _listener(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:  # getaddrinfo takes it modulo 65536
        raise _unheard(host, port, ValueError("a port is a number from 0 to 65535"))
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        # With the protocol named: asyncio sets TCP_NODELAY on such sockets alone, without which answers come 40 ms late.
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _unheard(host, port, error) from error
    try:
        if sys.platform != "win32":  # where it would share the port with whoever has it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # whoever reads the printed address and asks at once then waits, and is not refused
    except OSError as error:
        listener.close()
        raise _unheard(host, port, error) from error
    return listener


def _unheard(host: str, port: int, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"cannot listen on {host}, port {port}: {reason}; give another --host or --port")


def _open_files() -> int:
    """How many descriptors this process may open, after the limit is raised as far as it may be."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft, hard = (
        FILES if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    most = min(hard, max(soft, FILES))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    except (OSError, ValueError):  # macOS has a lower one of its own
        return soft
    return most
