"""Folders and Hub ids: what is said where one cannot be had. The Hub is a server in this process."""

import errno
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hyperlora.errors import UserError
from hyperlora.files import resolve_folder

COMMIT = "0123456789" * 4
# What the Hub answers about a repository that cannot be had: status, its name for the error, its words.
REFUSALS = {
    "gated": (403, "GatedRepo", "Access to this model is restricted."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "private": (401, "", "Invalid username or password."),
    "token": (401, "", "Invalid credentials in Authorization header"),
    "down": (503, "", "Service Unavailable"),
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")  # api/models/OWNER/NAME/...
        name, rest = parts[3], parts[4:]
        if rest[:1] == ["revision"] and rest[1] == "nowhere":
            self.answer(404, {}, "RevisionNotFound", "Invalid rev id: nowhere")
        elif name in REFUSALS:
            status, code, words = REFUSALS[name]
            self.answer(status, {"error": words}, code, words)
        elif rest[:1] == ["tree"]:
            self.answer(200, [{"type": "file", "path": "config.json", "size": 2, "oid": "a"}])
        else:
            self.answer(200, {"id": f"owner/{name}", "sha": COMMIT, "siblings": []})

    do_HEAD = do_GET

    def answer(self, status: int, content: object, code: str = "", words: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", words)):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on this machine, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def use(monkeypatch, endpoint: str, cache) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gated", r"owner/gated is gated: accept its terms on http.*/owner/gated, then log in with `hf auth login`"),
        ("missing", "'owner/missing' is neither a folder here nor a repository on the Hub: check its name, or log in"),
        ("private", "neither a folder here nor a repository on the Hub: .* if it is private"),
        ("down", r"The Hub cannot give owner/down now \(error 503\): try again"),
    ],
)
def test_each_refusal_of_the_hub_is_told_apart(hub, name, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_folder(f"owner/{name}", None, ["*.json"])


def test_with_a_token_the_advice_is_another(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_of_somebody")
    with pytest.raises(UserError, match=r"accept its terms .* then try again with a token that may read it"):
        resolve_folder("owner/gated", None, ["*.json"])
    with pytest.raises(UserError, match="your token may not read it"):
        resolve_folder("owner/missing", None, ["*.json"])
    with pytest.raises(UserError, match=r"does not let your token read owner/token \(error 401\): log in"):
        resolve_folder("owner/token", None, ["*.json"])


def test_a_revision_that_is_not_there(hub):
    with pytest.raises(UserError, match="owner/model has no revision 'nowhere' on the Hub: leave the revision out"):
        resolve_folder("owner/model", "nowhere", ["*.json"])


def test_no_network(monkeypatch, tmp_path):
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)  # nobody listens there
    with pytest.raises(UserError, match=r"not in the cache .* the Hub cannot be reached: check the network"):
        resolve_folder("owner/model", None, ["*.json"])
    with pytest.raises(UserError, match="local_files_only forbids a download: leave that out"):
        resolve_folder("owner/model", None, ["*.json"], local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids a download: unset it"):
        resolve_folder("owner/model", None, ["*.json"])


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "The disk is full: owner/model does not fit .* or set HF_HOME to a folder on a larger disk"),
        (errno.EACCES, "The cache .* cannot be written: set HF_HOME"),
    ],
)
def test_a_disk_that_takes_no_more(hub, monkeypatch, code, sentence):
    def refuse(*args, **kwargs):
        raise OSError(code, "no")

    monkeypatch.setattr("huggingface_hub._snapshot_download.hf_hub_download", refuse)
    with pytest.raises(UserError, match=sentence):
        resolve_folder("owner/model", None, ["*.json"])


def test_names_that_are_no_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "nowhere", "a/b/c", "../x", "owner/name?"):
        with pytest.raises(UserError, match="There is no folder"):
            resolve_folder(name, None, ["*.json"])
    assert resolve_folder(tmp_path, None, ["*.json"]) == tmp_path
