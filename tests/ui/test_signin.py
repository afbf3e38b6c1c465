"""A page that asks for a password: who gets in, what stays open, how often it may be tried, and where it comes from."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from gradio_client import Client
from gradio_client.exceptions import AuthenticationError

import app
from hyperlora.errors import UserError
from hyperlora.model import Model
from hyperlora.ui import signin
from hyperlora.ui.page import build_page, launch
from hyperlora.ui.signin import VARIABLE, matches, read_password
from tests.ui.visitor import REVERSE, client_at, serving

USER, PASSWORD = "ada", "corréct horse"
ME = {"username": USER, "password": PASSWORD}
WRONG = {"username": USER, "password": "wrong"}
# What does not tell who asks: assets, and what has no meaning without a session's secret.
OPEN = {"/", "/login", "/logout", "/health", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css", "/pwa_icon"}
OPEN |= {
    "/gradio_api/" + name for name in ("app_id", "user", "token", "reset", "cancel", "startup-events", "theme.css")
}
BEGIN = ("/static/", "/assets/", "/svelte/", "/pwa_icon/", "/gradio_api/heartbeat/", "/gradio_api/stream/")
BEGIN += ("/gradio_api/custom_component/",)
# These are off, for everybody.
OFF = ("/monitoring", "/gradio_api/vibe-", "/gradio_api/undo-vibe-", "/gradio_api/runs", "/gradio_api/proxy=")


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with serving(model, check=matches(USER, PASSWORD)) as url:
        yield url


def test_whoever_knows_the_password_has_the_page_and_the_api(url: str) -> None:
    for wrong in (None, (USER, "wrong"), ("eve", PASSWORD), ("", ""), (f"{USER}\0", PASSWORD)):
        with pytest.raises((AuthenticationError, ValueError)):
            Client(url, auth=wrong, verbose=False)
    client = Client(url, auth=(USER, PASSWORD), verbose=False)
    assert client.predict(REVERSE, api_name="/adapt")["recipe"] == {"description": REVERSE}
    with client_at("127.0.0.9") as browser:
        assert browser.post(f"{url}login", data=ME).status_code == 200
        assert browser.get(f"{url}config").json()["username"] == USER


def test_nothing_is_open_to_others_but_what_tells_nothing(model: Model) -> None:
    """Of all the routes that there are, those that a later Gradio adds too."""
    demo = build_page(model)
    try:
        url = launch(demo, check=matches(USER, PASSWORD))
        asked = []
        for route in iter_route_contexts(demo.app.routes):
            methods, path = route.methods, re.sub(r"\{(\w+)(:path)?\}", "1", route.path)
            if path in OPEN or path.rstrip("/") in OPEN or path.startswith(BEGIN):
                continue
            for method in methods - {"HEAD"}:
                answer = httpx.request(method, f"{url.rstrip('/')}{path}", json={}, timeout=300)
                asked.append(path)
                allowed = (401, 403, 404, 422) if path.startswith(OFF) else (401,)
                assert answer.status_code in allowed, (method, path, answer.text[:200])
        assert {"/config", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/upload"} <= set(asked)
        page = httpx.get(url).text
    finally:
        demo.close()
    assert '"auth_required":true' in page and "What should the model do?" not in page


def test_few_wrong_passwords_are_tried_and_then_no_right_one(model: Model) -> None:
    with serving(model, check=matches(USER, PASSWORD)) as url, client_at("127.0.0.2") as guesser:
        for _ in range(20):  # of right ones as many as there are
            assert guesser.post(f"{url}login", data=ME).status_code == 200
        for _ in range(signin.TRIES):
            assert guesser.post(f"{url}login", data=WRONG).status_code == 400
        for attempt in (WRONG, ME):
            refused = guesser.post(f"{url}login/", data=attempt)
            assert refused.status_code == 429 and "try again in" in refused.json()["detail"]
        with client_at("127.0.0.3") as other:
            assert other.post(f"{url}login", data=ME).status_code == 200
            assert other.post(f"{url}login", data=ME, headers={"X-Forwarded-For": "127.0.0.2"}).status_code == 200
    assert model.limits.refused["passwords"] == 2


def test_all_together_have_an_end_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signin, "ALL_TRIES", 3)
    with serving(model, check=matches(USER, PASSWORD)) as url:
        codes = [client_at(f"127.0.1.{i}").post(f"{url}login", data=WRONG).status_code for i in range(1, 6)]
    assert codes == [400, 400, 400, 429, 429]


# ---- the password ----


def test_the_password_comes_from_the_environment_or_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, PASSWORD)
    assert read_password(None) == PASSWORD
    assert VARIABLE not in os.environ  # what this process starts is not told
    file = tmp_path / "password"
    for encoding in ("utf-8", "utf-8-sig"):  # the second as Windows writes it
        file.write_text(f"{PASSWORD}\r\nsecond line\n", encoding=encoding)
        assert read_password(str(file)) == PASSWORD


@pytest.mark.parametrize("word", ["", "short", "a" * 1_001], ids=len)
def test_a_password_that_keeps_nobody_out_is_refused(word: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(word)
    with pytest.raises(UserError, match=r"^(--auth needs a password|The password must have 8 to 1,000 characters)"):
        read_password(str(tmp_path / "password"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--auth", "ada"], "--auth needs a password: put it into HYPERLORA_PASSWORD"),
        (["--auth", "ada", "--password_file", "/dev/null/x"], "The password cannot be read from /dev/null/x"),
        (["--password_file", "x"], "--password_file goes with --auth USER"),
        (["--auth", "ada", "--mcp"], "--mcp and --auth exclude each other"),
        (["--auth", " "], "--auth must be a user's name"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert app.main(["--preset", "mini", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(sentence) and err.count("\n") == 1


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.1/8", ""])
def test_a_proxy_is_an_address_or_a_network(proxy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.parse_arguments(["--trusted_proxy", proxy])
    assert "give the proxy's address or network" in capsys.readouterr().err
    assert app.parse_arguments(["--trusted_proxy", "127.0.0.1, 10.0.0.0/8"]).trusted_proxy == "127.0.0.1/32,10.0.0.0/8"
