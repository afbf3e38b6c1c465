"""An OpenAI-compatible server: `python -m hyperlora serve`, and then any client that can set a model's name.

`model: "hyperlora:DESCRIPTION"` is answered by the adapter of that description, `hyperlora@0.8:DESCRIPTION` at that
strength, the preset's own name by the base model. `POST /v1/adapters` makes an adapter and names it.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp as App
from starlette.types import Receive, Scope, Send

from hyperlora.bounds import Bounds
from hyperlora.chat import ChatStream
from hyperlora.completions import Asked, ChatAsked, Reply, TextAsked, adapter_id, read_model, stop, usage
from hyperlora.errors import Busy, UserError, sentence
from hyperlora.health import Health, serve_metrics
from hyperlora.hosting import LOOPBACK, bare, limits_of, who_may_ask
from hyperlora.limits import ASKING, address
from hyperlora.lora import Adapter
from hyperlora.model import Model
from hyperlora.pipe import Pipeline
from hyperlora.recipe import Recipe

MAX_NAMED = 1_000  # adapters that a key has names for
QUIET = 5.0  # seconds without a word after which a stream says that it is still there
NO_OBJECT = "The body must be a JSON object."


class Text(PathConvertor):
    """The rest of a path, whatever it holds: a description may have several lines."""

    regex = r"[\s\S]*"


register_url_convertor("text", Text())


class AdapterAsked(BaseModel):
    model_config = ConfigDict(strict=True)

    description: str
    strength: float = 1.0


class Failure(Exception):
    """An answer in OpenAI's form that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers)


