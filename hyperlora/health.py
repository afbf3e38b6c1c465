"""What a host asks of the server: whether it is well, which anybody may know, and figures, which this machine may."""

import threading
from collections.abc import Callable, Sized
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil

from hyperlora.bounds import App, reply
from hyperlora.errors import UserError
from hyperlora.model import Model


class Health:
    """An ASGI app that answers /health: 200 once the model does; 503 before, and where it cannot be loaded."""

    def __init__(self, app: App, model: Model):
        self.app, self.model = app, model

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["path"] != "/health":
            return await self.app(scope, receive, send)
        state = self.model.state
        return await reply(send, 200 if state == "ready" else 503, {"status": state})


def metrics(model: Model, queue: Sized) -> str:
    """The figures of now, in Prometheus's text format; `queue` are the requests to the page that wait."""
    granted, refused = model.limits.granted, model.limits.refused
    running, waiting, tokens = model.pipe.engine.load if model.state == "ready" else (0, 0, 0)
    lines = []
    for name, kind, value in (
        ("ready", "gauge", int(model.state == "ready")),
        ("load_seconds", "gauge", model.seconds or 0),
        ("requests_waiting", "gauge", len(queue)),
        ("chats_running", "gauge", running),
        ("chats_waiting", "gauge", waiting),
        ("resident_memory_bytes", "gauge", psutil.Process().memory_info().rss),
        ("tokens_total", "counter", tokens),
        *((f"{what}_total", "counter", granted[what]) for what in ("chats", "adapters", "exports")),
    ):
        lines += [f"# TYPE hyperlora_{name} {kind}", f"hyperlora_{name} {value}"]
    lines.append("# TYPE hyperlora_refused_total counter")
    for what in ("chats", "adapters", "exports", "lengths", "passwords"):
        lines.append(f'hyperlora_refused_total{{what="{what}"}} {refused[what]}')
    return "\n".join(lines) + "\n"


def serve_metrics(model: Model, queue: Sized, port: int) -> ThreadingHTTPServer:
    """Answer GET /metrics on this machine's own address; `UserError` where the port cannot be had."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/metrics"
            body = metrics(model, queue).encode() if found else b"The figures are at /metrics.\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError:
        raise UserError(f"Port {port} cannot be used: choose another with --metrics_port.") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
