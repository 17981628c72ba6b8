"""What the HTTP side of the service is told: who may ask, and how much of everything one may take."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from sam3lab.errors import UserError
from sam3lab.serve.decode import MAX_BYTES

KEY_VARIABLE = "SAM3LAB_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LEAST_KEY = 16


@dataclass(frozen=True)
class Settings:
    """api_key: who sends it may ask; empty: everyone who reaches the port. hosts: the names by which the service may be
    called (the header Host, without port); empty: any. checkpoint: its name, which the page shows.

    timeout: seconds that an answer may take, from when its image is there. body_bytes, body_seconds, body_idle: the most
    that a request's body may have, last, and pause. held_bytes: of all bodies together. header_seconds: the longest that
    a connection may take for a request's head. connections: the most at a time. decoders: images that are decoded at a
    time, and besides them one that is large; decodes_waiting: the most small ones that wait for that.
    """

    api_key: str = field(default="", repr=False)
    hosts: tuple[str, ...] = LOOPBACK
    checkpoint: str = ""
    timeout: float = 30.0
    body_bytes: int = MAX_BYTES + 1_000_000
    body_seconds: float = 30.0
    body_idle: float = 5.0
    held_bytes: int = 512_000_000
    header_seconds: float = 10.0
    connections: int = 8_000
    decoders: int = 2
    decodes_waiting: int = 16


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a port that is bound to `host`, a name or an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_key(file: Path | None, host: str) -> str:
    """The API key: from `file`, else from the environment, where it is then deleted so that no child inherits it.

    Empty where there is none. Raises UserError for a file that cannot be read, a key that is too short or cannot stand in
    a header, and where there is none though other machines reach `host`.
    """
    key, source = os.environ.pop(KEY_VARIABLE, ""), f"the variable {KEY_VARIABLE}"
    if file is not None:
        source = f"the file {file}"
        try:
            key = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the API key from {file}: {error}") from error
    key = key.strip()
    if key and (len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise UserError(
            f"the API key in {source} must be {_LEAST_KEY} or more printable ASCII characters without spaces; {_MAKE}"
        )
    if not key and file is not None:
        raise UserError(f"there is no API key in {source}; {_MAKE}")
    if not key and not is_loopback(host):
        raise UserError(
            f"other machines reach {host}, so that an API key is needed; {_MAKE}, and give --api-key-file api-key or set "
            f"{KEY_VARIABLE}; or leave --host at 127.0.0.1"
        )
    return key


_MAKE = """make one: (umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > api-key)"""
