"""What a host is told: whether the page is well, and figures; and what no log of its holds."""

import base64
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from threading import Event

import httpx
import pytest

import app
import hyperlora
from hyperlora.errors import UserError
from hyperlora.health import serve_metrics
from hyperlora.limits import Limits
from hyperlora.model import Model
from hyperlora.ui.page import build_page, launch
from hyperlora.ui.session import Turn
from hyperlora.ui.signin import matches
from tests.ui.visitor import REVERSE, call, client_at, event, serving, shelved, side, wait_until, written

CANARY = "xylophone"  # in all that a visitor writes
PASSWORD = "marmalade sandwich"


# ---- health ----


def test_it_is_well_once_the_model_answers_and_says_no_more_than_that(pipe: hyperlora.Pipeline) -> None:
    go = Event()
    model = Model(lambda: pipe if go.wait(300) else None)
    model.start()
    with serving(model, check=matches("ada", PASSWORD)) as url:
        loading = httpx.get(f"{url}health")
        assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
        go.set()
        wait_until(lambda: model.settled)
        ready = httpx.get(f"{url}health")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        assert httpx.head(f"{url}health").status_code == 200


@pytest.mark.parametrize(
    "error", [UserError("/home/ada/model is damaged."), RuntimeError("secret")], ids=["user", "other"]
)
def test_a_model_that_cannot_be_loaded_is_not_well(error: Exception) -> None:
    def load() -> None:
        raise error

    model = Model(load)
    model.start()
    wait_until(lambda: model.settled)
    with serving(model) as url:
        failed = httpx.get(f"{url}health")
    assert (failed.status_code, failed.json()) == (503, {"status": "failed"})


# ---- figures ----


def figures(text: str) -> dict[str, float]:
    """The samples of Prometheus's text format, each of which has its type before it."""
    samples: dict[str, float] = {}
    typed = ""
    for line in text.splitlines():
        if found := re.fullmatch(r"# TYPE (\w+) (gauge|counter)", line):
            typed = found[1]
            continue
        name, value = re.fullmatch(r'(\w+(?:\{\w+="\w+"\})?) (\S+)', line).groups()
        assert name.partition("{")[0] == typed and name not in samples
        samples[name] = float(value)
    return samples


