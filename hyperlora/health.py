"""What a host asks of the server: whether it is well, which anybody may know, and figures, which this machine may."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import psutil
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from hyperlora.model import Model

if TYPE_CHECKING:
    import gradio as gr


def health(model: Model) -> Route:
    """GET /health: 200 once the model answers; 503 before, and where it cannot be loaded."""

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({"status": model.state}, 200 if model.state == "ready" else 503)

    return Route("/health", answer)


def metrics(model: Model, demo: "gr.Blocks | None") -> str:
    """The figures of now, in Prometheus's text format."""
    granted, refused = model.limits.granted, model.limits.refused
    running, waiting, tokens = model.pipe.engine.load if model.state == "ready" else (0, 0, 0)
    lines = []
    for name, kind, value in (
        ("ready", "gauge", int(model.state == "ready")),
        ("load_seconds", "gauge", model.seconds or 0),
        ("requests_waiting", "gauge", len(demo._queue) if demo else 0),
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


def serve_metrics(model: Model, demo: "gr.Blocks | None", port: int) -> ThreadingHTTPServer:
    """Answer GET /metrics on this machine's own address; `OSError` where the port cannot be had."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/metrics"
            body = metrics(model, demo).encode() if found else b"The figures are at /metrics.\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
