"""The OpenAI-compatible server, asked by the clients that people have."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
import torch
import uvicorn

import hyperlora
from hyperlora.__main__ import main
from hyperlora.errors import UserError
from hyperlora.hosting import read_keys, who_may_ask
from hyperlora.limits import Limits
from hyperlora.model import Model
from hyperlora.prompt import format_prompt
from hyperlora.server import Server, listen
from tests.ui.visitor import slow, wait_until

REVERSE = "Reverse the order of the words."
KEY, OTHER = "a key of sixteen characters".replace(" ", "-"), "another-key-of-theirs"
HI = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def pipe(terse_base: Path, tiny_hyperlora: Path) -> Iterator[hyperlora.Pipeline]:
    pipe = hyperlora.pipeline(None, base=terse_base, hyperlora=tiny_hyperlora)
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def model(pipe: hyperlora.Pipeline) -> Model:
    model = Model(lambda: pipe)
    model.run()
    return model


@contextmanager
def running(server: Server) -> Iterator[str]:
    """The server's address, up to its /v1."""
    with listen("127.0.0.1", 0) as listening:
        serving = uvicorn.Server(uvicorn.Config(server.app, access_log=False, log_level="warning"))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: serving.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            serving.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with running(Server(model)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def base(pipe: hyperlora.Pipeline) -> str:
    return Path(pipe.base_name).name


def ask(client: openai.OpenAI, model: str, **more: object):
    return client.chat.completions.create(**{"model": model, "messages": HI, "temperature": 0} | more)


# ---- which adapter answers ----


def test_a_models_name_is_a_description(client: openai.OpenAI, pipe: hyperlora.Pipeline, base: str) -> None:
    adapter = pipe.adapt(REVERSE)
    for name, wanted in (
        (f"hyperlora:{REVERSE}", pipe.chat("one two three", adapter)),
        (f"hyperlora@0.5:{REVERSE}", pipe.chat("one two three", adapter.scaled(0.5))),
        (f"hyperlora@-1:{REVERSE}", pipe.chat("one two three", adapter.scaled(-1))),
        (base, pipe.chat("one two three")),
    ):
        answer = ask(client, name)
        assert answer.choices[0].message.content == wanted and answer.model == name


@pytest.mark.parametrize(
    "description",
    (
        "Answer yes/no: is it so?",
        'Say "hello" to whoever\'s there',
        "First line.\nSecond: line/with @0.5: things",
        "Перечисли слова наоборот. 反转单词。",
        "a" * 2_000,
    ),
)
def test_a_description_may_hold_anything(client: openai.OpenAI, pipe: hyperlora.Pipeline, description: str) -> None:
    answer = ask(client, f"hyperlora:{description}")
    assert answer.choices[0].message.content == pipe.chat("one two three", pipe.adapt(description))
    assert client.models.retrieve(f"hyperlora:{description[:200]}").id == f"hyperlora:{description[:200]}"


@pytest.mark.parametrize(
    ("name", "said"),
    (
        ("gpt-4o", "There is no such model"),
        ("hyperlora", "There is no such model"),
        ("hyperlora:", "The description is empty"),
        ("hyperlora:" + "a" * 2_001, "the limit is 2,000"),
        ("hyperlora@much:Reverse.", "The strength in the model's name is 'much'"),
        ("hyperlora@nan:Reverse.", "strength should be a number from -4 to 4"),
        ("hyperlora@9:Reverse.", "strength should be a number from -4 to 4"),
        ("hyperlora:\u202eesreveR", "does not show"),
        ("adapter-0123456789abcdef01234567", "There is no such model"),
    ),
)
def test_a_name_that_means_nothing_is_a_sentence(client: openai.OpenAI, name: str, said: str) -> None:
    with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as raised:
        ask(client, name)
    assert said in raised.value.body["message"]


def test_an_adapter_is_made_and_named(url: str, client: openai.OpenAI, pipe: hyperlora.Pipeline, base: str) -> None:
    made = httpx.post(f"{url}/adapters", json={"description": REVERSE, "strength": 0.5}, timeout=300).json()
    assert made["description"] == REVERSE and made["strength"] == 0.5
    assert ask(client, made["id"]).choices[0].message.content == pipe.chat(
        "one two three", pipe.adapt(REVERSE).scaled(0.5)
    )
    assert [each.id for each in client.models.list()][:1] == [base]
    assert made["id"] in [each.id for each in client.models.list()]
    again = httpx.post(f"{url}/adapters", json={"description": REVERSE, "strength": 0.5}, timeout=300).json()
    assert again["id"] == made["id"]
    assert httpx.post(f"{url}/adapters", json={"description": ""}).status_code == 400


def test_a_key_sees_what_it_made_and_no_other(model: Model) -> None:
    with running(Server(model, [KEY, OTHER])) as url:
        mine, theirs = (openai.OpenAI(base_url=url, api_key=key, max_retries=0) for key in (KEY, OTHER))
        made = httpx.post(
            f"{url}/adapters", json={"description": REVERSE}, headers={"authorization": f"Bearer {KEY}"}, timeout=300
        ).json()["id"]
        assert made in [each.id for each in mine.models.list()]
        assert made not in [each.id for each in theirs.models.list()]
        with pytest.raises(openai.NotFoundError):
            ask(theirs, made)


# ---- answers ----


def test_a_streamed_answer_is_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, f"hyperlora:{REVERSE}")
    with ask(client, f"hyperlora:{REVERSE}", stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == [whole.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert whole.usage.completion_tokens == 40


def test_options_are_those_of_the_pipeline(client: openai.OpenAI, pipe: hyperlora.Pipeline, base: str) -> None:
    assert ask(client, base, max_tokens=3).usage.completion_tokens == 3
    assert ask(client, base, max_tokens=9, max_completion_tokens=4).usage.completion_tokens == 4
    plain = pipe.chat("one two three")
    cut = ask(client, base, stop=plain[5:8]).choices[0]
    assert cut.message.content == plain[: plain.index(plain[5:8])] and cut.finish_reason == "stop"
    sampled = [ask(client, base, temperature=1.5, seed=7, n=3).choices for _ in range(2)]
    assert [each.message.content for each in sampled[0]] == [each.message.content for each in sampled[1]]
    assert [each.index for each in sampled[0]] == [0, 1, 2]
    assert sampled[0][1].message.content == pipe.chat("one two three", do_sample=True, temperature=1.5, seed=8)
    system = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "one"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    begun = [*HI, {"role": "assistant", "content": "abc"}]
    for messages, same in (
        (system, [system[0] | {"role": "system"}, system[1]]),
        (parts, "one\ntwo"),
        (begun, begun),
    ):
        assert ask(client, base, messages=messages).choices[0].message.content == pipe.chat(same)
    described = ask(client, f"hyperlora:{REVERSE}", extra_body={"describe": True}).choices[0].message.content
    assert described == pipe.chat("one two three", pipe.adapt(REVERSE), describe=True)


def test_choices_are_streamed_side_by_side(client: openai.OpenAI, base: str) -> None:
    whole = ask(client, base, temperature=1.0, seed=3, n=2)
    texts = ["", ""]
    with ask(client, base, temperature=1.0, seed=3, n=2, stream=True) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_log_probabilities_are_the_models_own(client: openai.OpenAI, pipe: hyperlora.Pipeline, base: str) -> None:
    answer = ask(client, base, logprobs=True, top_logprobs=3, max_tokens=12).choices[0]
    told = answer.logprobs.content
    assert "".join(each.token for each in told) == answer.message.content
    prompt = format_prompt(pipe.tokenizer, "one two three")
    ids = torch.tensor([prompt + pipe.tokenizer.convert_tokens_to_ids([each.token for each in told])])
    with torch.inference_mode():
        logits = pipe.engine.call(lambda: pipe.adapted.model(input_ids=ids)).logits[0]
    wanted = logits.log_softmax(dim=-1)[len(prompt) - 1 : -1].topk(3).values
    found = torch.tensor([[top.logprob for top in each.top_logprobs] for each in told])
    assert torch.allclose(found, wanted, atol=1e-4)
    assert all(each.top_logprobs[0].token == each.token for each in told)
    assert [each.logprob for each in told] == pytest.approx(wanted[:, 0].tolist(), abs=1e-4)
    with ask(client, base, logprobs=True, max_tokens=12, stream=True) as stream:
        pieces = [choice.logprobs.content for chunk in stream for choice in chunk.choices if choice.logprobs]
    assert [each.token for piece in pieces for each in piece] == [each.token for each in told]


def test_completions_take_a_prompt_as_it_is(client: openai.OpenAI, pipe: hyperlora.Pipeline, base: str) -> None:
    ids = pipe.tokenizer("one two").input_ids
    wanted = "".join(pipe.engine.submit(ids, None, max_new_tokens=9))
    found = client.completions.create(model=base, prompt="one two", max_tokens=9, temperature=0, logprobs=2)
    assert found.choices[0].text == wanted and found.usage.prompt_tokens == len(ids)
    told = found.choices[0].logprobs
    assert "".join(told.tokens) == wanted and len(told.top_logprobs[0]) == 2 and told.text_offset == list(range(9))
    several = client.completions.create(model=base, prompt=["one two", "three"], max_tokens=9, temperature=0)
    assert several.choices[0].text == wanted and len(several.choices) == 2
    assert client.completions.create(model=base, prompt=ids, max_tokens=9, temperature=0).choices[0].text == wanted
    adapted = client.completions.create(model=f"hyperlora:{REVERSE}", prompt="one two", max_tokens=9, temperature=0)
    assert adapted.choices[0].text == "".join(pipe.engine.submit(ids, pipe.adapt(REVERSE), max_new_tokens=9))
    with client.completions.create(model=base, prompt="one two", max_tokens=9, temperature=0, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == wanted


def test_what_is_not_to_be_had_is_refused_by_name(client: openai.OpenAI, base: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]
    for more, said in (
        ({"tools": [tool]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is 'json_object'"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported: this server has no presence penalty"),
        ({"messages": image}, "must be a text, not 'image_url'"),
        ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "1"}]}, "no tools"),
        ({"messages": [{"role": "king", "content": "4"}]}, "role must be one of"),
        ({"messages": []}, "A chat needs a message"),
        ({"n": 9}, "n must be from 1 to 8"),
        ({"n": 0}, "n must be from 1 to 8, not 0"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be from 0 to 20"),
        ({"temperature": "hot"}, "temperature:"),
        ({"temperature": -1}, "temperature must be a number"),
        ({"max_tokens": 0}, "max_new_tokens must be a number from 1"),
        ({"stop": ["a"] * 17}, "stop must be at most 16 texts"),
        ({"stop": [""]}, "stop_strings must be"),
        ({"messages": [{"role": "user", "content": "long " * 300}]}, "shorten it"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            ask(client, base, **more)
        assert said in raised.value.body["message"] and "\n" not in raised.value.body["message"]
        assert raised.value.body["type"] == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="asks for 128 answers at once; the limit is 64"):
        client.completions.create(model=base, prompt=["one"] * 16, n=8)
    nothing = {"tools": [], "logit_bias": {}, "frequency_penalty": 0, "response_format": {"type": "text"}, "n": 1}
    unread = {"user": "me", "metadata": {}, "parallel_tool_calls": True, "chat_id": "of a client", "think": False}
    assert ask(client, base, **nothing, max_tokens=2, extra_body=unread).choices[0].message.content


# ---- who may ask ----


def test_without_a_key_nobody_else_is_let_in(model: Model) -> None:
    arguments = SimpleNamespace(api_key_file=None, host="0.0.0.0", port=0, allow_host=[])
    with pytest.raises(UserError, match="needs a key"):
        who_may_ask(arguments)
    with running(Server(model, [KEY])) as url:
        for headers in ({}, {"authorization": "Bearer"}, {"authorization": f"Bearer {KEY[:-1]}"}, {"api-key": KEY}):
            answer = httpx.get(f"{url}/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{url}/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_keys(None) == []
    monkeypatch.setenv("HYPERLORA_API_KEY", KEY)
    assert read_keys(None) == [KEY]
    (tmp_path / "keys").write_text(f"{KEY}\n{OTHER}\n")
    assert read_keys(str(tmp_path / "keys")) == [KEY, OTHER]
    (tmp_path / "keys").write_bytes(f"{KEY}\r\n{OTHER}\r\n".encode("utf-8-sig"))  # as Windows writes it
    assert read_keys(str(tmp_path / "keys")) == [KEY, OTHER]
    for text, said in (
        ("", "must hold 1 to"),
        ("schlüssel" * 2, "more than ASCII"),
        ("short", "fewer than 16"),
        (b"\xff\xfe", "cannot be read"),
    ):
        (tmp_path / "bad").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match=said):
            read_keys(str(tmp_path / "bad"))
    monkeypatch.setenv("HYPERLORA_API_KEY", f"{KEY} " * 1_001)
    with pytest.raises(UserError, match="HYPERLORA_API_KEY must hold 1 to 1,000 keys"):
        read_keys(None)


def test_no_web_page_drives_a_local_server(url: str, base: str) -> None:
    body = json.dumps({"model": base, "messages": HI})
    for headers in (  # what a browser sends of another site's page without asking first
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {},
    ):
        assert httpx.post(f"{url}/chat/completions", content=body, headers=headers).status_code == 415
    # Asking first gets no leave.
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = httpx.options(f"{url}/chat/completions", headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]
    for host, status in (
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("localhost:1", 200),
        ("[::1]:80", 200),
        ("", 403),
        ("127.0.0.1.evil.example", 403),
    ):
        assert httpx.get(f"{url}/models", headers={"host": host}).status_code == status, host


def test_bodies_that_are_none(url: str) -> None:
    headers = {"content-type": "application/json"}
    half = b'{"model": "hyperlora:Say it.", "messages": [{"role": "user", "content": "\\ud800"}]}'
    for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"model": 5}', b'{"model": "x", "messages": "hi"}', half):
        answer = httpx.post(f"{url}/chat/completions", content=body, headers=headers)
        assert answer.status_code == 400 and "\n" not in answer.json()["error"]["message"], body
    for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"a":' * 50_000):
        answer = httpx.post(f"{url}/chat/completions", content=body, headers=headers)
        assert answer.json()["error"]["message"] == "The body must be a JSON object.", body[:9]
    for prompt in ([True], [1, "a"], [[1], "a"], {"a": 1}):
        answer = httpx.post(f"{url}/completions", json={"model": "hyperlora:Say it.", "prompt": prompt})
        assert answer.json()["error"]["param"] == "prompt"
    answer = httpx.post(f"{url}/chat/completions", json={"model": "m", "messages": [{"role": 1}] * 200_000})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages.0.role"
    body = b'{"model": "hyperlora:Say it.", "prompt": ["a longer one", "\\ud800"]}'
    assert httpx.post(f"{url}/completions", content=body, headers=headers).status_code == 400
    assert httpx.get(f"{url}/nothing").json()["error"]["message"]
    assert httpx.get(f"{url}/chat/completions").status_code == 405


# ---- many, slow and gone ----


def test_who_hangs_up_ends_the_answer(url: str, pipe: hyperlora.Pipeline, base: str) -> None:
    body = {"model": base, "messages": HI, "max_tokens": 200, "temperature": 0}
    with slow(pipe, 0.05):
        with httpx.stream("POST", f"{url}/chat/completions", json=body | {"stream": True}) as answer:
            next(answer.iter_lines())
            assert pipe.engine._batch.rows
        wait_until(lambda: not pipe.engine._batch.rows)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/chat/completions", json=body, timeout=1)
        wait_until(lambda: not pipe.engine._batch.rows)


def test_who_hung_up_before_the_answer_began_counts_no_longer(model: Model, base: str) -> None:
    """The app is called as uvicorn does where the connection takes nothing more, and then is gone."""
    server = Server(model)
    body = json.dumps({"model": base, "messages": HI, "stream": True}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http"}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "root_path": "", "raw_path": b""}

    async def leave() -> None:
        messages = iter([{"type": "http.request", "body": body}])

        async def receive() -> dict:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: dict) -> None:
            await asyncio.Event().wait()

        await server.app(scope, receive, send)

    asyncio.run(leave())
    assert server._running == 0
    wait_until(lambda: not model.pipe.engine._rows)


def test_a_stream_says_that_it_is_still_there(
    model: Model, pipe: hyperlora.Pipeline, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperlora.server.QUIET", 0.05)
    body = {"model": base, "messages": HI, "max_tokens": 2, "stream": True}
    with running(Server(model)) as url, slow(pipe, 0.5):
        lines = httpx.post(f"{url}/chat/completions", json=body, timeout=300).text.splitlines()
        assert ": 0 chats are waiting" in lines and lines[-2] == "data: [DONE]"
        client = openai.OpenAI(base_url=url, api_key="none")
        with ask(client, base, max_tokens=2, stream=True) as stream:  # clients read over it
            assert [choice.finish_reason for chunk in stream for choice in chunk.choices][-1] == "length"


def test_many_at_once_are_each_answered_by_their_own_adapter(url: str, pipe: hyperlora.Pipeline) -> None:
    descriptions = [f"Say the number {i}." for i in range(12)]
    wanted = [pipe.chat("one two three", pipe.adapt(text)) for text in descriptions]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            asked = (ask(client, f"hyperlora:{text}") for text in descriptions)
            return [each.choices[0].message.content for each in await asyncio.gather(*asked)]

    assert asyncio.run(all_at_once()) == wanted


def test_who_comes_when_the_queue_is_full_is_told(
    url: str, pipe: hyperlora.Pipeline, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.engine, "max_batch", 1)
    monkeypatch.setattr(pipe.engine, "max_waiting", 1)
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with slow(pipe, 0.1):
        first = [threading.Thread(target=ask, args=(client, base), kwargs={"max_tokens": 20}) for _ in range(2)]
        first[0].start()
        wait_until(lambda: pipe.engine._batch.rows)
        first[1].start()
        wait_until(lambda: pipe.engine.load[1])
        with pytest.raises(openai.RateLimitError, match="The model is busy"):
            ask(client, base)
    for thread in first:
        thread.join()


def test_an_error_in_mid_answer_is_told(
    url: str, client: openai.OpenAI, pipe: hyperlora.Pipeline, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, calls = pipe.engine._choose, iter(range(100))

    def fail(*arguments: object):
        if next(calls) == 3:
            raise UserError("The memory ran out.")
        return choose(*arguments)

    monkeypatch.setattr(pipe.engine, "_choose", fail)
    with pytest.raises(openai.APIError, match="The memory ran out"), ask(client, base, stream=True) as stream:
        list(stream)
    calls = iter(range(100))
    with pytest.raises(openai.BadRequestError, match="The memory ran out"):
        ask(client, base)
    assert ask(client, base, max_tokens=2).choices[0].message.content


def test_nothing_that_was_sent_is_in_a_log(
    url: str, client: openai.OpenAI, base: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    canary = "canary seen nowhere"
    ask(client, f"hyperlora:{canary}", messages=[{"role": "user", "content": canary}], max_tokens=2)
    for wrong in (f"no-{canary}", f"hyperlora@x:{canary}"):
        with pytest.raises(openai.APIStatusError):
            ask(client, wrong)
    assert canary not in caplog.text and canary not in "".join(capfd.readouterr())


def test_an_unexpected_error_is_a_sentence_and_its_lines_in_the_log(
    client: openai.OpenAI, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary seen nowhere"

    def breaks(recipe: object) -> None:
        raise RuntimeError(canary)

    monkeypatch.setattr(model, "adapter", breaks)
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client, "hyperlora:Say it.")
    assert "Something went wrong" in raised.value.body["message"] and raised.value.body["type"] == "server_error"
    assert "Unexpected RuntimeError" in caplog.text and "in breaks" in caplog.text and canary not in caplog.text


def test_no_more_answers_at_once_than_the_host_allows(pipe: hyperlora.Pipeline, base: str) -> None:
    model = Model(lambda: pipe, Limits(chats=1))
    model.run()
    body = {"model": base, "messages": HI, "max_tokens": 200, "temperature": 0}
    with running(Server(model)) as url, slow(pipe, 0.05):
        with httpx.stream("POST", f"{url}/chat/completions", json=body | {"stream": True}) as answer:
            next(lines := answer.iter_lines())  # which hang up where nobody holds them
            assert httpx.post(f"{url}/chat/completions", json=body).status_code == 429
            lines.close()
        again = body | {"max_tokens": 1}
        wait_until(lambda: httpx.post(f"{url}/chat/completions", json=again).status_code == 200)


def test_before_the_model_is_there(pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe)
    with running(Server(model)) as url:
        assert httpx.get(f"{url}/models").status_code == 503
        model.run()
        assert httpx.get(f"{url}/models").status_code == 200


# ---- other clients ----


def test_litellm(url: str, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks another machine for prices
    litellm = pytest.importorskip("litellm")
    description = "Answer yes/no: is it so?"
    answer = litellm.completion(
        f"openai/hyperlora:{description}", messages=HI, api_base=url, api_key="none", temperature=0
    )
    assert answer.choices[0].message.content == pipe.chat("one two three", pipe.adapt(description))


def test_langchain(url: str, pipe: hyperlora.Pipeline) -> None:
    chat_models = pytest.importorskip("langchain.chat_models")
    description = "Answer yes/no: is it so?"
    model = chat_models.init_chat_model(f"openai:hyperlora:{description}", base_url=url, api_key="none", temperature=0)
    assert model.invoke("one two three").content == pipe.chat("one two three", pipe.adapt(description))
    assert "".join(piece.content for piece in model.stream("one two three")) == model.invoke("one two three").content


def test_curl(url: str, base: str) -> None:
    if not (curl := shutil.which("curl")):
        pytest.skip("curl is not installed")
    body = json.dumps({"model": base, "messages": HI, "max_tokens": 2})
    command = [curl, "-s", f"{url}/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["usage"]["completion_tokens"] == 2


def test_what_open_webui_sends(url: str, base: str) -> None:
    """It lists the models, and then asks with settings of its own that no other server knows."""
    headers = {"authorization": "Bearer none", "x-openwebui-user-name": "me", "content-type": "application/json"}
    [found] = [each for each in httpx.get(f"{url}/models", headers=headers).json()["data"] if each["id"] == base]
    assert found["object"] == "model"
    body = {
        "stream": True,
        "model": base,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}],
        "params": {},
        "features": {"image_generation": False, "web_search": False},
        "variables": {"{{USER_NAME}}": "me"},
        "session_id": "s",
        "chat_id": "c",
        "id": "m",
        "background_tasks": {"title_generation": True},
        "stream_options": {"include_usage": True},
        "max_tokens": 3,
    }
    lines = httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=300).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert lines[-2] == "data: [DONE]" and chunks[-1]["usage"]["completion_tokens"] == 3


# ---- the command ----


def test_the_command_answers_to_the_end_and_then_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hyperlora", "serve", "--preset", "mini", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            body = {"model": "hyperlora:Put each word in square brackets.", "messages": HI, "stream": True}
            with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=300) as answer:
                lines = answer.iter_lines()
                first = next(lines)
                process.send_signal(signal.SIGTERM)
                rest = [first, *lines]
            texts = [json.loads(line[6:])["choices"] for line in rest if line.startswith("data: {")]
            assert "".join(c[0]["delta"].get("content", "") for c in texts) == "[one] [two] [three]"
            process.wait(60)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/models")
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_beside_the_page(tmp_path: Path) -> None:
    """One model for both; and a page that others may visit does not let them ask /v1 without a key."""
    command = [sys.executable, "app.py", "--preset", "mini", "--openai"]
    done = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True)
    assert done.returncode == 2 and "needs a key" in done.stderr
    with subprocess.Popen([*command, "--port", "7951"], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+?(?=/?\s)", process.stdout.readline())[0]
            wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
            answer = ask(client, "hyperlora:Put each word in square brackets.")
            assert answer.choices[0].message.content == "[one] [two] [three]"
            assert "HyperLoRA" in httpx.get(url).text
            assert httpx.get(f"{url}/v1/models", headers={"host": "evil.example"}).status_code == 403
        finally:
            process.terminate()


def test_a_port_that_is_taken_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} on 127.0.0.1 cannot be used"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"on a\.\.b cannot be used"):
        listen("a..b", 0)


def test_a_port_for_figures_that_is_taken_is_a_sentence_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "run", lambda model: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--preset", "mini", "--port", "0", "--metrics_port", port]) == 2
    assert capsys.readouterr().err == f"Port {port} cannot be used: choose another with --metrics_port.\n"


def test_it_needs_no_package_of_the_page() -> None:
    without = "import sys; sys.modules |= dict.fromkeys(('gradio', 'markdown_it', 'latex2mathml')); "
    subprocess.run([sys.executable, "-c", without + "import hyperlora.server"], check=True)
