"""What a request to the page may hold at most, refused before it is read: Gradio bounds uploads alone."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from hyperlora.config import MAX_ZIP

MAX_BODY = 16 * 2**20  # bytes: a page's conversation, or a file in base64
UPLOAD, MAX_UPLOAD = "/gradio_api/upload", MAX_ZIP + 2**20  # the file, and what is around it

App = Callable[[Any, Any, Any], Awaitable[None]]


class Bounds:
    """An ASGI app that answers 413 to what is larger than it may be, and hangs up on what turns out to be."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        most = MAX_UPLOAD if scope["path"].endswith(UPLOAD) else MAX_BODY
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > most:
            return await _refuse(send, most)
        size = 0

        async def bounded() -> dict[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= most else {"type": "http.disconnect"}

        return await self.app(scope, bounded, send)


async def _refuse(send: Callable, most: int) -> None:
    body = json.dumps({"detail": f"This is larger than {most >> 20} MB: send less."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
