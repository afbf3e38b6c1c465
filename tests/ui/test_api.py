"""The API as programs have it: Gradio's client, plain HTTP and an MCP client, against a server on loopback."""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

import app
import hyperlora
from hyperlora.errors import UserError
from hyperlora.limits import FOR, SECRET, Limits
from hyperlora.model import Model
from hyperlora.recipe import Recipe
from tests.ui.visitor import ADD, REVERSE, call, client_at, serving, slow, wait_until

ROOT = Path(__file__).parents[2]
BLEND = {"blend": [[1, {"description": REVERSE}], [-0.5, {"description": ADD}]], "strength": 1.5}


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with serving(model) as url:
        yield url


@pytest.fixture
def client(url: str, tmp_path: Path) -> Client:
    """A program that has not been here before."""
    return Client(url, verbose=False, download_files=tmp_path)


def made(pipe: hyperlora.Pipeline, recipe: dict) -> hyperlora.Adapter:
    return Recipe.from_json(json.dumps(recipe)).make(pipe.adapt)


# ---- what is there ----


def test_four_endpoints_are_listed_with_types_and_defaults_and_words_for_each(client: Client, url: str) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/adapt", "/chat", "/compare", "/export"]
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}
    chat = {each["parameter_name"]: each for each in endpoints["/chat"]["parameters"]}
    assert [name for name, each in chat.items() if not each["parameter_has_default"]] == ["messages"]
    assert chat["strength"]["parameter_default"] == 1.0 and chat["strength"]["python_type"]["type"] == "float"
    assert chat["messages"]["python_type"]["type"] == "str | list[dict(str, str)]"
    for endpoint in endpoints.values():
        assert len(endpoint["description"]) > 40
    paths = httpx.get(f"{url}gradio_api/openapi.json").json()["paths"]
    assert {f"/gradio_api/call/v2{name}" for name in endpoints} <= set(paths)
    assert endpoints["/export"]["returns"][0]["python_type"]["type"] == "filepath"


# ---- what it does ----


def test_adapt_gives_the_recipe_and_what_there_is_to_know(client: Client, pipe: hyperlora.Pipeline) -> None:
    adapter = pipe.adapt(REVERSE)
    assert client.predict(f" {REVERSE}\n", api_name="/adapt") == {
        "recipe": {"description": REVERSE},
        "rank": 8,
        "norm": pytest.approx(adapter.norm()),
        "nearest": REVERSE,
        "notice": "",
    }
    blend = client.predict(BLEND, api_name="/adapt")
    assert blend["recipe"] == BLEND and blend["norm"] == pytest.approx(made(pipe, BLEND).norm())


