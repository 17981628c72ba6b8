"""`sam3lab serve`: the web page and the HTTP API."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam3lab.serve.spec import EngineSpec

FALLBACK = "openvino"
EPILOG = """
The page is at /, the API at /v1/segment and described by /openapi.json; /healthz, /readyz and /metrics are for those who
run it. From this machine alone it needs no key. With --host 0.0.0.0 it needs one, which programs send as
'Authorization: Bearer KEY' and a browser asks for (any user name, the key as password); it crosses the network as it is,
so put a proxy with TLS in front where others can listen.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    add("--checkpoint", default="sam3-nano", help="name or directory (default: %(default)s)")
    add("--backend", default="onnxruntime", help="runtime (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu")
    add("--precision", help="default: fp16 on cuda, fp32 on cpu")
    add(
        "--resolution",
        type=int,
        default=0,
        help="side in pixels that images are scaled to (default: the checkpoint's own)",
    )
    add("--threads", type=int, default=0, help="CPU threads of an engine (default: every core this process may use)")
    add(
        "--fallback",
        metavar="BACKEND",
        help="runtime that answers on the CPU, in fp32, while the first cannot; none for none (default: "
        f"{FALLBACK} where it is installed, unless it is the first)",
    )
    add("--queue", type=int, default=32, help="requests that may wait (default: %(default)s)")
    add("--timeout", type=float, default=30.0, help="seconds that an answer may take (default: %(default)s)")
    add(
        "--candidates", type=int, default=200, help="most instances of a prompt, best first (default: %(default)s, all)"
    )
    add("--no-batching", action="store_true", help="serve requests that wait together one by one")
    add("--no-cache", action="store_true", help="compute the features of each prompt and image anew")
    add("--no-page", action="store_true", help="the API alone")
    add(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file that holds the key which every request must bring; else the environment variable SAM3LAB_API_KEY",
    )
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which clients call the service, as through a proxy; repeatable (default: this machine's own, or "
        "any where --host is not)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until it is told to stop."""
    from sam3lab.serve.settings import LOOPBACK, Settings, is_loopback, read_key
    from sam3lab.serve.spec import Limits

    # What can be wrong with the arguments is said before anything heavy is loaded.
    key = read_key(args.api_key_file, args.host)
    primary, fallback = engines(args)
    caches = {"prompt_entries": 0, "image_entries": 0} if args.no_cache else {}
    wanted = {"queue": args.queue, "timeout": args.timeout, "candidates": args.candidates}
    limits = Limits(**wanted, batching=not args.no_batching, **caches)
    hosts = (*LOOPBACK, args.host, *args.allowed_host) if is_loopback(args.host) or args.allowed_host else ()
    names = tuple(name.lower() for name in hosts)
    # what may wait for an engine may come all at once, and waits to be decoded before
    waiting = max(Settings.decodes_waiting, args.queue)
    settings = Settings(key, names, args.checkpoint, args.timeout, decodes_waiting=waiting)

    from sam3lab.serve.server import run
    from sam3lab.serve.service import Service

    run(Service(primary, fallback, limits), settings, args.host, args.port, page=not args.no_page)
    return 0


def engines(args: argparse.Namespace) -> "tuple[EngineSpec, EngineSpec | None]":
    """The engine that answers, and the one that does where it cannot.

    Raises UserError for one that was named and is unknown or cannot run here.
    """
    from sam3lab import backends
    from sam3lab.errors import UserError
    from sam3lab.nvml import gpu
    from sam3lab.serve.spec import EngineSpec

    device = args.device or ("cuda" if gpu() else "cpu")
    precision = args.precision or ("fp16" if device == "cuda" else "fp32")
    common = {"checkpoint": args.checkpoint, "resolution": args.resolution, "threads": args.threads}
    primary = EngineSpec(args.backend, precision=precision, device=device, **common)
    if reason := backends.get(args.backend).unavailable(device, precision):
        raise UserError(f"the backend {args.backend} cannot run {precision} on {device}: {reason}")
    if args.fallback == "none":
        return primary, None
    name = args.fallback or FALLBACK
    called = f"{name}-cpu" if name == primary.name else name
    fallback = EngineSpec(name, precision="fp32", device="cpu", name=called, **common)
    if (fallback.backend, fallback.device) == (primary.backend, primary.device):
        if args.fallback:
            raise UserError(f"the fallback {name} on the CPU is the engine itself; name another, or none")
        return primary, None
    reason = backends.get(name).unavailable("cpu", "fp32")
    if reason and args.fallback:
        raise UserError(f"the fallback {name} cannot run here: {reason}; name another, or none")
    return primary, None if reason else fallback
