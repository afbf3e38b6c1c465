"""Two pages behind nginx, under a sub-path: `deploy/nginx.conf` as it is, but for its ports."""

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, expect

import hyperlora
from hyperlora.model import Model
from tests.browser.test_page import compared, expect_interrupted
from tests.browser.visit import expect_answers, generate, said, send, stored, visit
from tests.ui.visitor import ADD, REVERSE, serving, wait_until

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx found: apt-get install nginx")
# A page that takes its time, in a process that can be killed.
SLOW = """
import sys
import hyperlora
from hyperlora.model import Model
from hyperlora.ui.page import build_page, launch
from tests.ui.visitor import slow
pipe = hyperlora.pipeline(None, base=sys.argv[1], hyperlora=sys.argv[2])
pipe.multi_turn = pipe.markdown = False
model = Model(lambda: pipe)
model.start()
with slow(pipe, 0.5):
    print(launch(build_page(model), port=int(sys.argv[3])), flush=True)
    sys.stdin.read()
"""


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def root_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ROOT_PATH", "/hyperlora")
        yield


@pytest.fixture(scope="module")
def lasting(root_path: None, pipe: hyperlora.Pipeline) -> Iterator[str]:
    """The page that stays."""
    model = Model(lambda: pipe)
    model.start()
    with serving(model) as url:
        yield url


@pytest.fixture(scope="module")
def doomed(root_path: None, terse_base: Path, tiny_hyperlora: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The page that is killed, and its process."""
    # On a port that no other test's page takes when it is free again.
    command = [sys.executable, "-c", SLOW, str(terse_base), str(tiny_hyperlora), str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip(), process
        process.kill()


@pytest.fixture(scope="module")
def url(lasting: str, doomed: tuple[str, subprocess.Popen], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where nginx has both."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    config = (ROOT / "deploy" / "nginx.conf").read_text()
    here = {"127.0.0.1:7861": urlsplit(lasting).netloc, "127.0.0.1:7862": urlsplit(doomed[0]).netloc}
    here["listen 80;"] = f"listen 127.0.0.1:{port};"
    config, found = re.subn("127.0.0.1:786[12](?=;)|listen 80;", lambda match: here[match[0]], config)
    assert found == 3
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; events {{}} http {{ access_log off; {temporary} {config} }}"
    )
    with subprocess.Popen([NGINX, "-e", "stderr", "-c", f"{folder}/nginx.conf"]) as process:
        wait_until(lambda: process.poll() is None and not socket.socket().connect_ex(("127.0.0.1", port)))
        yield f"http://127.0.0.1:{port}/hyperlora/"
        process.terminate()


def page_of(url: str, visitor: str = "") -> str:
    """Which page that visitor is at."""
    cookies = {"hyperlora": visitor} if visitor else {}
    return httpx.get(f"{url}gradio_api/app_id", cookies=cookies, timeout=300).json()["app_id"]


def visitor_at(url: str, page: str) -> dict[str, str]:
    """The cookie of a visitor who is at the page of that address."""
    wanted = page_of(page)
    names = (f"{number:032x}" for number in range(1000))
    return {"name": "hyperlora", "value": next(name for name in names if page_of(url, name) == wanted), "url": url}


def test_a_visitor_stays_at_one_page_and_both_have_visitors(
    url: str, lasting: str, doomed: tuple[str, subprocess.Popen]
) -> None:
    both = {page_of(lasting), page_of(doomed[0])}
    assert len(both) == 2 and {page_of(url, f"{number:032x}") for number in range(50)} == both
    with httpx.Client(timeout=300) as client:
        first = client.get(url)
        assert "HttpOnly" in first.headers["set-cookie"] and "Path=/hyperlora/" in first.headers["set-cookie"]
        ids = {client.get(f"{url}gradio_api/app_id").json()["app_id"] for _ in range(20)}
        assert len(ids) == 1 and "set-cookie" not in client.get(url).headers


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(url: str) -> None:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)) as connection:
        connection.putrequest("POST", "/hyperlora/gradio_api/upload")
        connection.putheader("Content-Length", str(258 << 20))
        connection.endheaders()
        assert connection.getresponse().status == 413


def test_the_page_works_under_a_sub_path(
    browser: Browser, url: str, lasting: str, pipe: hyperlora.Pipeline, tmp_path: Path
) -> None:
    """`visit` fails where it asks for anything outside of that."""
    cookie = visitor_at(url, lasting)
    with visit(browser, url, cookies=[cookie]) as page:
        expect(page.locator("#generate")).to_be_enabled()
        generate(page, REVERSE)
        send(page, "one two")
        expect_answers(page, said(pipe, "one two", REVERSE))
        page.get_by_role("button", name="Compare").click()
        page.get_by_label("Message to both").fill("one two")
        page.get_by_role("button", name="Ask both").click()
        answers = [pipe.chat("one two", adapter) for adapter in (pipe.adapt(REVERSE), None)]
        assert compared(page) == [REVERSE, "No adapter", *answers]
        page.get_by_role("button", name="Export").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download zip").click()
        download.value.save_as(tmp_path / "mine.zip")
        page.locator("[data-testid=bring-upload-button]").set_input_files(tmp_path / "mine.zip")
        expect(page.locator("#shelf label.selected")).to_have_text("mine")


def test_who_was_at_a_page_that_is_killed_goes_on_at_the_other(
    browser: Browser, url: str, doomed: tuple[str, subprocess.Popen], pipe: hyperlora.Pipeline
) -> None:
    address, process = doomed
    with visit(browser, url, cookies=[visitor_at(url, address)]) as page:
        expect(page.locator("#generate")).to_be_enabled()
        generate(page, ADD)
        page.locator("#shelf label", has_text="No adapter").click()
        send(page, "one two")
        wait_until(lambda: any(chat["turns"][0]["answer"] for chat in stored(page, "chat")))  # nothing holds it back
        with page.expect_navigation():  # Gradio loads the page again, from the other server
            process.send_signal(signal.SIGKILL)
        expect_interrupted(page, pipe.chat("one two"))
        expect_answers(page, said(pipe, "one two"))
        expect(page.locator("#shelf label")).to_have_text(["No adapter", ADD])
        page.locator("#shelf label", has_text=ADD).click()
        send(page, "three")
        expect_answers(page, said(pipe, "one two"), said(pipe, "three", ADD))