def failure(error: Exception) -> Failure:
    """Any error in OpenAI's form; what is none of the client's goes to the log, without what was sent."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, Busy):
        return Failure(429, str(error), "rate_limit_exceeded")
    if isinstance(error, UserError):
        return Failure(400, str(error))
    return Failure(500, sentence(error))


class Admission:
    """An ASGI app that refuses who has no key, who calls by a strange name, and what a web page could send unasked.

    A request that goes on has its key's digest in `request.state.key`.
    """

    def __init__(self, app: App, keys: Iterable[str], hosts: Iterable[str] | None):
        self._app = app
        self._keys = [_digest(key) for key in keys]
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if (refused := self._refuse(scope, headers)) is not None:
                return await refused(scope, receive, send)
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return Failure(403, "This server is not called by that name: see --allow_host.").response()
        digest = _digest(headers.get("authorization", "").removeprefix("Bearer ").strip())
        known = [hmac.compare_digest(digest, each) for each in self._keys]  # all of them, however early one is right
        if self._keys and not any(known):
            answer = Failure(401, "Incorrect API key: send one of this server's as a Bearer token.", "invalid_api_key")
            return answer.response({"www-authenticate": "Bearer"})
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            return Failure(415, "The body must be JSON, with the content type application/json.").response()
        scope.setdefault("state", {})["key"] = digest if self._keys else b""
        return None


class Events(StreamingResponse):
    """Server-sent events; `ended` is called when it is over, also where the client had gone before the first."""

    def __init__(self, lines: AsyncIterator[str], ended: Callable[[], None]):
        super().__init__(lines, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


class Beside:
    """An ASGI app that leaves what is below /v1 to the server, and the rest to the page that it is beside."""

    def __init__(self, app: App, server: "Server"):
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = scope["type"] == "http" and scope["path"].startswith("/v1/")
        await (self._server.app if server else self._app)(scope, receive, send)


class Server:
    """The routes below /v1 over one model, as a FastAPI app in `app`.

    keys: who may ask; none: anybody, which is for this machine alone. hosts: the names by which it may be called, so
    that no web page calls it by a name of its own; None: any.
    """

    def __init__(self, model: Model, keys: Iterable[str] = (), hosts: Iterable[str] | None = LOOPBACK):
        self.model = model
        self._started = int(time.time())
        self._named: OrderedDict[tuple[bytes, str], tuple[Recipe, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(2 * model.limits.chats, "read-answer")  # some have several choices
        self._running = 0
        self.app = app = FastAPI(title="HyperLoRA", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
        app.add_middleware(Admission, keys=keys, hosts=hosts)
        app.add_middleware(Bounds, limits=model.limits)
        app.add_middleware(Health, model=model)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name:text}")(self.one_model)
        app.post("/v1/adapters")(self.adapters)
        app.post("/v1/chat/completions")(self.chat_completions)
        app.post("/v1/completions")(self.completions)
        app.exception_handler(RequestValidationError)(_invalid)
        app.exception_handler(HTTPException)(_http)
        app.exception_handler(Failure)(lambda _, error: error.response())
        app.exception_handler(UserError)(lambda _, error: failure(error).response())

    # ---- models and adapters ----

    @property
    def name(self) -> str:
        """What the base model is called here."""
        pipe = self.model.pipe
        return pipe.preset.name if pipe.preset else str(pipe.base_name).rstrip("/").rpartition("/")[2]

    async def models(self, request: Request) -> dict[str, Any]:
        """The base model, and what this key made."""
        key, made = request.state.key, self._started
        with self._lock:
            named = [(name, when) for (owner, name), (_, when) in self._named.items() if owner == key]
        return {"object": "list", "data": [_model(name, when) for name, when in [(self._ready(), made), *named]]}

    async def one_model(self, name: str, request: Request) -> dict[str, Any]:
        """A model by its name; a description's is there, whether it was asked before or not."""
        self._recipe(name, request.state.key)
        return _model(name, self._started)

    async def adapters(self, asked: AdapterAsked, request: Request) -> dict[str, Any]:
        """Make an adapter, and name it for this key."""
        self._ready()
        recipe = Recipe(asked.description, strength=asked.strength)
        adapter = await self._in_thread(request, self.model.adapter, recipe)
        name, now = adapter_id(recipe, self.model.pipe.hyperlora.checkpoint), int(time.time())
        key = request.state.key
        with self._lock:
            self._named[key, name] = recipe, now
            self._named.move_to_end((key, name))
            own = [entry for entry in self._named if entry[0] == key]
            for entry in own[: len(own) - MAX_NAMED]:
                del self._named[entry]
        notice = self.model.pipe.hyperlora.norm_notice(adapter)
        notices = " ".join(filter(None, (adapter.notice, notice))) or None
        said = {"description": recipe.description, "strength": recipe.strength, "notice": notices}
        return {"id": name, "object": "adapter", "created": now, **said}

    def _recipe(self, name: str, key: bytes) -> Recipe | None:
        """The recipe that a model's name stands for; None: the base model."""
        if name == self._ready():
            return None
        if recipe := read_model(name):
            return recipe
        with self._lock:
            if entry := self._named.get((key, name)):
                self._named.move_to_end((key, name))
                return entry[0]
        raise Failure(
            404,
            f"There is no such model: ask {self.name}, or hyperlora:DESCRIPTION for the adapter of a description.",
            "model_not_found",
            "model",
        )

    def _ready(self) -> str:
        """The base model's name, once it is there."""
        if not self.model.settled:
            raise Failure(503, "The model is still loading: try again in a moment.")
        try:
            return self.name
        except UserError as error:
            raise Failure(503, str(error)) from None

    # ---- answers ----

    async def chat_completions(self, asked: ChatAsked, request: Request) -> Any:
        return await self._complete(asked, request, "chat")

    async def completions(self, asked: TextAsked, request: Request) -> Any:
        return await self._complete(asked, request, "text")

    async def _complete(self, asked: Asked, request: Request, kind: str) -> Any:
        recipe = self._recipe(asked.model, request.state.key)
        if self._running >= self.model.limits.chats:
            raise Busy(f"The server is busy with {self._running} requests: try again in a moment.")

        def submit() -> list[ChatStream]:
            adapter: Adapter | None = self.model.adapter(recipe) if recipe else None
            return asked.submit(self.model, adapter)

        self._running += 1
        try:
            streams = await self._in_thread(request, submit)
        except BaseException:
            self._end([])
            raise
        decode = self.model.pipe.tokenizer.decode
        replies = [Reply(i, each, kind, decode, asked.top is not None) for i, each in enumerate(streams)]
        object_ = "chat.completion" if kind == "chat" else "text_completion"
        head = {
            "id": ("chatcmpl-" if kind == "chat" else "cmpl-") + secrets.token_hex(12),
            "object": object_ + ".chunk" if kind == "chat" and asked.stream else object_,
            "created": int(time.time()),
            "model": asked.model,
        }
        if asked.stream:
            return Events(self._lines(head, replies, asked), lambda: self._end(streams))
        try:
            return await self._whole(head, replies, asked, request)
        finally:
            self._end(streams)

    def _end(self, streams: list[ChatStream]) -> None:
        """A request is over, however it ended."""
        self._running -= 1
        stop(streams)

    async def _pieces(self, replies: list[Reply]) -> AsyncIterator[tuple[Reply, str | Exception | None] | None]:
        """Pieces of all replies as they come, None behind the last of each; None alone after a while without any."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()

        def read(reply: Reply) -> None:
            end: Exception | None = None
            try:
                for piece in reply.stream:
                    loop.call_soon_threadsafe(queue.put_nowait, (reply, piece))
            except Exception as error:
                end = error
            with suppress(RuntimeError):  # the loop is closed: the server has gone
                loop.call_soon_threadsafe(queue.put_nowait, (reply, end))

        left = len(replies)
        for reply in replies:
            self._readers.submit(read, reply)
        while left:
            try:
                item = await asyncio.wait_for(queue.get(), QUIET)
            except TimeoutError:
                yield None
                continue
            left -= not isinstance(item[1], str)
            yield item

    async def _lines(self, head: dict[str, Any], replies: list[Reply], asked: Asked) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        extra = {"usage": None} if asked.usage_streamed else {}
        begun: set[int] = set()

        def event(choices: list[dict[str, Any]], **more: object) -> str:
            return _event(head | {"choices": choices} | extra | more)

        async for item in self._pieces(replies):
            if item is None:
                yield f": {self.model.pipe.engine.load[1]} chats are waiting\n\n"
                continue
            reply, piece = item
            if isinstance(piece, Exception):
                yield _event(failure(piece).body)
                return
            if reply.kind == "chat" and reply.index not in begun and piece is None:
                yield event([reply.piece("", begun=False)])
            yield event([reply.piece(piece, begun=reply.index in begun)])
            begun.add(reply.index)
        if asked.usage_streamed:
            yield event([], usage=usage([reply.stream for reply in replies], asked.choices))
        yield "data: [DONE]\n\n"

    async def _whole(self, head: dict[str, Any], replies: list[Reply], asked: Asked, request: Request) -> Any:
        """The answer at once; who hangs up ends it."""
        pieces = self._pieces(replies)
        ended = asyncio.ensure_future(_disconnected(request))
        following: asyncio.Future | None = None
        texts = {reply.index: "" for reply in replies}
        try:
            while True:
                following = asyncio.ensure_future(anext(pieces, StopAsyncIteration))
                await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    return JSONResponse({}, 499)
                if (item := following.result()) is StopAsyncIteration:
                    break
                if item is None or item[1] is None:
                    continue
                reply, piece = item
                if isinstance(piece, Exception):
                    raise failure(piece)
                texts[reply.index] += piece
        finally:
            ended.cancel()
            if following is not None and not following.done():
                following.cancel()
        choices = [reply.choice(texts[reply.index]) for reply in replies]
        return head | {"choices": choices, "usage": usage([reply.stream for reply in replies], asked.choices)}

    @staticmethod
    async def _in_thread(request: Request, function: Callable[..., Any], *arguments: object) -> Any:
        """What takes a while, for whoever asks."""
        key = request.state.key
        who = f"key {key.hex()}" if key else address(request.client)

        def work() -> Any:
            ASKING.set(who)  # in the thread's copy of the context alone, which no other request gets to see
            return function(*arguments)

        try:
            return await run_in_threadpool(work)
        except Exception as error:
            raise failure(error) from None


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _disconnected(request: Request) -> None:
    """Returns once the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "hyperlora"}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _host(header: str) -> str:
    """The name in a Host header, without its port and the brackets of an IPv6 address."""
    name, colon, port = header.strip().lower().rpartition(":")
    return bare(name if colon and port.isdigit() else header.strip().lower())


