"""What every request passes first: keys, the size and the time of its body, and the counters."""

import asyncio
import time
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cartridges.serving.desk import Desk
from cartridges.serving.errors import ApiError
from cartridges.serving.settings import Keys

OPEN = {"/health"}
ADMIN = "/v1/cartridges"
MAX_DISCARDED = 16  # times the largest body: so much is read of one that is too large, so that its sender hears why


class Gate:
    """ASGI middleware in front of all routes."""

    def __init__(self, app: ASGIApp, desk: Desk, keys: Keys) -> None:
        self.app, self.desk, self.keys = app, desk, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._check_key(scope)
                if self.desk.draining and scope["path"] not in OPEN:
                    raise self.desk.closing_down()
                body = await self._body(scope, receive)
            except ApiError as error:
                await error.response()(scope, receive, noting)
                return
            if body is None:  # gone before the body was there
                status = 499
                return
            await self.app(scope, _replayed(body, receive), noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.desk.metrics.requests.labels(route, str(status)).inc()
            self.desk.metrics.request_s.labels(route).observe(time.monotonic() - began)

    def _check_key(self, scope: Scope) -> None:
        path = unquote(scope["path"])
        if path in OPEN:
            return
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, key = given.partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if not self.keys.allows(key):
            said = "no API key" if not given else "a wrong API key"
            raise ApiError(
                f"given {said}, expected the header 'Authorization: Bearer KEY'",
                None,
                "invalid_api_key",
                401,
                {"WWW-Authenticate": "Bearer", "Connection": "close"},
            )
        if (path == ADMIN or path.startswith(ADMIN + "/")) and not self.keys.allows_changes(key):
            raise ApiError(
                "this needs an admin key; start the server with --admin-key-file, and send one of its keys as "
                "'Authorization: Bearer KEY'",
                None,
                "admin_key_needed",
                403,
                {"Connection": "close"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None where the client is gone. Raises ApiError where it is too large or too slow."""
        limit = self.desk.config.max_body_bytes
        told = Headers(scope=scope).get("content-length", "0")
        too_large = int(told) > limit if told.isascii() and told.isdigit() and len(told) < 19 else True
        parts: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(self.desk.config.read_s):
                while num_bytes <= MAX_DISCARDED * limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    num_bytes += len(message.get("body", b""))
                    too_large = too_large or num_bytes > limit
                    parts = [] if too_large else [*parts, message.get("body", b"")]
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            seconds = self.desk.config.read_s
            raise ApiError(
                f"the request did not arrive within {seconds:g} seconds", None, "timeout", 408, {"Connection": "close"}
            ) from None
        if too_large:
            raise ApiError(
                f"given a body of more than {limit} bytes, expected a smaller one",
                None,
                "request_too_large",
                413,
                {"Connection": "close"},
            )
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, and then what else comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
