"""Descriptions from a real HTTP server on this machine that speaks chat completions, and from a local model."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MistralForCausalLM

from hyperlora.errors import UserError
from training import descriptions
from training.descriptions import Options, main, make_queries
from training.tasks import Task, load_tasks

ROOT = Path(__file__).parents[2]
CITIES = ["Lisbon", "Quito", "Hanoi", "Accra", "Ottawa", "Riga", "Lima", "Oslo"]


def capital() -> Task:
    """Every answer is another: a description that names one gives it away."""
    examples = [{"input": f"country {i}", "output": city} for i, city in enumerate(CITIES)]
    return Task("capital", ["Name the capital."], ["Which city governs the country?"], examples, examples[:2])


def completion(text: str | None, prompt_tokens: int = 100, answer_tokens: int = 10) -> bytes:
    message = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": answer_tokens}
    return json.dumps(message | {"usage": usage}).encode()


def numbered(body: dict) -> str:
    """As many descriptions as are asked for, others for every request."""
    prompt = body["messages"][-1]["content"]
    count = int(re.search(r"Reply with (\d+) descriptions", prompt)[1])
    return "\n\n".join(f"Description {i}: Way {i} of {zlib.crc32(prompt.encode())}." for i in range(1, count + 1))


class Endpoint:
    """A server whose `script` holds the next responses, (status, headers, content); then `answer(body)` is the text."""

    def __init__(self):
        self.requests: list[tuple[str, str | None, dict]] = []  # path, Authorization, body
        self.headers = []
        self.script: list[tuple[int, dict, bytes]] = []
        self.answer = numbered
        self.hold_from = None  # from this request on none is answered until `released` is set
        self.held, self.released = threading.Event(), threading.Event()
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.headers.append(self.headers)
                    endpoint.requests.append((self.path, self.headers["Authorization"], body))
                    number = len(endpoint.requests)
                    scripted = endpoint.script.pop(0) if endpoint.script else None
                if endpoint.hold_from is not None and number >= endpoint.hold_from:
                    endpoint.held.set()
                    endpoint.released.wait(300)
                    return
                status, headers, content = scripted or (200, {}, completion(endpoint.answer(body)))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.setattr("hyperlora.endpoint.FIRST_WAIT", 0.01)
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def source(tasks, tmp_path) -> Path:
    for task in [*tasks, capital()]:
        task.save(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def one(tmp_path) -> Path:
    capital().save(tmp_path / "one")
    return tmp_path / "one"


def arguments(endpoint: Endpoint, source: Path, output: Path, *more: str) -> list[str]:
    return ["--tasks", str(source), "--output", str(output), "--url", endpoint.url, "--model", "m", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def described(folder: Path) -> list[str]:
    [task] = load_tasks(folder)
    return task.descriptions


# --- the query --------------------------------------------------------------------------------------------------------


def test_a_query_shows_five_pairs_two_examples_and_every_rule():
    query = make_queries(capital(), Options(tasks="T", output="O"))[3]
    system, user = query.request["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    text = user["content"]
    assert len(query.pairs) == 5 and text.count("Question:\n") == 7
    for pair in query.pairs:
        assert f"Question:\nName the capital.\n\n{pair['input']}\nAnswer:\n{pair['output']}" in text
    assert text.count("Fitting descriptions:") == 2
    assert text.count("NEVER") == 3 and "Reply with 20 descriptions" in text


def test_ten_queries_draw_their_pairs_from_the_seed_and_the_task_alone():
    options = Options(tasks="T", output="O")
    first, again = (make_queries(capital(), options) for _ in range(2))
    assert len(first) == 10 and first == again
    assert len({str(query.pairs) for query in first}) > 5
    other = make_queries(capital(), Options(tasks="T", output="O", seed=1))
    assert [q.pairs for q in other] != [q.pairs for q in first]


def test_long_questions_lose_their_middle_and_few_pairs_are_all_shown():
    task = Task("long", ["Do."], train=[{"input": "Do. start" + "x" * 9000 + "end", "output": "y"}])
    [query] = make_queries(task, Options(tasks="T", output="O", queries=1, pair_characters=300))
    text = query.request["messages"][-1]["content"]
    assert "Question:\nDo. start" in text and "end\nAnswer:\ny" in text and "x" * 300 not in text
    assert len(query.pairs) == 1


TWO = ["Say which city rules.", "Name the seat of government."]


# --- an endpoint ------------------------------------------------------------------------------------------------------


def test_all_tasks_are_described_in_a_copy(endpoint, source, tmp_path, capsys):
    before = contents(source)
    main(arguments(endpoint, source, tmp_path / "out"))
    assert contents(source) == before
    old, new = load_tasks(source), load_tasks(tmp_path / "out")
    for task, described in zip(old, new, strict=True):
        assert len(described.descriptions) == len(set(described.descriptions)) == 200
        assert not set(described.descriptions) & set(task.descriptions)
        described.descriptions = task.descriptions
    assert new == old
    assert len(endpoint.requests) == 40
    path, authorization, body = endpoint.requests[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret-key")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 1.0, 4096)
    printed = capsys.readouterr()
    assert "800 new descriptions of 800 asked for" in printed.out
    assert "4,000 of prompts, 400 of answers" in printed.out
    assert "4,000 + 400 tokens" in printed.err and "secret-key" not in printed.out + printed.err
    assert not any(b"secret-key" in content for content in contents(tmp_path / "out").values())


def test_repeats_leaks_and_evaluation_descriptions_are_dropped_and_counted(endpoint, one, tmp_path, capsys):
    def answer(body):
        city = re.findall(r"Answer:\n(.+)", body["messages"][-1]["content"])[-1]
        texts = ["Find the ruling city.", "find the RULING city", f"Answer {city.upper()} here.", "A fresh idea."]
        return json.dumps([*texts, "Which city governs the country"])

    endpoint.answer = answer
    main(arguments(endpoint, one, tmp_path / "out", "--queries", "2", "--per_query", "5", "--keep"))
    assert described(tmp_path / "out") == ["Name the capital.", "Find the ruling city.", "A fresh idea."]
    out = capsys.readouterr().out
    assert "2 new descriptions of 10" in out and "6 that repeat another, 2 that give an answer away" in out


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"Retry-After": "0"}, b'{"error": {"message": "Slow down."}}'),
        (503, {}, b"<html>overloaded</html>"),
        (200, {}, b'{"choices": [{"message": {"content": "1. Cut'),
        (200, {}, b'{"choices": []}'),
        (200, {"Content-Length": "500"}, b"{"),  # the connection breaks off
    ],
)
def test_a_failure_that_passes_is_tried_again(failure, endpoint, one, tmp_path):
    endpoint.script = [failure, failure]
    main(arguments(endpoint, one, tmp_path / "out", "--queries", "1", "--timeout", "5"))
    assert len(endpoint.requests) == 3 and len(described(tmp_path / "out")) == 20


def test_a_silent_server_is_asked_again(endpoint, one, tmp_path):
    endpoint.hold_from = 1
    with pytest.raises(UserError, match=r"did not answer \(ReadTimeout"):
        main(arguments(endpoint, one, tmp_path / "out", "--queries", "1", "--timeout", "0.5", "--retries", "1"))
    assert len(endpoint.requests) == 2


def test_the_server_s_waiting_time_is_kept(endpoint, one, tmp_path, monkeypatch):
    waits = []

    class Patient(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return False

    monkeypatch.setattr(descriptions, "Event", Patient)
    endpoint.script = [(429, {"Retry-After": "7"}, b""), (500, {}, b""), (500, {}, b"")]
    main(arguments(endpoint, one, tmp_path / "out", "--queries", "1"))
    told, *grown = waits
    assert told == 7 and 0.01 <= grown[0] <= 0.02 <= grown[1] <= 0.04  # 1 s is 0.01 s here, doubled each time


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((401, {}, b'{"error": {"message": "Bad key secret-key."}}'), r"401 - Bad key \*\*\*\.\)\. Set OPENAI_API_KEY"),
        ((404, {}, b'{"error": {"message": "No such model."}}'), "No such model.*the model's name"),
        ((429, {}, b'{"error": {"code": "insufficient_quota", "message": "Pay first."}}'), "Pay first"),
        ((429, {"Retry-After": "86400"}, b""), "86400 s"),
        ((302, {"Location": "/elsewhere"}, b""), "302"),
    ],
)
def test_a_refusal_ends_the_run_in_one_sentence(failure, message, endpoint, one, tmp_path):
    endpoint.script = [failure]
    with pytest.raises(UserError, match=message) as error:
        main(arguments(endpoint, one, tmp_path / "out", "--queries", "3", "--concurrency", "1"))
    assert "\n" not in str(error.value) and len(endpoint.requests) == 1
    assert not (tmp_path / "out").exists()


def test_an_answer_of_few_descriptions_is_asked_again_and_the_best_kept(endpoint, one, tmp_path, capsys):
    best = '["Say which city rules.", "Name the seat of government.", "Find wh'
    endpoint.script = [(200, {}, completion(text)) for text in ("I would rather not.", best, None)]
    main(arguments(endpoint, one, tmp_path / "out", "--queries", "1"))
    assert described(tmp_path / "out") == TWO
    assert "300 of prompts, 30 of answers" in capsys.readouterr().out


def test_a_task_that_gets_none_keeps_its_own(endpoint, one, tmp_path, capsys):
    endpoint.answer = lambda body: "No."
    Task("untrained", ["Do."], test=[{"input": "a", "output": "b"}]).save(one)
    main(arguments(endpoint, one, tmp_path / "out", "--queries", "1"))
    assert load_tasks(tmp_path / "out") == load_tasks(one)
    assert "1 queries gave none; 1 tasks have no training examples" in capsys.readouterr().out


def test_a_killed_run_goes_on_where_it_stopped(endpoint, source, tmp_path):
    endpoint.hold_from = 4
    line = arguments(endpoint, source, tmp_path / "killed", "--queries", "2", "--concurrency", "1")
    process = subprocess.Popen([sys.executable, "-m", "training.descriptions", *line], cwd=ROOT, env=dict(os.environ))
    try:
        assert endpoint.held.wait(300)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = sorted(tmp_path.glob("killed/queries/*/*.json"))
    assert len(done) == 3 and [path.name for path in tmp_path.glob("killed/*.json")] == ["both.json"]
    endpoint.hold_from = None
    endpoint.requests.clear()
    main(line)
    assert len(endpoint.requests) == 5  # of 8
    main(line)
    assert len(endpoint.requests) == 5
    main(arguments(endpoint, source, tmp_path / "whole", "--queries", "2"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_answers_of_another_run_are_not_mixed_in(endpoint, one, tmp_path):
    line = arguments(endpoint, one, tmp_path / "out", "--queries", "1")
    main(line)
    with pytest.raises(UserError, match=r"0\.json was asked with other messages"):
        main([*line, "--seed", "1"])
    main([*line, "--queries", "2"])  # more queries only add to those there are
    assert len(endpoint.requests) == 2
    (tmp_path / "out/queries/capital/0.json").write_text('{"model": "m"')
    with pytest.raises(UserError, match=r"0\.json is damaged"):
        main(line)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--url", "localhost:8000"), ("--queries", "0"), ("--temperature", "nan"), ("--output", "source")],
)
def test_options_that_cannot_work_are_named(option, value, endpoint, one, tmp_path):
    line = arguments(endpoint, one, tmp_path / "out")
    line += [option, str(one) if option == "--output" else value]
    with pytest.raises(UserError, match=option.strip("-")):
        main(line)
    assert endpoint.requests == [] and not (tmp_path / "out").exists()


def test_a_full_disk_or_a_file_in_the_way_is_named(endpoint, one, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out.* cannot be"):
        main(arguments(endpoint, one, tmp_path / "out", "--queries", "1"))


# --- a local model ----------------------------------------------------------------------------------------------------


def speaker(tiny_base: Path, folder: Path, lines: list[str]) -> Path:
    """The tiny base, changed so that it says these lines after any prompt: each token leads to the next."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens(lines)
    model = MistralForCausalLM.from_pretrained(tiny_base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.max_position_embeddings = 16384
    chain = tokenizer.convert_tokens_to_ids(["[/INST]", *lines, "</s>"])
    with torch.no_grad():
        for layer in model.model.layers:  # nothing but the last token's embedding reaches the head
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.get_input_embeddings().weight.zero_()
        model.lm_head.weight.zero_()
        for k, (token, following) in enumerate(itertools.pairwise(chain)):
            model.get_input_embeddings().weight[token, k] = 1.0
            model.lm_head.weight[following, k] = 10.0
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def test_a_local_model_describes_in_batches(tiny_base, one, tmp_path, capsys):
    base = speaker(tiny_base, tmp_path / "speaker", ["1. Say which city rules.\n", "2. Name the seat of government.\n"])
    line = ["--tasks", str(one), "--output", str(tmp_path / "out"), "--local", str(base)]
    line += ["--queries", "3", "--per_query", "2", "--pairs", "1", "--concurrency", "2"]
    main(line)
    assert described(tmp_path / "out") == TWO
    out = capsys.readouterr().out
    assert "2 new descriptions of 6" in out and "4 that repeat another" in out and "6 of answers" in out


def test_a_prompt_longer_than_the_local_model_s_context_is_refused(tiny_base, one, tmp_path):
    with pytest.raises(UserError, match="--pair_characters"):
        main(["--tasks", str(one), "--output", str(tmp_path), "--local", str(tiny_base), "--no_system_message"])


def test_the_ten_benchmarks_have_three_descriptions_of_their_own_each():
    texts = json.loads((ROOT / "training/parts/benchmark_descriptions.json").read_text())
    names = "arc_challenge arc_easy boolq gsm8k hellaswag humaneval mbpp openbookqa piqa winogrande"
    assert sorted(texts) == names.split()
    assert all(len(each) == 3 for each in texts.values())
    flat = [text for each in texts.values() for text in each]
    assert len(set(flat)) == 30 and all(20 < len(text) < 300 for text in flat)