def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """What does not fit the schema, in a sentence that names where; nothing of what was sent is in it."""
    first = error.errors()[0]
    if first["type"] == "json_invalid" or len(first["loc"]) == 1:  # all of it
        return Failure(400, NO_OBJECT).response()
    # Of a field that may be one of several, pydantic also says which one it tried first.
    where = ".".join(str(part) for part in first["loc"][1:] if part != "str" and "[" not in str(part))
    return Failure(400, f"{where}: {first['msg']}.", None, where).response()


def _http(_: Request, error: HTTPException) -> JSONResponse:
    if error.status_code == 400:  # deeper than can be read, or no text
        return Failure(400, NO_OBJECT).response()
    return Failure(error.status_code, f"{error.detail}: see /v1/models, /v1/chat/completions.").response(error.headers)


# ---- the command ----


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; `UserError` where it cannot be had."""
    try:
        return socket.create_server((bare(host), port), family=_family(host), backlog=128)
    except (OSError, OverflowError, UnicodeError):
        raise UserError(f"Port {port} on {host} cannot be used: choose another with --port or --host.") from None


def serve(args: argparse.Namespace, load: Callable[[], Pipeline]) -> None:
    """Serve until Ctrl-C or SIGTERM: then what runs is answered, and nothing new is taken.

    Raises `UserError` where others than this machine's could come in without a key, and where a port cannot be had.
    """
    keys, hosts = who_may_ask(args)
    with listen(args.host, args.port) as listening:
        model = Model(load, limits_of(args))
        if args.metrics_port:
            serve_metrics(model, (), args.metrics_port)
        model.run()
        if model.error:
            raise UserError(model.error)
        server = Server(model, keys, hosts)
        # Its log would name what was asked for, descriptions among it.
        config = uvicorn.Config(
            server.app,
            access_log=False,
            log_level="warning",
            server_header=False,
            forwarded_allow_ips=args.trusted_proxy or "",
        )
        where = f"[{bare(args.host)}]" if ":" in args.host else args.host
        print(f"HyperLoRA's server is at http://{where}:{listening.getsockname()[1]}/v1", flush=True)
        uvicorn.Server(config).run(sockets=[listening])  # which ends with the signal
