"""What a chat that joins costs the others: the longest wait for a token while a long prompt is read, and first tokens.

Fifteen chats with an adapter each are being answered when one with a long prompt comes. Then sixteen come at once with
prompts of many lengths: until the first token of each, against the same prompts as one padded batch.
"""

import statistics
import threading
import time
from itertools import pairwise
from random import Random

import torch

import hyperlora
from benchmarks.measure import TASKS, arguments, print_table
from hyperlora.batch import Batch
from hyperlora.chat import ChatStream
from hyperlora.lora import Adapter

LONG = 2_000  # tokens of the long prompt, where the context has room for it
SHORT, SHORTEST, LONGEST = 120, 32, 256  # tokens of the others' answers, and of sixteen prompts
RUNNING = 24  # tokens that each of the others has when the long one comes


def follow(stream: ChatStream, times: list[float]) -> threading.Thread:
    """Write down when each token of the stream came."""

    def read() -> None:
        while isinstance(stream._queue.get(), int):
            times.append(time.perf_counter())

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def prompts(pipe: hyperlora.Pipeline, lengths: list[int]) -> list[list[int]]:
    """Random words of so many tokens."""
    random, words = Random(0), pipe.tokenizer("the quick brown fox jumps over a lazy dog " * 4).input_ids
    return [random.choices(words, k=length) for length in lengths]


def gaps(pipe: hyperlora.Pipeline, adapters: list[Adapter], long: int) -> tuple[float, float, float]:
    """Median seconds between two tokens before the long one came; the longest while it was read; until its first."""
    times: list[list[float]] = [[] for _ in adapters[1:]]
    asked = zip(prompts(pipe, [32] * 15), adapters[1:], strict=True)
    streams = [pipe.engine.submit(prompt, adapter, max_new_tokens=SHORT) for prompt, adapter in asked]
    threads = [follow(*each) for each in zip(streams, times, strict=True)]
    while min(map(len, times)) < RUNNING:
        time.sleep(0.005)
    began, first = time.perf_counter(), []
    last = pipe.engine.submit(prompts(pipe, [long])[0], adapters[0], max_new_tokens=2)
    threads.append(follow(last, first))
    for thread in threads:
        thread.join()
    pairs = [(a, b) for each in times for a, b in pairwise(each)]
    usual = statistics.median(b - a for a, b in pairs if b < began)
    return usual, max(b - a for a, b in pairs if began < b and a < first[0]), first[0] - began


@torch.inference_mode()
def padded(pipe: hyperlora.Pipeline, asked: list[list[int]], adapters: list[Adapter]) -> float:
    """Seconds until the first tokens of one left-padded batch."""
    slots = [pipe.adapted.load(adapter) for adapter in adapters]
    length = max(map(len, asked))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in asked])
    pad, columns = torch.tensor([[length - len(prompt)] for prompt in asked]), torch.arange(length)
    began = time.perf_counter()
    with pipe.adapted.use(slots):
        pipe.adapted.model(
            input_ids=ids,
            attention_mask=(columns >= pad).long(),
            position_ids=(columns - pad).clamp(min=0),
            past_key_values=Batch().cache,
            use_cache=True,
            logits_to_keep=torch.tensor([-1]),
        ).logits.argmax(dim=-1).tolist()
    seconds = time.perf_counter() - began
    for slot in slots:
        pipe.adapted.unload(slot)
    return seconds


def firsts(pipe: hyperlora.Pipeline, asked: list[list[int]], adapters: list[Adapter]) -> list[float]:
    """Seconds until the first token of each, submitted at once."""
    times: list[list[float]] = [[] for _ in asked]
    began = time.perf_counter()
    streams = [pipe.engine.submit(p, a, max_new_tokens=2) for p, a in zip(asked, adapters, strict=True)]
    threads = [follow(*each) for each in zip(streams, times, strict=True)]
    for thread in threads:
        thread.join()
    return [each[0] - began for each in times]


def main() -> None:
    args = arguments(__doc__, repetitions=3)
    pipe = hyperlora.pipeline(None, base=args.base, hyperlora=args.hyperlora)
    pipe.engine._eos = set()  # answers of any length
    adapters = pipe.adapt(list(TASKS))
    long = min(LONG, pipe.engine.context - SHORT)
    asked = prompts(pipe, Random(1).choices(range(SHORTEST, min(LONGEST, pipe.engine.context - 8)), k=len(adapters)))
    for _ in range(2):  # the step is recorded, and the rest has run once
        gaps(pipe, adapters, long)
    waits, batches, mean, last = [], [], [], []
    for _ in range(args.repetitions):
        waits.append(gaps(pipe, adapters, long))
        batches.append(pipe.engine.call(lambda: padded(pipe, asked, adapters)))
        seconds = firsts(pipe, asked, adapters)
        mean.append(statistics.mean(seconds))
        last.append(max(seconds))
    usual, longest, first = (statistics.median(each) for each in zip(*waits, strict=True))
    batch, average, latest = map(statistics.median, (batches, mean, last))
    print_table(
        [f"15 chats are answered, and a prompt of {long:,} tokens joins", "ms", "of the usual"],
        [
            ["the usual time between two tokens (median)", f"{1e3 * usual:,.0f}", ""],
            ["the longest while it is read", f"{1e3 * longest:,.0f}", f"{longest / usual:.1f} x"],
            ["until its own first token", f"{1e3 * first:,.0f}", ""],
        ],
    )
    print()
    print_table(
        [f"16 prompts of {SHORTEST} to {max(map(len, asked))} tokens come at once", "ms", "of the padded batch"],
        [
            ["one padded batch, until its first tokens", f"{1e3 * batch:,.0f}", ""],
            ["the engine: first token, mean", f"{1e3 * average:,.0f}", f"{average / batch:.2f} x"],
            ["the engine: first token, the last of them", f"{1e3 * latest:,.0f}", f"{latest / batch:.2f} x"],
        ],
    )
    pipe.close()


if __name__ == "__main__":
    main()
