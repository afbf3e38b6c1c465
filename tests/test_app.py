"""The page without a browser: its handlers on a tiny model, and the server with concurrent clients."""

import asyncio
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client
from peft import PeftModel
from transformers import AutoModelForCausalLM

import app
import hyperlora
from hyperlora.errors import UserError
from hyperlora.hub import Cancelled
from hyperlora.ui.handlers import SKIP, Handlers, bubbles, progress
from hyperlora.ui.model import MAX_ADAPTERS, Model
from hyperlora.ui.page import build_page, launch
from hyperlora.ui.session import MAX_SHELF, MAX_TURNS, Session, Turn

ROOT = Path(__file__).parents[1]
REVERSE, ADD = "Reverse the order of the words.", "Add the two numbers."


@contextmanager
def serving(model: Model) -> Iterator[str]:
    """The page's address while it is served from this process."""
    demo = build_page(model)
    try:
        yield launch(demo)
    finally:
        demo.close()


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextmanager
def slow(pipe: hyperlora.Pipeline, seconds: float) -> Iterator[None]:
    """Every token takes that much longer, so that there is time to act while an answer is being written."""
    hook = pipe.adapted.model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def pipe(tiny_base: Path, tiny_hyperlora: Path) -> Iterator[hyperlora.Pipeline]:
    pipe = hyperlora.pipeline(None, base=tiny_base, hyperlora=tiny_hyperlora)
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def model(pipe: hyperlora.Pipeline) -> Model:
    """The pipeline as the page has it, loaded in the background."""
    model = Model(lambda: pipe)
    model.start()
    wait_until(lambda: model.settled)
    return model


@pytest.fixture
def on(model: Model) -> Handlers:
    return Handlers(model)


def ask(
    on: Handlers, message: str, key: str, session: Session, strength: float = 1.0, describe: bool = False
) -> tuple[str, str]:
    """Send a message and read the answer to its end: (answer, who answered)."""
    list(on.send(message, key, strength, session, describe))
    return session.turns[-1].answer, session.turns[-1].by


def make(on: Handlers, description: str, session: Session) -> str:
    """Generate an adapter and return its key on the shelf."""
    _, shelf, _ = on.generate(description, session)
    return shelf.value


# ---- descriptions and the shelf ----


def test_generate_says_how_long_it_took_and_selects_the_new_adapter(on: Handlers) -> None:
    session = Session()
    status, shelf, _ = on.generate(REVERSE, session)
    assert re.search(r"Made in \d+ ms\.", status)
    assert [label for label, _ in shelf.choices] == ["No adapter", REVERSE]
    assert dict(shelf.choices)[REVERSE] == shelf.value


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("", "The description is empty"),
        ("  \n ", "The description is empty"),
        ("🎈🎈", "The description has no letter or digit"),
        ("word " * 2000, "characters; the limit is 2,000"),
    ],
)
def test_a_bad_description_gets_a_sentence_and_no_adapter(on: Handlers, description: str, sentence: str) -> None:
    session = Session()
    status, _, _ = on.generate(description, session)
    assert sentence in status
    assert session.shelf == []


def test_the_same_description_again_makes_no_second_adapter(on: Handlers) -> None:
    session = Session()
    first, again, other = (make(on, text, session) for text in (REVERSE, f" {REVERSE}\n", ADD))
    assert first == again != other
    assert len(session.shelf) == 2


def test_a_full_shelf_drops_the_oldest() -> None:
    session = Session()
    for i in range(MAX_SHELF + 3):
        session.add(f"Task {i}.", None)
    assert len(session.shelf) == MAX_SHELF
    assert session.shelf[0].description == "Task 3."
    assert session.find("1") is None


