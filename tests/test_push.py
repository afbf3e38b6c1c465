"""A folder pushed with the real huggingface_hub to a Hub on this machine, which records all that it is sent."""

import base64
import hashlib
import json
import logging
import os
import re
import socket
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hyperlora import push as module
from hyperlora.errors import UserError
from hyperlora.export import export_zip
from hyperlora.push import push

TOKEN, HOSTS = "hf_" + "v" * 30, "hf_" + "h" * 30
NAME = "reverse-the-words"


class Hub(ThreadingHTTPServer):
    """Repositories of the user "ada": what is in them, by name; `answers`: what a path is answered in place of that."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, str, bytes]] = []
        self.repos: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.hangs = threading.Event()
        self.hangs.set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        hub, path = self.server, self.path
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        hub.requests.append((self.command, path, str(self.headers), body))
        hub.hangs.wait()
        for part, answer in hub.answers.items():
            if part in path:
                return self.answer(*answer)
        read = body if self.command == "PUT" or path.startswith("/api/models/") else json.loads(body or "{}")
        if path == "/api/repos/create":
            owner = read["organization"] or "ada"
            name, status = f"{owner}/{read['name']}", 200
            if name in hub.repos:
                status = 409
            else:
                hub.repos[name] = {"private": read.get("visibility") == "private", "files": {".gitattributes": b""}}
            self.answer(status, {}, json.dumps({"url": f"{hub.url}/{name}"}).encode())
        elif path == "/api/validate-yaml":
            self.answer(200, {}, b'{"warnings": [], "errors": []}')
        elif found := re.fullmatch("/api/models/(.*)/preupload/main", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {}, json.dumps({"files": files}).encode())
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                each
                | {
                    "actions": {
                        "upload": {"href": f"{hub.url}/store/{each['oid']}"},
                        "verify": {"href": f"{hub.url}/verify"},
                    }
                }
                for each in read["objects"]
            ]
            self.answer(200, {}, json.dumps({"objects": objects}).encode())
        elif path.startswith("/store/"):
            hub.objects[path.removeprefix("/store/")] = body
            self.answer(200, {}, b"")
        elif path == "/verify":
            self.answer(200, {}, b"{}")
        elif found := re.fullmatch("/api/models/(.*)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.repos[found[1]]["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.repos[found[1]]["files"][value["path"]] = hub.objects[value["oid"]]
            self.answer(200, {}, json.dumps({"commitUrl": f"{hub.url}/{found[1]}/commit/a", "commitOid": "a"}).encode())
        else:
            self.answer(404, {}, b"{}")

    do_PUT = do_POST

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, str(self.headers), b""))
        repo = self.server.repos.get(self.path.removeprefix("/api/models/"))
        if repo is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
        siblings = [{"rfilename": name} for name in repo["files"]]
        found = {"id": "ada/x", "private": repo["private"], "siblings": siblings}
        self.answer(200, {}, json.dumps(found).encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch):
    """A Hub that can be reached; the machine is logged in as somebody else; what fails is tried once."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # it has another protocol, in Rust
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, HOSTS)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.hangs.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path, make_adapter) -> Path:
    """An adapter's PEFT folder, with its card."""
    import zipfile

    path = export_zip(make_adapter(0, description="Reverse the words."), tmp_path, "{{ messages }}")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_bytes_that_arrive_are_the_folder_s(hub, folder):
    assert push(folder, NAME, f" {TOKEN}\n", endpoint=hub.url) == f"{hub.url}/ada/{NAME}"
    repo = hub.repos[f"ada/{NAME}"]
    del repo["files"][".gitattributes"]
    assert repo == {"private": True, "files": {path.name: path.read_bytes() for path in folder.iterdir()}}
    [weights] = hub.objects
    assert weights == hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_only_the_token_that_is_given_is_sent(hub, folder):
    push(folder, f"ada/{NAME}", TOKEN, endpoint=hub.url)
    assert HOSTS not in str(hub.requests)
    for method, path, headers, _ in hub.requests:
        sent = re.findall("(?i)^authorization: (.*?)\r?$", headers, re.MULTILINE)
        assert sent == ([] if method == "PUT" else [f"Bearer {TOKEN}"]), path


@pytest.mark.parametrize("token", ["", " \n"])
def test_no_token_is_refused_before_anything_is_sent(hub, folder, token):
    with pytest.raises(UserError, match="A token of the Hugging Face Hub is needed"):
        push(folder, NAME, token, endpoint=hub.url)
    assert hub.requests == []


