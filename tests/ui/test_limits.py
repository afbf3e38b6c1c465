"""What visitors may ask for at most: by address, by length, by the size of a request; on the page as in the API."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client

import hyperlora
from hyperlora import bounds, limits
from hyperlora.errors import UserError
from hyperlora.limits import Limits, Rate, address
from hyperlora.model import Model
from hyperlora.recipe import Recipe
from hyperlora.ui.page import build_page, launch
from hyperlora.ui.session import Turn
from tests.ui.visitor import ADD, REVERSE, call, client_at, event, shelved, side, slow, wait_until, written


@pytest.fixture
def limited(pipe: hyperlora.Pipeline) -> Iterator[Callable[..., tuple[str, Model]]]:
    """limited(proxies="", **limits) -> the address of a page with these limits, and its model."""
    demos = []

    def start(proxies: str = "", **most: int) -> tuple[str, Model]:
        model = Model(lambda: pipe, Limits(**most))
        model.start()
        wait_until(lambda: model.settled)
        demos.append(build_page(model))
        return launch(demos[-1], proxies=proxies), model

    yield start
    for demo in demos:
        demo.close()


# ---- so many a minute ----


def test_a_visitor_has_so_many_a_minute_and_is_told_when_there_are_more() -> None:
    now = 0.0
    rate = Rate("chats", 30, clock=lambda: now)
    for _ in range(30):
        rate.take("a")
    with pytest.raises(UserError, match=r"^There may be 30 chats a minute here, .*: try again in 2 seconds\.$"):
        rate.take("a")
    rate.take("b")
    now = 1.5
    with pytest.raises(UserError, match=r"in 1 second\.$"):
        rate.take("a")
    now = 2.0
    rate.take("a")
    with pytest.raises(UserError):
        rate.take("a")
    now = 1_000.0  # no more than a minute's are saved up
    for _ in range(30):
        rate.take("a")
    with pytest.raises(UserError):
        rate.take("a")
    rate.give_back("a")
    rate.take("a")


def test_no_more_visitors_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_VISITORS", 3)
    rate = Rate("chats", 1, clock=lambda: 0.0)
    for who in "abc":
        rate.take(who)
    for again in ("b", "c", "a"):
        with pytest.raises(UserError):
            rate.take(again)
    rate.take("d")  # b, who has not asked for longest, is forgotten
    assert list(rate._left) == ["c", "a", "d"]


@pytest.mark.parametrize(
    ("host", "who"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
    ],
)
def test_a_visitor_has_an_address_or_a_network_of_their_own(host: str, who: str) -> None:
    assert address((host, 1)) == who
    assert address(None) == ""


def test_the_page_and_the_api_are_one_and_a_session_is_nobody(limited: Callable) -> None:
    url, model = limited(chats_a_minute=2)
    one, other = client_at("127.0.0.1"), client_at("127.0.0.2")
    asked = ("7", "", False, "", json.dumps({"max_new_tokens": "1"}), "one")
    call(url, "chat", one, messages="one", max_tokens=1)
    assert "try again" not in event(url, "send", *asked, client=one)
    for session in ("a", "b"):
        assert "try again in" in event(url, "send", *asked, client=one, session=session)
    with pytest.raises(UserError, match="try again in"):
        call(url, "chat", one, messages="one")
    assert "try again in" in event(url, "answer", side("left"), "one", 1, client=one)
    call(url, "chat", other, messages="one", max_tokens=1)
    with pytest.raises(UserError, match="try again in"):  # a comparison is two
        call(url, "compare", other, messages="one", left=REVERSE)
    assert model.limits.granted["chats"] == 4 and model.limits.refused["chats"] == 5


def test_a_turn_that_is_one_too_many_changes_nothing(limited: Callable) -> None:
    url, _ = limited(chats_a_minute=1)
    client = client_at("127.0.0.1")
    call(url, "chat", client, messages="one", max_tokens=1)
    kept = written([Turn("one", "No adapter", "two", "stop")])
    said = event(url, "retry", "7", "", False, kept, "", client=client)
    assert "try again in" in said and '"success":true' in said.replace(" ", "")


def test_adapters_count_wherever_they_are_made_and_only_then(limited: Callable, pipe: hyperlora.Pipeline) -> None:
    url, model = limited(adapters_a_minute=3)
    client = client_at("127.0.0.1")
    assert REVERSE in event(url, "generate", f"1 {REVERSE}", client=client)
    for _ in range(3):
        call(url, "adapt", client, recipe=REVERSE)
    call(url, "chat", client, messages="one", recipe=ADD, max_tokens=1)
    call(url, "adapt", client, recipe="Repeat the text.")
    assert model.limits.granted["adapters"] == 3
    for refused in (
        lambda: call(url, "adapt", client, recipe="A fourth."),
        lambda: call(url, "chat", client, messages="one", recipe="A fourth."),
        lambda: call(url, "export", client, recipe="A fourth."),
        lambda: call(url, "adapt", client, recipe={"blend": [[1, {"description": text}] for text in (REVERSE, ADD)]}),
    ):
        with pytest.raises(UserError, match="There may be 3 adapters a minute"):
            refused()
    assert "There may be 3 adapters" in event(url, "generate", "1 A fourth.", client=client)
    assert "There may be 3 adapters" in event(url, "send", "7", shelved("A fourth."), False, "", "", "a", client=client)
    call(url, "chat", client, messages="one", recipe=REVERSE, max_tokens=1)  # from memory
    assert "A fourth." in event(url, "generate", "1 A fourth.", client=client_at("127.0.0.2"))
    assert model.adapter(Recipe("A fifth.")).description == "A fifth."  # for no visitor


def test_exports_count(limited: Callable) -> None:
    url, _ = limited(exports_a_minute=1)
    client = client_at("127.0.0.1")
    call(url, "export", client, recipe=REVERSE)
    with pytest.raises(UserError, match="There may be 1 exports a minute"):
        call(url, "export", client, recipe=REVERSE)
    asked = json.dumps({"adapter": shelved(REVERSE), "form": "peft"})
    assert "There may be 1 exports" in event(url, "make", asked, client=client)


def test_a_proxy_is_believed_where_it_is_named_and_nobody_else_is(limited: Callable) -> None:
    def ask(url: str, client: httpx.Client, forwarded: str) -> None:
        client.headers["X-Forwarded-For"] = forwarded
        call(url, "chat", client, messages="one", max_tokens=1)

    unnamed, _ = limited(chats_a_minute=1)
    ask(unnamed, client_at("127.0.0.1"), "192.0.2.1")
    with pytest.raises(UserError):  # all are the proxy
        ask(unnamed, client_at("127.0.0.1"), "192.0.2.2")
    named, _ = limited(proxies="127.0.0.3/32", chats_a_minute=1)
    ask(named, client_at("127.0.0.3"), "192.0.2.1")
    ask(named, client_at("127.0.0.3"), "192.0.2.2")
    with pytest.raises(UserError):  # what a visitor says of themselves stands before what the proxy says of them
        ask(named, client_at("127.0.0.3"), "192.0.2.9, 192.0.2.2")
    ask(named, client_at("127.0.0.4"), "192.0.2.3")
    with pytest.raises(UserError):
        ask(named, client_at("127.0.0.4"), "192.0.2.4")


# ---- lengths ----


def test_lengths_hold_on_the_page_and_in_the_api(limited: Callable) -> None:
    url, model = limited(message=10, description=12, answer=5)
    client = client_at("127.0.0.1")
    for text, asked in (
        ("The message has 11 characters; the limit here is 10", {"messages": "a" * 11}),
        ("The message has 11 characters", {"messages": [{"role": "system", "content": "a" * 11}, USER]}),
        ("The description has 13 characters; the limit here is 12", {"messages": "a", "recipe": "a" * 13}),
        ("An answer has at most 5 tokens here: ask for no more.", {"messages": "a", "max_tokens": 6}),
    ):
        with pytest.raises(UserError, match=text):
            call(url, "chat", client, **asked)
    longest = json.dumps({"max_new_tokens": "6"})
    assert "the limit here is 12" in event(url, "generate", f"1 {'a' * 13}", client=client)
    assert "the limit here is 10" in event(url, "send", "7", "", False, "", "", "a" * 11, client=client)
    assert "at most 5 tokens" in event(url, "send", "7", "", False, "", longest, "a", client=client)
    tokens = model.pipe.engine.load[2]
    call(url, "chat", client, messages="a")
    call(url, "compare", client, messages="a", left=REVERSE[:12])
    assert model.pipe.engine.load[2] - tokens == 15
    assert model.limits.refused["lengths"] == 5


USER = {"role": "user", "content": "a"}


# ---- the queue ----


def test_what_waits_is_bounded(pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe, Limits(chats=1, queue=1))
    model.start()
    wait_until(lambda: model.settled)
    demo = build_page(model)
    try:
        url = launch(demo)
        client = Client(url, verbose=False)
        with slow(pipe, 0.1):
            running = client.submit("one", api_name="/chat")
            wait_until(lambda: pipe.engine.load[0] == 1)
            waiting = client.submit("one", api_name="/chat", max_tokens=1)
            wait_until(lambda: len(demo._queue) == 1)
            assert pipe.engine.load == (1, 0, pipe.engine.load[2])  # one at a time
            refused = httpx.post(f"{url}gradio_api/call/v2/adapt", json={"recipe": ADD})
        assert refused.status_code == 503 and "Queue is full" in refused.text
        assert running.result() and waiting.result() == pipe.chat("one", max_new_tokens=1)
    finally:
        demo.close()


# ---- sizes ----

ROUTES = ["gradio_api/queue/join", "gradio_api/call/v2/chat", "gradio_api/run/chat", "gradio_api/cancel"]
PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
KINDS = {
    "gradio_api/upload": ("multipart/form-data; boundary=x", PART),
    "login": ("application/x-www-form-urlencoded", b"username="),
}


def endless(sent: list[int], piece: bytes) -> Iterator[bytes]:
    """A body of chunks, without a length, that counts what is taken of it; it ends only where nobody stops it."""
    for _ in range(1_000):
        sent.append(len(piece))
        yield piece


@pytest.mark.parametrize("route", [*ROUTES, *KINDS, "gradio_api/mcp/"])
@pytest.mark.parametrize("declared", [True, False], ids=["length", "chunked"])
def test_a_body_over_the_limit_is_refused_before_it_is_parsed(
    sized: str, route: str, declared: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    sent: list[int] = []
    kind, begins = KINDS.get(route, ("application/json", b'["'))
    headers = {"Content-Type": kind, "Accept": "application/json, text/event-stream"}
    body = begins + b"a" * 300_000 if declared else endless(sent, begins + b"a" * 65_536)
    try:
        answer = httpx.post(f"{sized}{route}", content=body, headers=headers, timeout=300)
        assert answer.status_code == 413 and answer.json()["detail"].startswith("This is larger than")
    except (httpx.WriteError, httpx.ReadError):
        assert not declared  # it hung up on who went on sending
    assert sum(sent) < 60_000_000
    if "mcp" not in route:  # whose library logs where a request broke off
        assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


@pytest.fixture(scope="module")
def sized(model: Model) -> Iterator[str]:
    """A page that takes 200 kB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "MAX_BODY", 200_000)
        patch.setattr(bounds, "MAX_UPLOAD", 250_000)
        demo = build_page(model, mcp=True)
        try:
            yield launch(demo)
        finally:
            demo.close()


def test_a_body_within_the_limit_is_read_in_pieces_too(sized: str) -> None:
    body = json.dumps({"recipe": REVERSE}).encode()
    pieces = (body[i : i + 7] for i in range(0, len(body), 7))
    answer = httpx.post(
        f"{sized}gradio_api/call/v2/adapt", content=pieces, headers={"Content-Type": "application/json"}
    )
    assert "event_id" in answer.json()
    uploaded = httpx.post(f"{sized}gradio_api/upload", files={"files": ("a.zip", b"a" * 220_000)})
    assert Path(uploaded.json()[0]).name == "a.zip"


def test_many_at_once_get_no_more_than_there_may_be() -> None:
    rate, had = Rate("chats", 50, clock=lambda: 0.0), []

    def ask() -> None:
        for _ in range(20):
            try:
                rate.take("a")
                had.append(1)
            except UserError:
                pass

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(had) == 50
