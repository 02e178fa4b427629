"""A port of this machine, claimed before the model is loaded, and the server on it until it is asked to stop."""

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.serve.guard import App, is_loopback
from tunesmith.serve.limits import Limits

KEY_VARIABLE = "TUNESMITH_API_KEY"
KEY = re.compile(r"[\x21-\x7e]{16,512}")
CONNECTIONS = 1024
"""More at once are turned away."""
TO_TELL = 5
"""Seconds after their grace for clients to take the news that their answer goes no further."""


def read_key(file: str | None) -> str | None:
    """The API key of a file or else of the environment, None if there is none. Never of the command line, which anyone on the
    machine can read.

    Raises:
        RunError: the file cannot be read, or holds no key.
    """
    if file is None:
        text, place = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    else:
        text, place = _read_private(Path(file)), file
    if text is None:
        return None
    key = text.strip()
    if not KEY.fullmatch(key):
        raise RunError(
            f"{place} does not hold an API key: 16 to 512 printable characters without spaces.",
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return key


def _read_private(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & (stat.S_IRGRP | stat.S_IROTH):
                raise RunError(f"{path} holds the API key, and other users can read it.", f"chmod 600 {path}")
            return file.read(4096)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise RunError(f"The API key cannot be read from {path}: {reason}.", "Give another --api-key-file.") from error


def claim_port(host: str, port: int) -> socket.socket:
    """A socket that listens there; requests wait until the server begins.

    Raises:
        RunError: the port is taken, or the host is none of this machine's.
    """
    name = host.strip("[]")
    try:
        family, kind, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        claimed = socket.socket(family, kind)
    except OSError as error:
        raise RunError(f"{host} is no address: {error.strerror}.", "Give another --host.") from error
    try:
        if os.name == "posix":
            claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claimed.bind(address)
        claimed.listen(2048)
    except OSError as error:
        claimed.close()
        if error.errno == errno.EADDRINUSE:
            raise RunError(f"Port {port} is taken{_holder(port)}.", f"Try --port {port + 1}, or --port 0 for any.") from error
        raise RunError(f"{host}:{port} cannot be listened on: {error.strerror}.", "Give another --host or --port.") from error
    return claimed


def _holder(port: int) -> str:
    """`` by NAME (process N)``, as far as this user may know."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


def check_host(host: str, key: str | None) -> bool:
    """Whether the host is beyond loopback. Raises RunError if it is and there is no key."""
    if is_loopback(host):
        return False
    if key is None:
        raise RunError(
            f"With --host {host}, anyone who reaches this machine could use the model.",
            f"Set {KEY_VARIABLE} or give --api-key-file; clients then send the key.",
        )
    return True


def serve_app(app: App, claimed: socket.socket, limits: Limits, stop: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; living answers get their grace, then the signal goes on to whoever handles it.

    Args:
        stop: ends the answers that live on after that; their clients are told.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().call_later(limits.grace, stop)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none", http="h11",
        limit_concurrency=CONNECTIONS, timeout_keep_alive=30, timeout_graceful_shutdown=round(limits.grace) + TO_TELL,
        proxy_headers=False,
    )  # fmt: skip
    log = logging.getLogger("uvicorn.error")
    log.addFilter(_is_news)
    try:
        Server(config).run(sockets=[claimed])
    finally:
        log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that something was given up because the server ends, as after a second Ctrl-C."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and asyncio.CancelledError.__name__ not in record.getMessage()
