"""Who may ask, and how much: checked before anything is parsed.

A page in the user's browser can send requests to 127.0.0.1 too. Such a request carries the page's name in Host (if a name was
made to point here) or in Origin; neither gets through. JSON is asked for by name, since a plain form cannot send it.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from tunesmith.serve.limits import Limits
from tunesmith.serve.refusal import RefusalError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
ESCAPES, STRINGS = re.compile(rb"\\.", re.S), re.compile(rb'"[^"]*"?')
ALIKE = bytes.maketrans(b"{}", b"[]")
NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
OPEN_PATHS = ("/health",)
"""Asked by watchdogs, which have no key."""


def is_loopback(name: str) -> bool:
    """Whether a host's name or address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name.lower() == "localhost"


class Guard:
    """Wraps an app: Host, Origin, key, length, time and depth of the body.

    Args:
        key: what clients must send as a bearer token; None for none. anywhere: bound beyond loopback, where the key stands
            against pages that point their own name here, and Host may be any name.
    """

    def __init__(self, app: App, limits: Limits, key: str | None = None, anywhere: bool = False) -> None:
        self.app, self.limits, self.anywhere = app, limits, anywhere
        self._key = _digest(key.encode()) if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no web sockets here
        try:
            self._check_host(scope)
            self._check_origin(scope)
            self._check_key(scope)
            body = await self._body(scope, receive)
        except RefusalError as refusal:
            closing = {**refusal.headers, "Connection": "close"}  # what is left of the body is not read
            await JSONResponse(refusal.body(), refusal.status, closing)(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _Replay(body, receive), send)

    def _check_host(self, scope: Scope) -> None:
        hosts = _values(scope, b"host")
        found = HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if found is None or int(found["port"] or 0) > 65535:
            raise RefusalError(421, "The request needs one Host header with a name and a port.", code="wrong_host")
        if not self.anywhere and not (is_loopback(found["name"]) and self._right_port(scope, found["port"])):
            raise RefusalError(421, "This server answers to localhost and 127.0.0.1 only, on its own port.", code="wrong_host")

    @staticmethod
    def _right_port(scope: Scope, port: str | None) -> bool:
        server = scope.get("server")
        return server is None or server[1] is None or int(port or 80) == server[1]

    def _check_origin(self, scope: Scope) -> None:
        own = f"{scope.get('scheme', 'http')}://".encode() + _values(scope, b"host")[0]
        for origin in _values(scope, b"origin"):
            if origin.lower() != own.lower():
                raise RefusalError(403, "Pages of other sites may not use this server.", code="wrong_origin")

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in OPEN_PATHS:
            return
        sent = _values(scope, b"authorization")
        kind, _, token = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
        right = hmac.compare_digest(_digest(token.strip()), self._key)  # in constant time, whatever was sent
        if not right or kind.lower() != b"bearer":
            headers = {"WWW-Authenticate": "Bearer"}
            raise RefusalError(401, "Send the API key: Authorization: Bearer KEY.", code="invalid_api_key", headers=headers)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """All of it, None if the client went away."""
        self._check_length(scope)
        try:
            body = await asyncio.wait_for(self._read(receive), self.limits.body_seconds)
        except asyncio.TimeoutError:
            raise RefusalError(408, f"The body took longer than {self.limits.body_seconds:g} s.", code="slow_body") from None
        if body is None or scope["method"] not in ("POST", "PUT", "PATCH"):
            return body
        kinds = _values(scope, b"content-type")
        if len(kinds) != 1 or kinds[0].partition(b";")[0].strip().lower() != b"application/json":
            raise RefusalError(415, "Send JSON, with Content-Type: application/json.", code="wrong_content_type")
        if is_deeper(body, self.limits.depth):
            raise RefusalError(400, f"The JSON is nested deeper than {self.limits.depth}, or not closed.", code="too_deep")
        return body

    def _check_length(self, scope: Scope) -> None:
        lengths = _values(scope, b"content-length")
        if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
            raise RefusalError(400, "Content-Length must be one number.", code="wrong_length")
        if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > self.limits.body):
            raise self._too_long()

    async def _read(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.limits.body:
                raise self._too_long()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_long(self) -> RefusalError:
        return RefusalError(413, f"The body is longer than {self.limits.body:,} bytes.", code="body_too_long")


class _Replay:
    """A receive that hands out the body that was read, then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


def is_deeper(json_text: bytes, depth: int) -> bool:
    """Whether lists and objects stand in one another deeper than that, or are not closed. In passes over the whole text, each
    taking out the innermost ones: a loop over a million brackets would hold everybody up."""
    brackets = STRINGS.sub(b"", ESCAPES.sub(b"", json_text)).translate(ALIKE, NO_BRACKETS)
    for _ in range(depth):
        brackets = brackets.replace(b"[]", b"")
    return b"[" in brackets


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
