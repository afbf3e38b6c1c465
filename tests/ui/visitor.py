"""What tests of the page share: what a page sends, the server, and a model that takes its time."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from types import SimpleNamespace

import gradio as gr
import httpx

import hyperlora
from hyperlora.errors import UserError
from hyperlora.model import Model
from hyperlora.ui.handlers import Handlers
from hyperlora.ui.page import build_page, launch
from hyperlora.ui.session import (
    Turn,
    read_turns,
    write,
)

REVERSE, ADD = "Reverse the order of the words.", "Add the two numbers."


def shelved(description: object, name: object = "", strength: object = 1) -> str:
    """An adapter as a page sends it; "" for none."""
    return json.dumps({"name": name, "description": description, "strength": strength}) if description else ""


def written(turns: list[Turn]) -> str:
    """A conversation as a page sends it."""
    return f"[{','.join(map(write, turns))}]"


def by_line(bubble: dict) -> str:
    """Who answered, as the page says it under the answer."""
    return unescape(re.search('<span class="by">(.*?)</span>', bubble["content"][1]["text"], re.DOTALL)[1])


@contextmanager
def serving(model: Model, demo: gr.Blocks | None = None, mcp: bool = False, **options: object) -> Iterator[str]:
    """The page's address while it is served from this process."""
    demo = demo or build_page(model, mcp=mcp)
    try:
        yield launch(demo, **options)
    finally:
        demo.close()


def client_at(address: str) -> httpx.Client:
    """Somebody who comes from that address of this machine."""
    return httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=300)


def call(url: str, endpoint: str, client: httpx.Client | None = None, **arguments: object) -> object:
    """What the API answers to a plain HTTP client; `UserError` with what it says of a mistake."""
    client = client or client_at("127.0.0.1")
    joined = client.post(f"{url}gradio_api/call/v2/{endpoint}", json=arguments)
    assert joined.status_code == 200, joined.text
    events = client.get(f"{url}gradio_api/call/{endpoint}/{joined.json()['event_id']}").text
    *_, (event, data) = re.findall("event: (complete|error)\ndata: (.*)", events)
    if event == "error":
        raise UserError(json.loads(data)["error"])
    return json.loads(data)[0]


def event(url: str, handler: str, *data: object, client: httpx.Client, session: str = "a") -> str:
    """All that the server tells a page of what it asks."""
    config = client.get(f"{url}config").json()
    (index,) = (fn["id"] for fn in config["dependencies"] if fn["api_name"] == handler)
    body = {"fn_index": index, "session_hash": session, "data": data}
    joined = client.post(f"{url}gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    return client.get(f"{url}gradio_api/queue/data?session_hash={session}").text


def ask_server(url: str, handler: str, *data: object, cookie: str = "") -> list:
    """What the server gives to the page that asks this handler."""
    config = httpx.get(f"{url}config", trust_env=False, timeout=300).json()
    (index,) = (fn["id"] for fn in config["dependencies"] if fn["api_name"] == handler)
    body, headers = {"fn_index": index, "session_hash": "abc", "data": data}, {"Cookie": cookie}
    joined = httpx.post(f"{url}gradio_api/queue/join", json=body, headers=headers, trust_env=False, timeout=300)
    assert joined.status_code == 200
    with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash=abc", trust_env=False, timeout=300) as stream:
        messages = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line]
    (completed,) = (message for message in messages if message["msg"] == "process_completed")
    assert completed["success"], completed
    return completed["output"]["data"]


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextmanager
def slow(pipe: hyperlora.Pipeline, seconds: float) -> Iterator[None]:
    """Every token takes that much longer, so that there is time to act while an answer is being written."""
    engine = pipe.engine
    choose = engine._choose  # what also follows a step that has been recorded

    def later(*args: object) -> object:
        time.sleep(seconds)
        return choose(*args)

    engine._choose = later
    try:
        yield
    finally:
        del engine._choose


class Visitor:
    """What a page holds and asks: its conversation, and the adapter that is selected."""

    def __init__(self, on: Handlers, turns: list[Turn] | None = None, session_hash: str = "visitor"):
        self.on, self.request = on, SimpleNamespace(session_hash=session_hash)
        self.conversation = turns or []
        self.strength, self.describe, self.typed = 1.0, False, ""

    def asked(self, chosen: object) -> tuple:
        return "7", shelved(chosen, "", self.strength), self.describe, written(self.conversation), self.typed

    def hear(self, answer: Iterator[tuple], again: bool = False) -> list[tuple]:
        """Read what the page is given to the end, and hold what it is to hold."""
        given = list(answer)
        earlier = self.conversation[:-1] if again else self.conversation
        for _, turn, *_ in given:
            if isinstance(turn, str):
                self.conversation = [*earlier, *read_turns(f"[{turn}]")]
        return given

    def ask(self, message: str, chosen: str = "") -> tuple[str, str]:
        """Send a message and read the answer to its end: (answer, who answered)."""
        self.hear(self.on.send(*self.asked(chosen), message, self.request))
        turn = self.conversation[-1]
        return turn.answer, turn.by


def side(which: str, adapter: str = "", **said: object) -> str:
    return json.dumps({"side": which, "adapter": adapter} | said)


def text_of(html: str) -> str:
    return re.sub("<[^>]*>", "", html)