@pytest.mark.parametrize("token", ["hf_a b", "hf_ä", "hf_a\r\nX-Other: b", "h" * 9000])
def test_what_no_header_can_hold_is_no_token(hub, folder, token):
    with pytest.raises(UserError, match="The token is none of the Hugging Face Hub's") as caught:
        push(folder, NAME, token, endpoint=hub.url)
    assert hub.requests == [] and token not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b/c", "-a", "a--b", "a.git", "a" * 97, "ä", "a\n"])
def test_what_is_no_name_is_refused_before_anything_is_sent(hub, folder, name):
    with pytest.raises(UserError, match="The repository's name must be NAME or OWNER/NAME"):
        push(folder, name, TOKEN, endpoint=hub.url)
    assert hub.requests == []


def test_a_public_one_is_asked_for(hub, folder):
    push(folder, NAME, TOKEN, private=False, endpoint=hub.url)
    assert hub.repos[f"ada/{NAME}"]["private"] is False


def test_a_repository_with_files_is_not_overwritten(hub, folder):
    hub.repos[f"ada/{NAME}"] = {"private": True, "files": {"README.md": b"Mine."}}
    with pytest.raises(UserError, match=f"^ada/{NAME} is on the Hub already: give another name"):
        push(folder, NAME, TOKEN, endpoint=hub.url)
    assert hub.repos[f"ada/{NAME}"]["files"] == {"README.md": b"Mine."}


def test_an_empty_one_is_filled_where_it_is_as_private_as_asked(hub, folder):
    """As a push leaves it that broke off."""
    hub.answers["/commit/"] = (503, {}, b"")
    with pytest.raises(UserError, match=r"The Hub cannot take it now \(error 503\): try again"):
        push(folder, NAME, TOKEN, endpoint=hub.url)
    hub.answers.clear()
    with pytest.raises(UserError, match="is on the Hub already"):
        push(folder, NAME, TOKEN, private=False, endpoint=hub.url)
    push(folder, NAME, TOKEN, endpoint=hub.url)
    assert "README.md" in hub.repos[f"ada/{NAME}"]["files"]


REFUSALS = [
    ("create", 401, "", "does not know the token"),
    ("create", 403, "", f"does not let this token write {NAME}"),
    ("commit", 403, "", f"does not let this token write {NAME}"),
    ("create", 403, "Private repository storage limit reached", "no more room"),
    ("create", 402, "", "no more room"),
    ("create", 400, "", f"does not take {NAME} "),
    ("create", 429, "", "takes no more from this account"),
    ("create", 500, "", r"cannot take it now \(error 500\)"),
    ("preupload", 503, "", r"cannot take it now \(error 503\)"),
    ("store", 403, "", f"does not let this token write {NAME}"),
    ("batch", 200, None, "broke off"),
]


@pytest.mark.parametrize(("where", "status", "words", "sentence"), REFUSALS)
def test_each_refusal_is_one_sentence_without_the_request(hub, folder, caplog, capfd, where, status, words, sentence):
    caplog.set_level(logging.DEBUG)
    hub.answers[where] = (status, {}, b"nonsense" if words is None else json.dumps({"error": words}).encode())
    with pytest.raises(UserError, match=sentence) as caught:
        push(folder, NAME, TOKEN, endpoint=hub.url)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
    assert TOKEN not in told and "HfHubHTTPError" not in told
    written = caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in written and HOSTS not in written


def test_a_retry_is_not_logged_with_the_name(hub, folder, caplog):
    hub.answers["preupload"] = (503, {}, b"")
    with pytest.raises(UserError):
        push(folder, NAME, TOKEN, endpoint=hub.url)
    assert NAME not in "".join(record.getMessage() for record in caplog.records if record.name != "httpx2")


def test_a_hub_that_says_nothing_is_not_waited_for(hub, folder, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    hub.hangs.clear()
    with pytest.raises(UserError, match="could not be reached"):
        push(folder, NAME, TOKEN, endpoint=hub.url)


def test_a_hub_that_is_not_there_is_one_sentence(hub, folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="could not be reached"):
        push(folder, NAME, TOKEN, endpoint=f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE keeps this machine from the Hub"):
        push(folder, NAME, TOKEN, endpoint=hub.url)


def test_the_library_s_own_protocol_has_the_token_that_is_given(hub, folder, monkeypatch):
    """Xet, which the real Hub offers: its first request is the one that has a token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    pytest.importorskip("hf_xet")
    hub.answers["xet-write-token"] = (403, {}, b"{}")
    with pytest.raises(UserError):
        push(folder, NAME, TOKEN, endpoint=hub.url)
    [headers] = [headers for _, path, headers, _ in hub.requests if "xet-write-token" in path]
    assert f"Bearer {TOKEN}" in headers and HOSTS not in str(hub.requests)
    assert os.environ["HF_TOKEN"] == HOSTS
