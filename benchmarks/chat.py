"""Sixteen chats with sixteen adapters, in tokens a second: our engine against PEFT.

All start from adapters in memory and messages as text, and write 64 tokens a chat, greedily: the copy of the base that
they all load ends its answers at a token that does not exist. All compute in the engine's thread, as two threads that
compute on several cores would slow each other.
"""

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peft import PeftModel

import hyperlora
from benchmarks.measure import TASKS, arguments, medians, print_table
from hyperlora.base import load_base
from hyperlora.lora import Adapter
from hyperlora.prompt import format_prompt

TOKENS = 64


def endless_copy(base: str, folder: Path) -> Path:
    """A copy of the base model whose answers end at a token that it does not have."""
    shutil.copytree(base, folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    config["eos_token_id"] = json.loads((folder / "config.json").read_text())["vocab_size"]
    path.write_text(json.dumps(config))
    return folder


def peft_model(base: Path, adapters: list[Adapter], folder: Path) -> PeftModel:
    """The base with all adapters loaded, by the names 0, 1, ..."""
    model, _ = load_base(base)
    for i, adapter in enumerate(adapters):
        adapter.save_pretrained(folder / str(i))
        if i == 0:
            model = PeftModel.from_pretrained(model, folder / "0", adapter_name="0")
        else:
            model.load_adapter(folder / str(i), adapter_name=str(i))
    return model.eval()


def main() -> None:
    args = arguments(__doc__, repetitions=5)
    with tempfile.TemporaryDirectory() as temporary:
        base = endless_copy(args.base, Path(temporary) / "base")
        pipe = hyperlora.pipeline(None, base=base, hyperlora=args.hyperlora)
        pipe.engine._eos = set()  # nor where the chat template ends a turn
        adapters = pipe.adapt(list(TASKS))
        peft = pipe.engine.call(lambda: peft_model(base, adapters, Path(temporary)))
    tokenizer, messages = pipe.tokenizer, list(TASKS.values())
    names = [str(i) for i in range(len(TASKS))]
    answers: dict[str, list[str]] = {}

    def ours() -> None:
        made = pipe.chat_batch(messages, adapters, stream=True, max_new_tokens=TOKENS)
        answers["ours"] = ["".join(stream) for stream in made]
        assert all(stream.tokens == TOKENS for stream in made)

    def streams() -> None:
        def client(message: str, adapter: Adapter) -> str:
            return "".join(pipe.chat(message, adapter, stream=True, max_new_tokens=TOKENS))

        with ThreadPoolExecutor(len(TASKS)) as clients:
            answers["streams"] = list(clients.map(client, messages, adapters))

    def generate(messages: list[str], **options) -> list[str]:
        prompts = [format_prompt(tokenizer, message) for message in messages]
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        pad = tokenizer.pad_token_id
        ids = peft.generate(**batch, **options, max_new_tokens=TOKENS, do_sample=False, pad_token_id=pad)
        new = ids[:, batch["input_ids"].shape[1] :]
        assert new.shape == (len(messages), TOKENS)
        return tokenizer.batch_decode(new, skip_special_tokens=True)

    def one_at_a_time() -> None:
        answers["one"] = []
        for name, message in zip(names, messages, strict=True):
            peft.set_adapter(name)
            answers["one"] += generate([message])

    def mixed() -> None:
        answers["mixed"] = generate(messages, adapter_names=names)

    def bare() -> None:
        with peft.disable_adapter():
            generate(messages)

    runs = {
        "HyperLoRA, `chat_batch`": ours,
        "HyperLoRA, 16 threads that each read a stream": streams,
        "PEFT, one at a time: `set_adapter`, `generate`": lambda: pipe.engine.call(one_at_a_time),
        "PEFT, mixed batch: `generate(adapter_names=...)`": lambda: pipe.engine.call(mixed),
        "for comparison, no adapters: `generate`, one batch": lambda: pipe.engine.call(bare),
    }
    rates = {name: len(TASKS) * TOKENS / seconds for name, seconds in medians(runs, args.repetitions).items()}
    _, _, one, batch, _ = rates.values()
    print_table(
        ["16 chats, 16 adapters, 64 tokens each", "tokens/s", "of one at a time", "of the mixed batch"],
        [[name, f"{rate:,.0f}", f"{rate / one:.1f} x", f"{rate / batch:.1f} x"] for name, rate in rates.items()],
    )
    for other in ("streams", "one", "mixed"):
        same = sum(a == b for a, b in zip(answers["ours"], answers[other], strict=True))
        print(f"\n{same} of {len(TASKS)} answers are the same in `ours` and `{other}`.", end="")
    print()
    pipe.close()


if __name__ == "__main__":
    main()