def test_the_notice_of_a_far_description_is_shown_then_and_when_it_is_selected_again(
    on: Handlers, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    adapter = pipe.adapt("Qwzx.")
    adapter.notice = "This is <far> away."
    monkeypatch.setattr(pipe, "adapt", lambda text: adapter)
    status, shelf, _ = on.generate("Qwzx.", session)
    assert "This is &lt;far&gt; away." in status
    assert "This is &lt;far&gt; away." in asyncio.run(on.select(shelf.value, session))
    assert asyncio.run(on.select("", session)) == ""


def test_adapters_are_kept_in_a_bounded_memory_and_come_back_the_same(pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe)
    model.start()
    wait_until(lambda: model.settled)
    first = model.adapt("Task.")
    assert model.adapter("Task.") is first
    for i in range(MAX_ADAPTERS):
        model.adapt(f"Task {i}.")
    again = model.adapter("Task.")
    assert again is not first
    for module, (a, b) in first.weights.items():
        assert torch.equal(a, again.weights[module][0])
        assert torch.equal(b, again.weights[module][1])


# ---- the chat ----


def test_each_answer_is_the_selected_adapters_and_says_so(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    session = Session()
    reverse, add = make(on, REVERSE, session), make(on, ADD, session)
    for key, adapter, by in (
        (reverse, pipe.adapt(REVERSE), REVERSE),
        ("", None, "No adapter"),
        (add, pipe.adapt(ADD), ADD),
        (reverse, pipe.adapt(REVERSE), REVERSE),
    ):
        session.turns = []
        assert ask(on, "one two", key, session) == (pipe.chat("one two", adapter=adapter), by)


def test_earlier_turns_are_part_of_the_conversation(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    session = Session(turns=[Turn("one", "No adapter", "two")])
    conversation = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert ask(on, "three", "", session)[0] == pipe.chat(conversation)


def test_strength_scales_the_adapter_and_is_named(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    session = Session()
    key = make(on, REVERSE, session)
    half = ask(on, "one two", key, session, strength=0.5)
    assert half == (pipe.chat("one two", adapter=pipe.adapt(REVERSE).scaled(0.5)), f"{REVERSE} · strength 0.5")
    session.turns = []
    assert ask(on, "one two", key, session, strength=0)[0] == pipe.chat("one two")


def test_the_description_is_put_in_the_prompt_and_that_is_said(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    session = Session()
    key, by = make(on, REVERSE, session), f"{REVERSE} · description in the prompt"
    described = pipe.chat("one two", adapter=pipe.adapt(REVERSE), describe=True)
    assert described != pipe.chat("one two", adapter=pipe.adapt(REVERSE))
    assert ask(on, "one two", key, session, describe=True) == (described, by)
    list(on.retry(key, 0.5, session, True))
    assert session.turns[0].by == f"{REVERSE} · strength 0.5 · description in the prompt"
    list(on.retry(key, 1.0, session))
    assert session.turns[0].by == REVERSE
    session.turns = []
    assert ask(on, "one two", "", session, describe=True) == (pipe.chat("one two"), "No adapter")


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("", "The message is empty"),
        ("   ", "The message is empty"),
        ("a" * 1_000_001, "characters"),
        ("a" * 500, "tokens"),
    ],
)
def test_a_bad_message_gets_a_sentence_and_changes_nothing(on: Handlers, message: str, sentence: str) -> None:
    session = Session()
    with pytest.warns(UserWarning, match=sentence):
        assert list(on.send(message, "", 1.0, session)) == [SKIP]
    assert session == Session()


def test_an_answer_can_be_stopped_before_its_first_token_and_later(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    session = Session()
    whole = pipe.chat("one two")
    with slow(pipe, 0.05):
        answer = on.send("one two", "", 1.0, session)
        next(answer)  # the message is on the page, nothing has come yet
        asyncio.run(on.stop(session))
        list(answer)
        assert len(session.turns[0].answer) <= 1
        answer = on.send("one two", "", 1.0, session)
        next(answer), next(answer)
        asyncio.run(on.stop(session))
        list(answer)
    assert session.turns[1].answer
    assert session.turns[1].answer != whole
    assert session.stream is None


def test_one_answer_at_a_time(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    session = Session(turns=[Turn("one", "No adapter", "two")])
    with slow(pipe, 0.05):
        answer = on.send("three", "", 1.0, session)
        next(answer)
        assert list(on.send("four", "", 1.0, session)) == [SKIP]
        assert list(on.retry("", 1.0, session)) == [SKIP]
        asyncio.run(on.clear(session))
        asyncio.run(on.undo(session))
        assert [turn.question for turn in session.turns] == ["one", "three"]
        answer.close()  # what Gradio does when the visitor has gone
    assert session.stream is None


def test_retry_asks_again_of_the_adapter_that_is_selected_now(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    session = Session()
    key = make(on, REVERSE, session)
    base, _ = ask(on, "one two", "", session)
    *_, (chat, *_) = on.retry(key, 1.0, session)
    assert [turn.by for turn in session.turns] == [REVERSE]
    assert session.turns[0].answer == pipe.chat("one two", adapter=pipe.adapt(REVERSE)) != base
    assert chat == bubbles(session.turns)


def test_a_retry_that_fails_keeps_the_turn(on: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(turns=[Turn("one", "No adapter", "two")])
    monkeypatch.setattr(on.model.pipe, "chat", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="Something went wrong on the server"):
        assert list(on.retry("", 1.0, session)) == [SKIP]
    assert session.turns == [Turn("one", "No adapter", "two")]


def test_undo_takes_the_last_turn_back_and_clear_all(on: Handlers) -> None:
    session = Session(turns=[Turn("one", "No adapter", "1"), Turn("two", "No adapter", "2")])
    chat, message, *_ = asyncio.run(on.undo(session))
    assert chat == bubbles([Turn("one", "No adapter", "1")])
    assert message == "two"
    chat, *_ = asyncio.run(on.clear(session))
    assert chat == session.turns == []


def test_an_error_while_an_answer_is_written_ends_that_answer_only(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    session = Session()
    hook = pipe.adapted.model.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.warns(UserWarning, match="Something went wrong on the server"):
            list(on.send("one two", "", 1.0, session))
    finally:
        hook.remove()
    assert ask(on, "five", "", Session())[0] == pipe.chat("five")
    assert session.stream is None


def test_a_long_conversation_keeps_its_end(on: Handlers) -> None:
    session = Session(turns=[Turn("", "No adapter", "") for _ in range(MAX_TURNS)])
    on.model.pipe.multi_turn = False
    try:
        ask(on, "one", "", session)
    finally:
        on.model.pipe.multi_turn = True
    assert len(session.turns) == MAX_TURNS
    assert session.turns[-1].question == "one"


def test_text_is_shown_as_it_is() -> None:
    messages = bubbles([Turn("<b>a</b>", "<i>task</i>", "&lt; <script>")])
    assert messages == [
        {"role": "user", "content": "&lt;b&gt;a&lt;/b&gt;"},
        {"role": "assistant", "content": ["&amp;lt; &lt;script&gt;", "&lt;i&gt;task&lt;/i&gt;"]},
    ]


# ---- export ----


def test_the_exported_zip_is_the_adapter_in_plain_peft(
    on: Handlers, pipe: hyperlora.Pipeline, tiny_base: Path, tmp_path: Path
) -> None:
    session = Session()
    key = make(on, REVERSE, session)
    (path,) = (shutil.copy(path, tmp_path) for path in on.export(key, 0.5, session))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    ids = torch.tensor([pipe.tokenizer.encode("one two three")])
    slot = pipe.adapted.load(pipe.adapt(REVERSE).scaled(0.5))
    with torch.no_grad(), pipe.adapted.use([slot]):
        ours = pipe.adapted.model(ids).logits
    pipe.adapted.unload(slot)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours, rtol=0, atol=1e-4)


def test_there_is_nothing_to_export_without_an_adapter(on: Handlers) -> None:
    with pytest.raises(gr.Error, match="Select an adapter first"):
        next(on.export("", 1.0, Session()))


# ---- loading ----


def test_a_damaged_model_is_one_sentence_on_a_page_that_stays_up(
    tiny_base: Path, tiny_hyperlora: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"damaged")
    model = Model(lambda: hyperlora.pipeline(None, base=base, hyperlora=tiny_hyperlora))
    with serving(model) as url:
        model.start()
        wait_until(lambda: model.error)
        status, *_ = asyncio.run(Handlers(model).ready(Session()))
        assert "The base model in" in status
        assert "is damaged" in status
        assert "\n" not in status
        assert httpx.get(url).status_code == 200


def test_an_unexpected_failure_to_load_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(lambda: 1 / 0)
    model.start()
    wait_until(lambda: model.error)
    assert model.error == "The model could not be loaded; the server's log says why."
    assert "ZeroDivisionError" in caplog.text


def test_the_page_waits_for_the_model_and_says_when_each_message_stands_alone(model: Model) -> None:
    loading = Handlers(Model(lambda: None))
    *_, timer, _ = asyncio.run(loading.ready(Session()))
    assert timer.active
    status, *_ = loading.generate(REVERSE, Session())
    assert "The model is still loading" in status
    with pytest.warns(UserWarning, match="The model is still loading"):
        list(loading.send("one", "", 1.0, Session()))
    assert asyncio.run(Handlers(model).ready(Session()))[3] == "tiny-base"
    model.pipe.multi_turn = False
    try:
        _, button, _, line, describe, timer, _ = asyncio.run(Handlers(model).ready(Session()))
    finally:
        model.pipe.multi_turn = True
    assert button.value == "Generate"
    assert "each message on its own" in line
    assert describe == gr.skip()  # off, as it is
    assert not timer.active


def test_the_description_is_in_the_prompt_from_the_start_where_it_was_in_training(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.pipe, "describe", True)
    *_, describe, _, _ = asyncio.run(Handlers(model).ready(Session()))
    assert describe is True


# ---- a download ----


def offer(model: Model) -> tuple[bool, str, list[str]]:
    """What the page shows of a download: whether anything, the text, and the buttons that are there."""
    panel, text, allow, refuse, *_ = asyncio.run(Handlers(model).offer())
    buttons = ["Download"] if getattr(allow, "visible", False) else []
    return panel.visible, text, [*buttons, getattr(refuse, "value", None)]


def asking(pipe: hyperlora.Pipeline, heard: list) -> Model:
    """A model that asks before it loads, and downloads 10 GB in 5 steps, for each of which it waits."""
    steps = threading.Semaphore(0)

    def load() -> hyperlora.Pipeline:
        try:
            model.ask("Big <b> needs a download of 10.0 GB.")
            for done in range(0, 12, 2):
                assert steps.acquire(timeout=300)
                model.report(done * 1e9, 10e9)
                heard.append(done)
        except Cancelled:
            heard.append("cancelled")
        return pipe

    model = Model(load)
    model.start()
    wait_until(lambda: model.question)
    model.step = steps.release
    return model


def test_a_download_is_asked_for_on_the_page_and_shown_while_it_runs(pipe: hyperlora.Pipeline) -> None:
    heard: list = []
    model = asking(pipe, heard)
    text = "<p>Big &lt;b&gt; needs a download of 10.0&nbsp;GB.</p>"
    assert offer(model) == (True, text, ["Download", "Use the mini model instead"])
    *_, generate, message = asyncio.run(Handlers(model).offer())
    assert generate.value == message.placeholder == "Waiting for your choice…"
    asyncio.run(Handlers(model).allow())
    assert "The download begins." in offer(model)[1]
    for _ in range(3):
        model.step()
    wait_until(lambda: heard == [0, 2, 4])
    shown, text, buttons = offer(model)
    assert shown and buttons == ["Cancel"] and "4.0 GB of 10.0 GB" in text and "width: 40.0%" in text
    for _ in range(3):
        model.step()
    wait_until(lambda: model.settled)
    assert heard == [0, 2, 4, 6, 8, 10] and model.pipe is pipe
    assert not offer(model)[0]


def test_a_visitor_may_take_the_mini_model_before_and_while_it_downloads(pipe: hyperlora.Pipeline) -> None:
    before: list = []
    model = asking(pipe, before)
    asyncio.run(Handlers(model).refuse())
    wait_until(lambda: model.settled)
    during: list = []
    model = asking(pipe, during)
    asyncio.run(Handlers(model).allow())
    model.step()
    wait_until(lambda: during == [0])
    asyncio.run(Handlers(model).refuse())
    asyncio.run(Handlers(model).allow())  # a page that is a moment late
    assert not offer(model)[0]
    model.step()
    wait_until(lambda: model.settled)
    assert (before, during) == (["cancelled"], [0, "cancelled"])


def test_nobody_can_answer_what_is_not_asked(pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe)
    model.answer(True)
    model.answer(False)
    model.report(1.0, 2.0)
    assert offer(model)[0]
    with pytest.raises(UserError, match="still loading"):
        model.pipe  # noqa: B018


def test_progress_says_how_long_it_will_take() -> None:
    assert "about 2 minutes left" in progress(1e9, 5e9, 30)
    assert "about a minute left" in progress(9e9, 10e9, 60)
    assert "left" not in progress(1e9, 5e9, 2)


# ---- the server ----


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with serving(model) as url:
        yield url


def test_visitors_have_their_own_shelves_and_their_own_adapters_answers_at_the_same_time(
    url: str, pipe: hyperlora.Pipeline
) -> None:
    texts = [REVERSE, ADD, "Write it in capital letters.", None]
    expected = [pipe.chat("one two", adapter=pipe.adapt(text) if text else None) for text in texts]
    clients = [Client(url, verbose=False) for _ in texts]
    keys = []
    with slow(pipe, 0.01):
        for client, text in zip(clients, texts, strict=True):
            shelf = client.predict(text, api_name="/generate")[1] if text else {"value": ""}
            keys.append(shelf["value"])
            if text:
                assert [label for label, _ in shelf["choices"]] == ["No adapter", text]
        jobs = [
            client.submit("one two", key, 1, False, api_name="/send") for client, key in zip(clients, keys, strict=True)
        ]
        wait_until(lambda: len(pipe.engine._batch.rows) == len(jobs))  # they are decoded together
        late = Client(url, verbose=False)
        late.predict("Repeat the text.", api_name="/generate")  # while the others are answered
        answers = [job.result()[0] for job in jobs]
    for answer, text, words in zip(answers, texts, expected, strict=True):
        content = [part["text"] for part in answer[-1]["content"]]
        assert content == [bubbles([Turn("", text or "No adapter", words)])[1]["content"][0], text or "No adapter"]


def test_nothing_is_open_that_the_page_does_not_need(url: str) -> None:
    assert httpx.get(f"{url}monitoring").status_code in (403, 404)
    assert httpx.get(f"{url}monitoring/summary").status_code in (403, 404)
    assert httpx.get(f"{url}gradio_api/runs").status_code == 404
    assert httpx.get(f"{url}gradio_api/file={ROOT / 'app.py'}").status_code == 403
    assert httpx.get(f"{url}gradio_api/info").json()["named_endpoints"] == {}
    config = httpx.get(f"{url}config").json()
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    upload = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.txt", b"more than one byte")})
    assert upload.status_code >= 400


# ---- the command ----


def run_app(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "app.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def test_help_names_every_option() -> None:
    text = run_app("--help").stdout
    for option in (
        "--preset",
        "--base",
        "--hyperlora",
        "--device",
        "--dtype",
        "--quantize",
        "--yes",
        "--host",
        "--port",
    ):
        assert option in text


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_app("--port", str(port))
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        f"The page cannot be opened: port {port} on 127.0.0.1 cannot be used; choose another with --port or --host."
    ]


def test_what_is_named_and_cannot_be_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--base", "Qwen/Qwen3-8B"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "python -m training.plan --base Qwen/Qwen3-8B" in err
    assert app.main(["--preset", "maxi"]) == 2


@pytest.mark.parametrize("port", ["0", "65536", "many"])
def test_a_bad_port_is_refused(port: str) -> None:
    result = run_app("--port", port)
    assert result.returncode == 2
    assert "give a number from 1 to 65535" in result.stderr
