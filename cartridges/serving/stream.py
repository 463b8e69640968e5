"""Sending replies: as server-sent events, or whole; either way the work ends when the client is gone."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cartridges.serving.desk import Replies
from cartridges.serving.errors import ApiError, dumps, error_body
from cartridges.serving.replies import Form, usage_of

logger = logging.getLogger("cartridges.serving")

DONE = b"data: [DONE]\n\n"
GONE = Response(status_code=499)  # for a client that does not read it


def event_of(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(content) + b"\n\n"


async def pieces(replies: Replies, form: Form, wants_usage: bool) -> AsyncIterator[bytes]:
    """The events of a stream. What goes wrong on the way is told in an event of its own, before the end."""
    prepared = replies.prepared
    offsets = [0] * len(prepared.requests)
    try:
        for index, request in enumerate(prepared.requests):
            for piece in form.opening(index, request.prompt_ids):
                yield event_of(piece)
        async for index, event in replies.events():
            for piece in form.piece(index, event, offsets[index]):
                yield event_of(piece)
            if form.asked.num_logprobs is not None and not form.chat:
                offsets[index] += sum(len(form.texts.text_of(token)) for token in event.token_ids)
        if wants_usage:
            results = await replies.results()
            yield event_of(form.closing(usage_of(results, prepared.num_choices, prepared.num_slots)))
    except ApiError as error:
        yield event_of(error.body())
    except Exception:
        logger.exception("a stream failed")
        yield event_of(error_body(500, "the server failed at this request; its log tells why"))
    yield DONE


class EventStream(Response):
    """Server-sent events, until the client is gone or takes longer than `write_s` to read a piece."""

    media_type = "text/event-stream"

    def __init__(self, body: AsyncIterator[bytes], on_close: Callable[[], None], write_s: float) -> None:
        self.events, self.on_close, self.write_s = body, on_close, write_s
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(disconnect(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self.on_close()
            await _ended(sending, gone)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for part in self.events:
                async with asyncio.timeout(self.write_s):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except TimeoutError:
            logger.warning("a reader took nothing for %g s; its connection is closed", self.write_s)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnect(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, answer: Coroutine[Any, Any, Response], on_gone: Callable[[], None]) -> Response:
    """The answer, or nothing that matters where the client is gone before."""
    answering = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(disconnect(receive))
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else GONE
    finally:
        if not answering.done():
            on_gone()
        await _ended(answering, gone)


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
