"""What a request to the page may hold at most, refused before it is read: Gradio bounds uploads alone."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 16 * 2**20  # bytes: a page's conversation, or a file in base64
UPLOAD = "/upload"  # has a bound of its own, `max_file_size`


class Bounds:
    """An ASGI app that answers 413 to what is larger than `MAX_BODY`, and hangs up on what turns out to be."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(UPLOAD):
            return await self.app(scope, receive, send)
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > MAX_BODY:
            refusal = JSONResponse({"detail": f"This is larger than {MAX_BODY >> 20} MB: send less."}, 413)
            return await refusal(scope, receive, send)
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= MAX_BODY else {"type": "http.disconnect"}

        return await self.app(scope, bounded, send)
