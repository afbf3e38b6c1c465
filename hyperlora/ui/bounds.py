"""What a request to the page may hold at most, refused before it is read: Gradio bounds uploads alone."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

MAX_BODY = 16 * 2**20  # bytes: a page's conversation, or a file in base64
UPLOAD = "/upload"  # has a bound of its own, `max_file_size`

App = Callable[[Any, Any, Any], Awaitable[None]]


class Bounds:
    """An ASGI app that answers 413 to what is larger than `MAX_BODY`, and hangs up on what turns out to be."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["path"].endswith(UPLOAD):
            return await self.app(scope, receive, send)
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > MAX_BODY:
            return await _refuse(send)
        size = 0

        async def bounded() -> dict[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= MAX_BODY else {"type": "http.disconnect"}

        return await self.app(scope, bounded, send)


async def _refuse(send: Callable) -> None:
    body = json.dumps({"detail": f"This is larger than {MAX_BODY >> 20} MB: send less."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
