"""A structured line and a measurement for every request, and its id on the way in and out."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.metrics import Metrics

# Ray Serve writes what is logged here to the replica's file, as JSON with its own context.
log = logging.getLogger("ray.serve.veripo")
_ID = re.compile(rb"[!-~]{1,128}")
_GONE = 499  # what the log calls a request whose client left
_QUIET = "/healthz"


class Observed:
    """ASGI middleware. The id of `x-request-id` is kept where it is a short printable word. echo:
    put it on the reply, as Serve's proxy does by itself."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, echo: bool) -> None:
        self._app, self._metrics, self._echo = app, metrics, echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, send, echo=self._echo)
        try:
            await self._app(scope, receive, request.send)
        except Exception:
            request.status = 500
            raise
        finally:
            self._tell(scope, request)

    def _tell(self, scope: Scope, request: _Request) -> None:
        path = getattr(scope.get("route"), "path", "(none)")  # never a stranger's own words
        if path == _QUIET:
            return
        seconds = time.monotonic() - request.since
        self._metrics.request(path, request.status, seconds)
        ticket = scope["state"].get("ticket")
        fields = {
            "request_id": request.id,
            "path": path,
            "status": request.status,
            "seconds": round(seconds, 6),
            "items": ticket.items if ticket else 0,
            "item_errors": ticket.errors if ticket else 0,
        }
        told = "%(path)s %(status)d, %(items)d items in %(seconds).3f s"
        log.info(told, fields, extra=fields)


class _Request:
    """What is seen of one request while its reply passes."""

    def __init__(self, scope: Scope, send: Send, *, echo: bool) -> None:
        self._send, self._echo = send, echo
        self.since, self.status = time.monotonic(), _GONE
        given = next((v for name, v in scope["headers"] if name == b"x-request-id"), b"")
        self.id = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._echo:
                named = (b"x-request-id", self.id.encode())
                message = {**message, "headers": [*message["headers"], named]}
        await self._send(message)
