"""Chat on the CPU with adapters, against llama.cpp without any on the same weights: `--base DIR --gguf FILE`.

Both get the same tokens and write as many, greedily and to no end token: one chat, its first token, and sixteen chats
with sixteen adapters against sixteen slots. llama.cpp runs in a process of its own; the two take turns. `--answers N`
also counts how many of N everyday requests the base answers otherwise with halved weights (30 tokens, greedily).
"""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.measure import TASKS, medians, parser, print_table
from benchmarks.real_shapes import DTYPES, random_adapter
from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.chat import ChatEngine
from hyperlora.config import read_json
from hyperlora.halves import halve_linears, packed_weights
from hyperlora.prompt import format_prompt

REQUESTS = Path(__file__).parents[1] / "training/parts/requests.json"
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of a processor, that decide


def serve(asked: Connection, gguf: str, threads: int, slots: int) -> None:
    """llama.cpp: lists of prompts (token ids) and a length come, True goes back when all answers are there."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel, params.n_ctx = slots, 512 * slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def answer(prompt: list[int], tokens: int) -> None:
        options = {"n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        given = server.handle_completions({"prompt": prompt, **options})
        assert given["usage"]["completion_tokens"] == tokens

    with ThreadPoolExecutor(slots) as pool, suppress(EOFError):  # until nobody asks any more
        while True:
            prompts, tokens = asked.recv()
            list(pool.map(answer, prompts, [tokens] * len(prompts)))
            asked.send(True)


def bytes_read(model: PreTrainedModel) -> int:
    """What a step reads of the weights: all linears, in float16 where they are halved."""
    linears = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return sum(weight.numel() for weight in linears) * (2 if packed_weights(model) else linears[0].element_size())


def everyday(count: int) -> list[str]:
    """Everyday requests, each with its description in front."""
    messages = [
        f"{request['description']}\n\n{message['input']}"
        for request in read_json(REQUESTS)
        for message in request["messages"]
    ]
    random.Random(0).shuffle(messages)
    return messages[:count]


def answers(engine: ChatEngine, messages: list[str]) -> list[str]:
    """30 tokens each, greedily."""
    engine.max_waiting = len(messages)
    options = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 30}
    return ["".join(stream) for stream in engine.submit_many(messages, [None] * len(messages), **options)]


def main() -> None:
    options = parser(__doc__, repetitions=5)
    options.add_argument("--base", required=True, help="the folder of the base model")
    options.add_argument("--gguf", required=True, help="the same model for llama.cpp")
    options.add_argument("--dtype", choices=DTYPES, default="float32", help="the base's (default: float32)")
    options.add_argument("--tokens", type=int, default=64, help="of each answer (default: 64)")
    options.add_argument("--threads", type=int, default=2, help="of each side (default: 2)")
    options.add_argument("--answers", type=int, default=0, help="how many requests to compare (default: none)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    context = get_context("spawn")
    asks = {}
    for slots in (1, len(TASKS)):
        asks[slots], asked = context.Pipe()
        context.Process(target=serve, args=(asked, args.gguf, args.threads, slots), daemon=True).start()

    model, tokenizer = load_base(args.base, dtype=DTYPES[args.dtype])
    adapted = AdaptedModel(model, ["q_proj", "v_proj"])
    engine = ChatEngine(adapted, tokenizer)
    whole = answers(engine, everyday(args.answers)) if args.answers else []
    halve_linears(model)
    engine.call(engine._graph.record)  # what an engine does after its first tokens
    if args.answers:
        same = sum(a == b for a, b in zip(whole, answers(engine, everyday(args.answers)), strict=True))
        print(f"{same} of {args.answers} answers are the same with halved weights.\n")
    engine._eos = set()
    adapters = [random_adapter(adapted) for _ in TASKS]
    messages = [f"{description}\n\n{message}" for description, message in TASKS.items()]
    prompts = [format_prompt(tokenizer, message) for message in messages]

    def ours(count: int, tokens: int) -> None:
        options = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": tokens}
        for stream in engine.submit_many(messages[:count], adapters[:count], **options):
            "".join(stream)

    def theirs(count: int, tokens: int) -> None:
        asks[count].send((prompts[:count], tokens))
        asks[count].recv()

    runs, many = {}, len(TASKS)
    for name, run in (("llama.cpp", theirs), ("HyperLoRA", ours)):
        runs[f"{name}, first token"] = lambda run=run: run(1, 1)
        runs[f"{name}, one chat"] = lambda run=run: run(1, args.tokens)
        runs[f"{name}, {many} chats"] = lambda run=run: run(many, args.tokens)
    seconds = medians(runs, args.repetitions)
    rows = []
    sizes = {"llama.cpp": Path(args.gguf).stat().st_size, "HyperLoRA": bytes_read(model)}
    for name, size in sizes.items():
        first, one, batch = (seconds[f"{name}, {what}"] for what in ("first token", "one chat", f"{many} chats"))
        decoding = (args.tokens - 1) / (one - first)  # as llama.cpp counts, without the prompt
        rows.append([name, decoding, decoding * size / 1e9, 1000 * first, many * args.tokens / batch])
    ratios = [ours / theirs for ours, theirs in zip(rows[1][1:], rows[0][1:], strict=True)]
    print_table(
        ["", "one chat, tokens/s", "GB/s", "first token, ms", f"{many} chats, tokens/s"],
        [[name, *(f"{value:.1f}" for value in values)] for name, *values in rows]
        + [["ratio", *(f"{ratio:.2f} x" for ratio in ratios)]],
    )
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split("flags", 2)[1].split("\n", 1)[0].split() if info.is_file() else []
    has = ", ".join(flag for flag in FLAGS if flag in flags) or torch.backends.cpu.get_cpu_capability()
    held = "float16, sums in float32" if packed_weights(model) else args.dtype
    print(f"\n{args.threads} threads; weights in {held}; the processor has {has}.")
    engine.close()


if __name__ == "__main__":
    main()
