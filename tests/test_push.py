"""A folder pushed with the real huggingface_hub to a Hub on this machine, which records all that it is sent."""

import hashlib
import json
import logging
import os
import re
import socket
import traceback
import zipfile
from pathlib import Path

import pytest

from hyperlora import push as module
from hyperlora.errors import UserError
from hyperlora.export import export_zip
from hyperlora.push import push
from tests.hub_server import HOSTS, TOKEN

NAME = "reverse-the-words"


@pytest.fixture
def folder(tmp_path, make_adapter) -> Path:
    """An adapter's PEFT folder, with its card."""
    path = export_zip(make_adapter(0, description="Reverse the words."), tmp_path, "{{ messages }}")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_bytes_that_arrive_are_the_folder_s(hub_server, folder):
    assert push(folder, NAME, f" {TOKEN}\n", endpoint=hub_server.url) == f"{hub_server.url}/ada/{NAME}"
    repo = hub_server.repos[f"ada/{NAME}"]
    del repo["files"][".gitattributes"]
    assert repo == {"private": True, "files": {path.name: path.read_bytes() for path in folder.iterdir()}}
    [weights] = hub_server.objects
    assert weights == hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_only_the_token_that_is_given_is_sent(hub_server, folder):
    push(folder, f"ada/{NAME}", TOKEN, endpoint=hub_server.url)
    assert HOSTS not in str(hub_server.requests)
    for method, path, headers, _ in hub_server.requests:
        sent = re.findall("(?i)^authorization: (.*?)\r?$", headers, re.MULTILINE)
        assert sent == ([] if method == "PUT" else [f"Bearer {TOKEN}"]), path


@pytest.mark.parametrize("token", ["", " \n"])
def test_no_token_is_refused_before_anything_is_sent(hub_server, folder, token):
    with pytest.raises(UserError, match="A token of the Hugging Face Hub is needed"):
        push(folder, NAME, token, endpoint=hub_server.url)
    assert hub_server.requests == []


@pytest.mark.parametrize("token", ["hf_a b", "hf_ä", "hf_a\r\nX-Other: b", "h" * 9000])
def test_what_no_header_can_hold_is_no_token(hub_server, folder, token):
    with pytest.raises(UserError, match="The token is none of the Hugging Face Hub's") as caught:
        push(folder, NAME, token, endpoint=hub_server.url)
    assert hub_server.requests == [] and token not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b/c", "-a", "a--b", "a.git", "a" * 97, "ä", "a\n"])
def test_what_is_no_name_is_refused_before_anything_is_sent(hub_server, folder, name):
    with pytest.raises(UserError, match="The repository's name must be NAME or OWNER/NAME"):
        push(folder, name, TOKEN, endpoint=hub_server.url)
    assert hub_server.requests == []


def test_a_public_one_is_asked_for(hub_server, folder):
    push(folder, NAME, TOKEN, private=False, endpoint=hub_server.url)
    assert hub_server.repos[f"ada/{NAME}"]["private"] is False


def test_a_repository_with_files_is_not_overwritten(hub_server, folder):
    hub_server.repos[f"ada/{NAME}"] = {"private": True, "files": {"README.md": b"Mine."}}
    with pytest.raises(UserError, match=f"^ada/{NAME} is on the Hub already: give another name"):
        push(folder, NAME, TOKEN, endpoint=hub_server.url)
    assert hub_server.repos[f"ada/{NAME}"]["files"] == {"README.md": b"Mine."}


def test_an_empty_one_is_filled_where_it_is_as_private_as_asked(hub_server, folder):
    """As a push leaves it that broke off."""
    hub_server.answers["/commit/"] = (503, {}, b"")
    with pytest.raises(UserError, match=r"The Hub cannot take it now \(error 503\): try again"):
        push(folder, NAME, TOKEN, endpoint=hub_server.url)
    hub_server.answers.clear()
    with pytest.raises(UserError, match="is on the Hub already"):
        push(folder, NAME, TOKEN, private=False, endpoint=hub_server.url)
    push(folder, NAME, TOKEN, endpoint=hub_server.url)
    assert "README.md" in hub_server.repos[f"ada/{NAME}"]["files"]


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
def test_each_refusal_is_one_sentence_without_the_request(
    hub_server, folder, caplog, capfd, where, status, words, sentence
):
    caplog.set_level(logging.DEBUG)
    hub_server.answers[where] = (status, {}, b"nonsense" if words is None else json.dumps({"error": words}).encode())
    with pytest.raises(UserError, match=sentence) as caught:
        push(folder, NAME, TOKEN, endpoint=hub_server.url)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
    assert TOKEN not in told and "HfHubHTTPError" not in told
    written = caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in written and HOSTS not in written


def test_a_retry_is_not_logged_with_the_name(hub_server, folder, caplog):
    hub_server.answers["preupload"] = (503, {}, b"")
    with pytest.raises(UserError):
        push(folder, NAME, TOKEN, endpoint=hub_server.url)
    assert NAME not in "".join(record.getMessage() for record in caplog.records if record.name != "httpx2")


def test_a_hub_that_says_nothing_is_not_waited_for(hub_server, folder, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    hub_server.hangs.clear()
    with pytest.raises(UserError, match="could not be reached"):
        push(folder, NAME, TOKEN, endpoint=hub_server.url)


def test_a_hub_that_is_not_there_is_one_sentence(hub_server, folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="could not be reached"):
        push(folder, NAME, TOKEN, endpoint=f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE keeps this machine from the Hub"):
        push(folder, NAME, TOKEN, endpoint=hub_server.url)


def test_the_library_s_own_protocol_has_the_token_that_is_given(hub_server, folder, monkeypatch):
    """Xet, which the real Hub offers: its first request is the one that has a token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    pytest.importorskip("hf_xet")
    hub_server.answers["xet-write-token"] = (403, {}, b"{}")
    with pytest.raises(UserError):
        push(folder, NAME, TOKEN, endpoint=hub_server.url)
    [headers] = [headers for _, path, headers, _ in hub_server.requests if "xet-write-token" in path]
    assert f"Bearer {TOKEN}" in headers and HOSTS not in str(hub_server.requests)
    assert os.environ["HF_TOKEN"] == HOSTS
