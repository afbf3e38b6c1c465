"""An endpoint asked through the package `openai`: what it is sent, and how much of it is read."""

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from hyperlora import endpoint as module
from hyperlora.endpoint import Host, Reply, endpoint, retry_after
from hyperlora.errors import UserError
from tests.training.test_descriptions import Endpoint, completion

CHAT = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Endpoint()
    server.answer = lambda body: "Hello."
    yield server
    server.close()


def ask(server: Endpoint, **options) -> Reply:
    asked = endpoint(Host(url=server.url, model="m", **{"retries": 0} | options), threading.Event())
    [reply] = asked([CHAT], 0)
    return reply


def test_a_chat_is_sent_and_its_answer_comes_back(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    server.answer = lambda body: body["messages"][0]["content"].upper()
    assert ask(server, key_variable="MY_KEY", temperature=0.5, max_tokens=0) == Reply("SAY HELLO.", 100, 10)
    [(path, authorization, body)] = server.requests
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    assert body == {"model": "m", "messages": CHAT, "temperature": 0.5}


def test_nothing_that_the_environment_holds_for_openai_goes_to_another_server(server, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "private")
    ask(server, key_variable="UNSET")
    assert "private" not in str(server.headers[0].items()) and server.requests[0][1] is None


@pytest.mark.parametrize("status", [200, 400, 500])
def test_no_more_is_read_than_an_answer_can_be(server, monkeypatch, status):
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    server.script = [(status, {}, completion("long " * 10_000))]
    with pytest.raises(UserError, match="sent more than"):
        ask(server)


def test_what_would_unfold_is_not_read(server):
    server.script = [(200, {"Content-Encoding": "gzip"}, b"")]
    with pytest.raises(UserError, match="encoding that was not asked for"):
        ask(server)
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://127.0.0.1"])
def test_a_proxy_that_cannot_be_used_is_said(server, monkeypatch, proxy):
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(UserError, match="The proxy that the environment names cannot be used"):
        ask(server)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://[::1", "http://host:port/v1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UserError, match="url must be an address"):
        endpoint(Host(url=url, model="m"), threading.Event())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'"text"',
        b'{"choices": null}',
        b'{"choices": [{"message": null}]}',
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": 7}}]}',
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_what_is_no_completion_counts_as_a_failure(server, content, kind):
    server.script = [(200, {"Content-Type": kind}, content)]
    with pytest.raises(UserError, match=r"did not answer \(what came is no chat completion\)"):
        ask(server)


def test_an_answer_without_usage_costs_nothing(server):
    server.script = [(200, {}, b'{"choices": [{"message": {"content": "a"}}], "usage": [1]}')]
    assert ask(server) == Reply("a", 0, 0)


def test_retry_after_is_seconds_or_a_date():
    soon = datetime.now(UTC) + timedelta(seconds=50)
    assert retry_after("1.5") == 1.5 and retry_after("-3") == 0
    assert 40 < retry_after(format_datetime(soon, usegmt=True)) <= 50
    assert retry_after(None) is retry_after("soon") is retry_after("nan") is None