def test_the_figures_are_of_what_happened(pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe, Limits(chats_a_minute=1))
    demo = build_page(model)
    before = pipe.engine.load[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve_metrics(model, demo._queue, port)
    try:
        url = launch(demo)
        first = figures(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        assert first["hyperlora_ready"] == 0 and set(first.values()) > {0}
        model.start()
        wait_until(lambda: model.settled)
        call(url, "chat", messages="one", recipe=REVERSE, max_tokens=3)
        call(url, "export", recipe=REVERSE)
        with pytest.raises(UserError):
            call(url, "chat", messages="one")
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert httpx.get(f"http://127.0.0.1:{port}/config").status_code == 404
        assert httpx.get(f"{url}metrics").status_code == 404
    finally:
        server.shutdown()
        server.server_close()
        demo.close()
    found = figures(answer.text)
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert found.keys() == first.keys()
    assert found["hyperlora_tokens_total"] == before + 3
    expected = {"ready": 1, "chats_total": 1, "adapters_total": 1, "exports_total": 1, 'refused_total{what="chats"}': 1}
    expected |= {"chats_running": 0, "chats_waiting": 0, "requests_waiting": 0, 'refused_total{what="passwords"}': 0}
    assert {name: found[f"hyperlora_{name}"] for name in expected} == expected
    assert found["hyperlora_load_seconds"] > 0 and found["hyperlora_resident_memory_bytes"] > 10**7


def test_a_port_for_figures_that_is_in_use_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert app.main(["--preset", "mini", "--metrics_port", port]) == 1
    assert capsys.readouterr().err == f"Port {port} cannot be used: choose another with --metrics_port.\n"


# ---- logs ----


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """All that has been logged or printed so far."""
    caplog.set_level(logging.INFO)
    return lambda: caplog.text + "".join(capfd.readouterr())


@pytest.fixture
def url(model: Model) -> Iterator[str]:
    with serving(model) as url:
        yield url


def everything(url: str) -> list[str]:
    """What the server tells of each event and endpoint that takes a text."""
    client = client_at("127.0.0.1")
    adapter, message = shelved(f"Write {CANARY}."), f"{CANARY} one"
    turns = written([Turn(message, CANARY, f"{CANARY} two", "stop")])
    pairs = "".join(f"{CANARY} {i}\tout {i}\n" for i in range(4))
    file = json.dumps({"name": f"{CANARY}.txt", "data": base64.b64encode(pairs.encode()).decode()})
    rows = json.dumps({"messages": "1", "answers": "2", "adapter": adapter})
    few = json.dumps({"system": CANARY, "max_new_tokens": "2", "stop": CANARY})
    blend = {"blend": [[1, {"description": f"Write {CANARY}."}], [1, {"description": f"Say {CANARY}."}]]}
    told = [
        event(url, name, *data, client=client)
        for name, *data in (
            ("generate", f"1 Write {CANARY}."),
            ("send", "7", adapter, True, turns, few, message),
            ("retry", "7", adapter, False, turns, few),
            ("go_on", "7", adapter, False, turns, few),
            ("answer", side("left", adapter, settings=few), message, 1),
            ("show_1", adapter, json.dumps([adapter])),
            ("tokens", adapter, False, turns, few),
            ("run", file, rows),
            ("find", file),
            ("blend", json.dumps(blend)),
            ("look", json.dumps({"adapter": adapter, "form": "gguf"})),
            ("make", json.dumps({"adapter": adapter, "form": "peft"})),
            ("send", "7", adapter, False, f"[{CANARY}", "", message),
            ("send", CANARY),
        )
    ]
    for name, arguments in (
        ("adapt", {"recipe": f"Write {CANARY}."}),
        ("adapt", {"recipe": f'{{"{CANARY}'}),
        ("chat", {"messages": message, "recipe": blend, "max_tokens": 2}),
        ("chat", {"messages": message * 200_000}),
        ("chat", {"messages": [{"role": CANARY, "content": message}]}),
        ("compare", {"messages": message, "left": f"Write {CANARY}.", "max_tokens": 2}),
        ("export", {"recipe": f"Write {CANARY}."}),
        ("export", {"recipe": {CANARY: message}}),
    ):
        try:
            told.append(str(call(url, name, client, **arguments)))
        except UserError as error:
            told.append(str(error))
    client.post(f"{url}gradio_api/call/chat", json={"data": [CANARY] * 2})
    client.post(f"{url}gradio_api/call/v2/chat", json={CANARY: CANARY})
    client.post(f"{url}gradio_api/queue/join", json={"data": CANARY})
    client.post(f"{url}gradio_api/queue/join", content=f'{{"data": "{CANARY}'.encode())
    return told


def test_no_log_holds_what_visitors_write(url: str, logged: Callable[[], str]) -> None:
    told = everything(url)
    assert sum(CANARY in each for each in told) > 10  # they were read, and not refused at the door
    assert CANARY not in logged()


def test_nor_does_one_where_something_breaks_that_says_it(
    url: str, pipe: hyperlora.Pipeline, logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*given: object, **options: object) -> None:
        raise RuntimeError(f"{CANARY} {given} {options}")

    monkeypatch.setattr(pipe.engine, "submit_many", breaks)
    monkeypatch.setattr(pipe.engine, "call", breaks)
    told = everything(url)
    assert sum("Something went wrong on the server" in each for each in told) > 5
    said = logged()
    assert "Unexpected RuntimeError" in said and "in breaks" in said and CANARY not in said


def test_no_log_holds_a_password(model: Model, logged: Callable[[], str]) -> None:
    with serving(model, check=matches("ada", PASSWORD)) as url:
        client = client_at("127.0.0.5")
        for word in (PASSWORD, f"{PASSWORD}?", f"{PASSWORD}\udcff"[:-1]):
            client.post(f"{url}login", data={"username": "ada", "password": word})
        client.post(f"{url}login", json={"password": PASSWORD})
        client.get(f"{url}login?password={PASSWORD}")
        cookie = next(iter(client.cookies.values()))
        client.get(f"{url}config")
    said = logged()
    assert PASSWORD not in said and cookie not in said and len(cookie) > 10