def test_an_answer_is_the_pipelines_under_the_recipe(client: Client, pipe: hyperlora.Pipeline) -> None:
    reverse = pipe.adapt(REVERSE)
    assert client.predict("one two", api_name="/chat") == pipe.chat("one two")
    assert client.predict("one two", REVERSE, api_name="/chat") == pipe.chat("one two", reverse)
    for recipe in (BLEND, json.dumps(BLEND)):
        assert client.predict("one two", recipe, api_name="/chat") == pipe.chat("one two", made(pipe, BLEND))
    options = {"max_new_tokens": 9, "do_sample": True, "temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.1}
    wanted = pipe.chat("one", reverse.scaled(-1), describe=True, stop_strings=["a\nb", "~"], seed=5, **options)
    given = {"recipe": {"description": REVERSE, "strength": 0.5}, "strength": -2, "describe": True, "max_tokens": 9}
    given |= {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.1, "stop": ["a\nb", "~"], "seed": 5}
    assert client.predict("one", **given, api_name="/chat") == wanted
    assert wanted != pipe.chat("one", reverse.scaled(-1), describe=True, max_new_tokens=9)


def test_a_conversation_is_a_list_of_messages_whose_last_may_begin_the_answer(
    client: Client, pipe: hyperlora.Pipeline
) -> None:
    said = [("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "So:")]
    messages = [{"role": role, "content": content} for role, content in said]
    for chat in (messages, messages[:-1]):
        assert client.predict(chat, REVERSE, api_name="/chat") == pipe.chat(chat, pipe.adapt(REVERSE))


def test_an_answer_streams_and_ends_where_its_client_goes(url: str, client: Client, pipe: hyperlora.Pipeline) -> None:
    with slow(pipe, 0.1):
        *parts, whole = client.submit("one two", REVERSE, max_tokens=8, api_name="/chat")
        assert len(parts) > 1 and all(whole.startswith(part) for part in parts)
        job = client.submit("one two", REVERSE, api_name="/chat")
        wait_until(job.outputs)
        assert pipe.engine.load[0] == 1
        job.cancel()
        wait_until(lambda: pipe.engine.load[0] == 0)
    assert whole == pipe.chat("one two", pipe.adapt(REVERSE), max_new_tokens=8)


def test_two_adapters_are_compared_or_one_with_the_base(client: Client, pipe: hyperlora.Pipeline) -> None:
    adapters = pipe.adapt([REVERSE, ADD])
    left, right = (pipe.chat("one two", adapter, max_new_tokens=9) for adapter in adapters)
    asked = {"left": REVERSE, "right": {"description": ADD}, "max_tokens": 9}
    assert client.predict("one two", **asked, api_name="/compare") == {"left": left, "right": right}
    assert client.predict("one two", REVERSE, api_name="/compare")["right"] == pipe.chat("one two")


def test_an_export_is_the_adapter_at_its_strength(client: Client, pipe: hyperlora.Pipeline, tmp_path: Path) -> None:
    archive = Path(client.predict(REVERSE, 0.5, api_name="/export"))
    assert archive.name == "reverse-the-order-of-the-words.zip" and archive.is_relative_to(tmp_path)
    found, wanted = pipe.load_adapter(archive), pipe.adapt(REVERSE).scaled(0.5)
    assert pipe.chat("one two", found) == pipe.chat("one two", wanted) != pipe.chat("one two")


def test_plain_http_is_enough(url: str, pipe: hyperlora.Pipeline) -> None:
    assert call(url, "chat", messages="one two", recipe=REVERSE) == pipe.chat("one two", pipe.adapt(REVERSE))


def test_no_call_rests_on_another(url: str, pipe: hyperlora.Pipeline) -> None:
    """A recipe made by one server is answered by another, which has not heard of it."""
    recipe = call(url, "adapt", recipe=REVERSE)["recipe"]
    other = Model(lambda: pipe)
    other.start()
    wait_until(lambda: other.settled)
    with serving(other) as elsewhere:
        assert call(elsewhere, "chat", messages="one", recipe=recipe) == pipe.chat("one", pipe.adapt(REVERSE))


@pytest.mark.parametrize(
    ("endpoint", "arguments", "sentence"),
    [
        ("adapt", {"recipe": ""}, "The description is empty"),
        ("adapt", {"recipe": "🎈"}, "The description has no letter or digit"),
        ("adapt", {"recipe": "a" * 3000}, "the limit is 2,000"),
        ("adapt", {"recipe": 3}, "The recipe must be text"),
        ("adapt", {"recipe": "{"}, "The recipe is damaged"),
        ("adapt", {"recipe": {"upload": "f" * 64}}, "upload it again"),
        ("adapt", {"recipe": {"description": "a", "file": "b"}}, "'file', which this version"),
        ("chat", {"messages": ""}, "The message is empty"),
        ("chat", {"messages": [{"role": "user"}]}, "Each message must be"),
        ("chat", {"messages": "a", "strength": 5}, "The strength must be a number from -4 to 4"),
        ("chat", {"messages": "a", "recipe": BLEND, "strength": 3}, "The strength must be a number from -4 to 4"),
        ("chat", {"messages": "a", "strength": "big"}, "The strength must be a number"),
        ("chat", {"messages": "a", "temperature": "hot"}, "The temperature must be a number from 0 to 5."),
        ("chat", {"messages": "a", "max_tokens": 0}, "Max tokens must be a whole number"),
        ("chat", {"messages": "a", "seed": 1.5}, "The seed must be a whole number"),
        ("chat", {"messages": "a", "stop": "b"}, "The stop strings must be a list of texts."),
        ("compare", {"messages": "a", "left": [1]}, "The recipe must be text"),
        ("export", {"recipe": ""}, "Without an adapter there is nothing to export"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_is_one_sentence(url: str, endpoint: str, arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        call(url, endpoint, **arguments)
    assert str(raised.value).endswith(".")


@pytest.mark.parametrize(
    ("endpoint", "arguments"),
    [("chat", {}), ("chat", {"messages": "a", "rank": 3}), ("train", {"recipe": "a"})],
    ids=str,
)
def test_names_that_are_not_known_are_a_sentence_too(url: str, endpoint: str, arguments: dict) -> None:
    answer = httpx.post(f"{url}gradio_api/call/v2/{endpoint}", json=arguments)
    assert (answer.status_code, answer.json()["detail"][:30]) == (400, "There is no such endpoint, or ")


def test_a_model_that_is_not_there_yet_says_so(tmp_path: Path) -> None:
    with serving(Model(lambda: None)) as url, pytest.raises(AppError, match="still loading: try again"):
        Client(url, verbose=False).predict("one", api_name="/chat")


# ---- MCP ----


def with_mcp(url: str, *calls: tuple[str, dict], address: str = "127.0.0.1", **headers: str) -> list:
    """The names of the tools that a client of MCP is told, and what they give to these calls."""

    async def session() -> list:
        transport = httpx.AsyncHTTPTransport(local_address=address)
        async with (
            httpx.AsyncClient(transport=transport, headers=headers, timeout=300) as http,
            streamable_http_client(f"{url}gradio_api/mcp/", http_client=http) as (read, write, _),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            tools = [tool.name for tool in (await client.list_tools()).tools]
            assert (await client.list_resources()).resources == (await client.list_prompts()).prompts == []
            return [tools, *[await client.call_tool(name, arguments) for name, arguments in calls]]

    return asyncio.run(session())


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    return content.text


def test_the_tools_of_mcp_are_adapt_chat_and_compare_alone(model: Model, pipe: hyperlora.Pipeline) -> None:
    with serving(model, mcp=True) as url:
        calls = [
            ("adapt", {"recipe": REVERSE}),
            ("chat", {"messages": "one two", "recipe": {"description": REVERSE}, "max_tokens": 9}),
            ("compare", {"messages": "one two", "left": REVERSE, "max_tokens": 9}),
            ("chat", {"messages": "", "recipe": REVERSE}),
            ("export", {"recipe": REVERSE}),
        ]
        tools, adapted, answer, both, empty, export = with_mcp(url, *calls)
        listed = Client(url, verbose=False).view_api(return_format="dict")["named_endpoints"]
    assert tools == ["adapt", "chat", "compare"] and list(listed) == ["/adapt", "/chat", "/compare"]
    assert literal_eval(text_of(adapted))["recipe"] == {"description": REVERSE}
    wanted = pipe.chat("one two", pipe.adapt(REVERSE), max_new_tokens=9)
    assert text_of(answer) == wanted
    assert literal_eval(text_of(both)) == {"left": wanted, "right": pipe.chat("one two", max_new_tokens=9)}
    assert empty.isError and text_of(empty) == "The message is empty: write something for the model to answer."
    assert export.isError and "Unknown tool" in text_of(export)


def test_mcp_is_off_unless_it_is_switched_on(url: str) -> None:
    assert httpx.post(f"{url}gradio_api/mcp/", json={}).status_code in (404, 405)


def test_each_client_of_mcp_is_a_visitor_of_their_own(pipe: hyperlora.Pipeline) -> None:
    """Though their tools are called by the server itself; and whatever they say of themselves."""
    model = Model(lambda: pipe, Limits(chats_a_minute=1))
    model.start()
    wait_until(lambda: model.settled)
    asked = ("chat", {"messages": "one", "max_tokens": 1})
    with serving(model, mcp=True) as url:
        first, again = with_mcp(url, asked, asked)[1:]
        assert not first.isError and "try again in" in text_of(again)
        [other] = with_mcp(url, asked, address="127.0.0.2")[1:]
        assert not other.isError
        for forged in (f"{'0' * len(SECRET)} 192.0.2.1", f"{SECRET[:-1]} 192.0.2.1"):
            [result] = with_mcp(url, asked, address="127.0.0.2", **{FOR: forged, "X-Forwarded-For": "192.0.2.1"})[1:]
            assert "try again in" in text_of(result)
        with pytest.raises(UserError, match="try again in"):  # the same visitor without MCP
            call(url, "chat", client_at("127.0.0.2"), messages="one")


def test_no_log_holds_what_tools_are_given(
    model: Model, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with serving(model, mcp=True) as url:
        calls = [
            ("chat", {"messages": f"canary {more}", "max_tokens": 1} | more) for more in ({}, {"seed": -1}, {"a": 1})
        ]
        told = with_mcp(url, *calls, ("adapt", {"recipe": "Say canary."}), ("canary", {"canary": "canary"}))
    assert [result.isError for result in told[1:]] == [False, True, True, False, True]
    assert "canary" not in re.sub(r"Tool 'canary' not listed", "", caplog.text) + "".join(capfd.readouterr())


def test_no_proxy_has_part_in_what_the_server_asks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "example.org")
    app.reach_itself("http://127.0.0.1:7860/")
    assert os.environ["no_proxy"] == "example.org,127.0.0.1"


def test_mcp_that_is_not_installed_is_one_sentence() -> None:
    code = "import sys; sys.modules['mcp'] = None; import app; sys.exit(app.main(['--mcp', '--preset', 'mini']))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (2, "--mcp needs the package mcp: pip install 'mcp>=1.30,<2'.\n")
