"""What a request to the page or the server may hold at most, refused before it is read: Gradio bounds uploads alone."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from hyperlora.config import MAX_ZIP
from hyperlora.errors import sentence
from hyperlora.limits import FOR, SECRET, Limits, address

MAX_BODY = 16 * 2**20  # bytes: a page's conversation, or a file in base64
UPLOAD, MAX_UPLOAD = "/gradio_api/upload", MAX_ZIP + 2**20  # the file, and what is around it
MCP, CALL = "/gradio_api/mcp", "/gradio_api/call/"
ELSEWHERE = re.compile("/gradio_api/(proxy=|file[=/]https?:)", re.IGNORECASE)

App = Callable[[Any, Any, Any], Awaitable[None]]


class Bounds:
    """An ASGI app that answers 413 to what is larger than it may be, also where that turns out while it is read; and a
    sentence where the app within breaks."""

    def __init__(self, app: App, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        if ELSEWHERE.search(path):  # Gradio would fetch it for whoever asks
            return await refuse(send, 403, "This server fetches nothing from elsewhere.")
        most = MAX_UPLOAD if path.endswith(UPLOAD) else MAX_BODY
        said = dict(scope["headers"]).get(b"content-length", b"0")
        size, begun = 0 if said.isdigit() and int(said) <= most else most + 1, False

        async def bounded() -> dict[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= most else {"type": "http.disconnect"}

        async def answer(message: dict[str, Any]) -> None:
            nonlocal begun
            if size <= most:
                begun = True
                await send(message)

        if MCP in path:
            named = (FOR.encode(), f"{SECRET} {address(scope['client'])}".encode())
            scope = scope | {"headers": [named, *(each for each in scope["headers"] if each[0] != named[0])]}
        if size <= most:
            try:
                await self.app(scope, bounded, answer)
            except Exception as error:  # which would be logged with what it says
                if size <= most:
                    told = _said(error, path)
                    if not begun:
                        await refuse(answer, *told)
        if size > most and not begun:
            self.limits.refused["lengths"] += 1
            # Who did not say how much comes may never end.
            hang_up = [(b"connection", b"close")] if said == b"0" else []
            await refuse(send, 413, f"This is larger than {most >> 20} MB: send less.", *hang_up)


def _said(error: Exception, path: str) -> tuple[int, str]:
    """The status and sentence of an error: Gradio has none for names that its API does not know."""
    if CALL in path and isinstance(error, KeyError | TypeError):
        return 400, "There is no such endpoint, or it takes other parameters: GET /gradio_api/info lists them."
    return 500, sentence(error)


async def refuse(send: Callable, status: int, sentence: str, *more: tuple[bytes, bytes]) -> None:
    """Answer with nothing but that, as Gradio does, and `more` headers."""
    await reply(send, status, {"detail": sentence}, *more)


async def reply(send: Callable, status: int, value: dict[str, str], *more: tuple[bytes, bytes]) -> None:
    """Answer with that as JSON."""
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
