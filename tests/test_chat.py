"""The engine answers many chats at once, and each as if it were alone."""

import copy
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.chat import ChatEngine, ChatStream, Options, one_thread
from hyperlora.errors import UserError
from hyperlora.prompt import format_prompt

PROMPTS = ["one two three", "a", "the quick brown fox jumps over the lazy dog", "42 + 17", "x y"]


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture
def start(tiny_model, tokenizer):
    """start(**options) -> an engine over the tiny base that never meets an end-of-sequence token; closed at the end."""
    engines = []

    def make(model=tiny_model, endless=True, **options) -> ChatEngine:
        engines.append(ChatEngine(AdaptedModel(model, ["q_proj", "v_proj"]), tokenizer, **options))
        if endless:
            engines[-1]._eos = set()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def alone(tiny_base, tokenizer):
    """alone(prompt, adapter, n, **options): what `generate` answers with the adapter's delta W added to the weights."""
    base = MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    base.generation_config.eos_token_id = None

    def answer(prompt: str, adapter=None, n: int = 12, **options) -> str:
        model = copy.deepcopy(base)
        for module in adapter.weights if adapter else ():
            for i, layer in enumerate(model.model.layers):
                getattr(layer.self_attn, module).weight.data += adapter.delta_w(module, i)
        return generate(model, tokenizer, prompt, n, **options)

    return answer


def generate(model, tokenizer, prompt: str, n: int, **options) -> str:
    ids = torch.tensor([format_prompt(tokenizer, prompt)])
    options = {"max_new_tokens": n, "do_sample": False} | options
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


# ---- each as if it were alone ----


def test_one_chat_is_what_generate_gives(start, alone):
    stream = start().submit("one two three", max_new_tokens=12)
    pieces = list(stream)
    assert len(pieces) > 1  # it streams
    assert "".join(pieces) == stream.text == alone("one two three")
    assert list(stream) == []  # it is read once


def test_the_output_matrix_reads_contiguous_states(start, tiny_model):
    """With a slice of the prompt's states PyTorch copies the matrix for each row, in bfloat16 on a CPU."""
    found = []
    tiny_model.lm_head.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    for stream in start().submit_many(PROMPTS, [None] * len(PROMPTS), max_new_tokens=2):
        "".join(stream)
    assert [list(states.shape[:2]) for states in found] == [[len(PROMPTS), 1]] * 2
    assert all(states.is_contiguous() for states in found)


def test_rows_with_different_adapters_prompts_and_lengths(start, alone, make_adapter):
    adapters = [make_adapter(0), None, make_adapter(1, rank=3), make_adapter(2).scaled(0.5), make_adapter(0)]
    lengths = [12, 5, 30, 1, 17]
    engine = start()
    streams = [
        engine.submit(prompt, adapter, max_new_tokens=n)
        for prompt, adapter, n in zip(PROMPTS, adapters, lengths, strict=True)
    ]
    for stream, prompt, adapter, n in zip(streams, PROMPTS, adapters, lengths, strict=True):
        assert "".join(stream) == alone(prompt, adapter, n)


def test_chats_that_join_a_running_batch(start, alone, make_adapter):
    adapters = [make_adapter(i) for i in range(3)]
    engine = start()
    first = engine.submit(PROMPTS[0], adapters[0], max_new_tokens=60)
    pieces = [iter(first)]
    text = next(pieces[0]) + next(pieces[0])
    longer = engine.submit(PROMPTS[2], adapters[1], max_new_tokens=40)  # its prompt is longer than all of the first
    shorter = engine.submit(PROMPTS[1], adapters[2], max_new_tokens=3)
    assert "".join(shorter) == alone(PROMPTS[1], adapters[2], 3)
    assert "".join(longer) == alone(PROMPTS[2], adapters[1], 40)
    assert text + "".join(pieces[0]) == alone(PROMPTS[0], adapters[0], 60)


def test_more_chats_than_rows(start, alone, make_adapter):
    adapters = [make_adapter(i) for i in range(10)]
    streams = start(max_batch=3).submit_many(PROMPTS * 2, adapters, max_new_tokens=8)
    for stream, prompt, adapter in zip(streams, PROMPTS * 2, adapters, strict=True):
        assert "".join(stream) == alone(prompt, adapter, 8)


def test_many_clients_at_once_get_their_own_answers(start, alone, make_adapter):
    engine = start(max_batch=4)
    adapters = [make_adapter(i) for i in range(6)]

    def client(i: int) -> list[str]:
        return ["".join(engine.submit(p, adapters[i], max_new_tokens=5 + i)) for p in PROMPTS[:3]]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(client, range(6)))
    for i, answer in enumerate(answers):
        assert answer == [alone(p, adapters[i], 5 + i) for p in PROMPTS[:3]]


def test_a_cache_that_grows_many_times(start, alone, make_adapter):
    assert "".join(start().submit("a", make_adapter(1), max_new_tokens=230)) == alone("a", make_adapter(1), 230)


SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=6)),
        (MistralForCausalLM, MistralConfig(**SIZES, attn_implementation="eager")),
        (Gemma2ForCausalLM, Gemma2Config(**SIZES, sliding_window=6, attn_implementation="eager")),  # every other layer
        (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    ],
    ids=["sliding-window", "eager", "gemma-2", "qwen-2"],
)
def test_other_kinds_of_attention(start, tokenizer, kind, config):
    torch.manual_seed(0)
    model = kind(config).eval()
    expected = [generate(model, tokenizer, prompt, 20, eos_token_id=-1) for prompt in PROMPTS]
    streams = start(model).submit_many(PROMPTS, [None] * 5, max_new_tokens=20)
    assert ["".join(stream) for stream in streams] == expected


def test_a_base_whose_weights_wait_on_the_disk(start, tiny_base, make_adapter, alone):
    model, _ = load_base(tiny_base, device_map={"": "disk"})
    adapters = [make_adapter(1), None, make_adapter(2)]
    streams = start(model).submit_many(PROMPTS[:3], adapters, max_new_tokens=8)
    for stream, prompt, adapter in zip(streams, PROMPTS, adapters, strict=False):
        assert "".join(stream) == alone(prompt, adapter, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(start, tiny_base, tokenizer, dtype):
    """One chat at a time, as rounding in a batch is another."""
    model, _ = load_base(tiny_base, dtype=dtype)
    model.generation_config.eos_token_id = -1
    expected = [generate(model, tokenizer, prompt, 8) for prompt in PROMPTS[:2]]
    engine = start(model)
    assert ["".join(engine.submit(prompt, max_new_tokens=8)) for prompt in PROMPTS[:2]] == expected


# ---- options ----


def test_an_end_of_sequence_token_ends_the_answer_and_is_not_shown(start, tiny_model, tokenizer, alone):
    text = alone("one two three", None, 12)
    end = text[5]
    tiny_model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids(end)]
    engine = start(endless=False)
    assert "".join(engine.submit("one two three", max_new_tokens=12)) == text[: text.index(end)]


@pytest.mark.parametrize("source", ["generation_config", "config", "tokenizer", "template"])
def test_an_answer_ends_whoever_names_its_last_token(tiny_base, tiny_model, alone, source):
    """Published models name it in one place or another; `</s>`, which the others name here, never comes."""
    text = alone("one two three", None, 12)
    end = next(letter for letter in text if letter not in "one two three")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    if source in ("generation_config", "config"):
        getattr(tiny_model, source).eos_token_id = [1, tokenizer.convert_tokens_to_ids(end)]
    elif source == "tokenizer":
        tokenizer.eos_token = end
    else:
        tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]", end]})
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", end + "!{{ eos_token }}")
    engine = ChatEngine(AdaptedModel(tiny_model, ["q_proj", "v_proj"]), tokenizer)
    try:
        assert "".join(engine.submit("one two three", max_new_tokens=12)) == text[: text.index(end)]
    finally:
        engine.close()


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
        {"do_sample": True, "top_p": 0.6, "top_k": 0},
        {"do_sample": True},
        {"repetition_penalty": 1.3},
        {"do_sample": True, "repetition_penalty": 0.8, "temperature": 2.0},
    ],
    ids=str,
)
def test_options_mean_what_they_mean_to_generate(start, alone, options):
    engine = start()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = alone("one two three", None, 20, **options)
        torch.manual_seed(3)
        assert "".join(engine.submit("one two three", max_new_tokens=20, **options)) == expected


def test_each_row_has_its_own_options(start, alone):
    engine = start()
    sampled = engine.submit("one two three", do_sample=True, top_k=1, max_new_tokens=20)
    penalised = engine.submit("one two three", repetition_penalty=1.5, max_new_tokens=20)
    greedy = engine.submit("one two three", max_new_tokens=20)
    assert "".join(sampled) == "".join(greedy) == alone("one two three", None, 20)
    assert "".join(penalised) == alone("one two three", None, 20, repetition_penalty=1.5)


def test_defaults_come_from_the_models_generation_config(start, tiny_model, alone):
    tiny_model.generation_config.max_new_tokens = 4
    tiny_model.generation_config.repetition_penalty = 1.5
    assert "".join(start().submit("a")) == alone("a", None, 4, repetition_penalty=1.5)


GREEDY = {"do_sample": False}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"do_sample": False, "temperature": 0.0, "top_k": -1, "top_p": 0.0}, GREEDY | {"top_k": 0}),
        ({"do_sample": True, "temperature": 0}, GREEDY),
        ({"do_sample": True, "temperature": 1e-5, "top_p": 0.9}, GREEDY | {"top_p": 0.9}),
        ({"do_sample": True, "top_p": 0}, GREEDY),
        ({"temperature": 0.0}, GREEDY),
        ({"do_sample": True, "top_k": -1}, {"do_sample": True, "top_k": 0}),
        ({"do_sample": True, "top_k": 0, "top_p": 1.5}, {"do_sample": True, "top_k": 0}),
        ({"do_sample": True, "top_k": 5.0, "temperature": 1}, {"do_sample": True, "top_k": 5}),
        ({"do_sample": True, "top_k": 2**40, "temperature": "0.7"}, {"do_sample": True, "top_k": 10**9}),
        ({"do_sample": "no", "repetition_penalty": 0.0, "max_new_tokens": -1}, GREEDY),
        ({"temperature": float("nan"), "top_p": float("nan"), "top_k": float("nan"), "max_new_tokens": True}, GREEDY),
        ({"max_new_tokens": 2**40}, {"max_new_tokens": 10**6}),
        ({"temperature": None, "top_k": None}, GREEDY),
    ],
    ids=str,
)
def test_what_a_generation_config_says_is_read_as_it_is_meant(said, meant):
    config = GenerationConfig()
    for name, value in said.items():
        setattr(config, name, value)
    assert Options(**Options.said_by(config)) == Options(**meant)


@pytest.mark.parametrize(
    "said",
    [
        {"do_sample": False, "temperature": 0.0, "top_k": -1, "top_p": 0.0},
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "top_p": 0.0, "top_k": -1},
    ],
    ids=str,
)
def test_a_base_whose_file_asks_for_greedy_decoding_so(start, tiny_base, tmp_path, alone, said):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    engine = start(load_base(folder)[0])
    assert "".join(engine.submit("a", max_new_tokens=8)) == alone("a", None, 8)
    with torch.random.fork_rng():  # whoever asks for another gets it
        torch.manual_seed(3)
        expected = alone("a", None, 8, do_sample=True, top_k=0 if "top_k" in said else 50)
        torch.manual_seed(3)
        assert "".join(engine.submit("a", do_sample=True, max_new_tokens=8)) == expected
    with pytest.raises(UserError, match=r"top_k must be a number"):  # but not so
        engine.submit("a", top_k=-1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 4}, "'num_beams' is not supported; use do_sample, temperature"),
        ({"temperature": 0}, "temperature must be a number .* set do_sample=False"),
        ({"top_p": 1.5}, "top_p must be a number"),
        ({"top_k": 2.5}, "top_k must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"max_new_tokens": True}, "max_new_tokens must be"),
        ({"do_sample": "yes"}, "do_sample must be True or False"),
    ],
)
def test_bad_options(start, options, sentence):
    with pytest.raises(UserError, match=sentence):
        start().submit("a", **options)


def test_the_context_bounds_prompt_and_answer(start, alone):
    engine = start()
    with pytest.raises(UserError, match="tokens long and the model reads 256"):
        engine.submit("x" * 300)
    stream = engine.submit("x" * 200, max_new_tokens=500)
    prompt = len(format_prompt(engine.tokenizer, "x" * 200))
    assert "".join(stream) == alone("x" * 200, None, 256 - prompt)


def test_blank_messages_are_refused(start):
    with pytest.raises(UserError, match="The message is empty"):
        start().submit("   ")


# ---- stopping, failing, closing ----


def test_stop_ends_an_answer_and_no_other(start, alone):
    engine = start()
    endless, other = engine.submit("a", max_new_tokens=240), engine.submit("x y", max_new_tokens=60)
    pieces = iter(endless)
    text = next(pieces)
    endless.stop()
    text += "".join(pieces)
    assert endless.text == text and len(text) < 240
    assert alone("a", None, 240).startswith(text)
    assert "".join(other) == alone("x y", None, 60)


def test_leaving_the_iteration_stops_the_answer(start):
    engine = start()
    stream = engine.submit("a", max_new_tokens=240)
    for _ in stream:
        break
    assert stream.stopped
    wait_until_idle(engine)
    assert len(stream.text) == 1


def test_a_chat_that_was_stopped_before_it_started(start, alone):
    engine = start(max_batch=1)
    running, waiting = engine.submit("a", max_new_tokens=100), engine.submit("a", max_new_tokens=100)
    waiting.stop()
    assert "".join(running) == alone("a", None, 100) and len("".join(waiting)) <= 1


def test_stop_does_not_wait_for_the_engine(start):
    engine, busy = start(), threading.Event()
    caller = threading.Thread(target=engine.call, args=(lambda: busy.wait(30),))
    caller.start()
    waiting = engine.submit("two")
    waiting.stop()
    assert list(waiting) == []
    assert caller.is_alive()  # the engine has not come to it yet
    busy.set()
    caller.join()


def test_an_adapter_that_does_not_fit_fails_alone(start, alone, make_adapter):
    engine = start()
    wrong = make_adapter(0)
    wrong.weights["q_proj"] = (torch.zeros(2, 8, 99), torch.zeros(2, 64, 8))
    streams = engine.submit_many(["a", "a"], [wrong, make_adapter(1)], max_new_tokens=5)
    with pytest.raises(UserError, match="made for another base model"):
        list(streams[0])
    assert "".join(streams[1]) == alone("a", make_adapter(1), 5)


def test_values_that_are_not_finite_fail_their_row_alone(start, alone, make_adapter):
    engine = start()
    broken = make_adapter(0).scaled(float("inf"))
    streams = engine.submit_many(["a", "a"], [broken, None], do_sample=True, top_k=1, max_new_tokens=5)
    with pytest.raises(RuntimeError):
        list(streams[0])
    assert "".join(streams[1]) == alone("a", None, 5)


def test_the_engine_survives_a_failing_forward(start, alone, monkeypatch):
    engine = start()
    model = engine.adapted.model
    monkeypatch.setattr(engine, "_model", lambda **inputs: (_ for _ in ()).throw(MemoryError("too big")))
    with pytest.raises(UserError, match="The memory of cpu ran out: shorten the conversation"):
        list(engine.submit("a", max_new_tokens=5))
    with pytest.raises(UserError, match="The memory of cpu ran out"):
        engine.call(lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    monkeypatch.setattr(engine, "_model", lambda **inputs: (_ for _ in ()).throw(ValueError("odd")))
    with pytest.raises(ValueError, match="odd"):
        list(engine.submit("a", max_new_tokens=5))
    monkeypatch.setattr(engine, "_model", model)
    assert "".join(engine.submit("a", max_new_tokens=5)) == alone("a", None, 5)


def test_a_full_queue_says_so(start):
    engine = start(max_batch=1, max_waiting=2)
    running = engine.submit("a", max_new_tokens=240)
    pieces = iter(running)  # kept: a stream whose reader is gone stops
    next(pieces)
    waiting = [engine.submit("a", max_new_tokens=1) for _ in range(2)]
    with pytest.raises(UserError, match="busy: 2 chats are waiting"):
        engine.submit("a", max_new_tokens=1)
    running.stop()
    assert all(len("".join(stream)) == 1 for stream in waiting)


def test_close_ends_everything(start):
    engine = start(max_batch=1)
    streams = engine.submit_many(["a", "a"], [None, None], max_new_tokens=240)
    pieces = iter(streams[0])  # kept: a stream whose reader is gone stops
    next(pieces)
    engine.close()
    with pytest.raises(UserError, match="closed"):
        list(streams[1])
    with pytest.raises(UserError, match="closed"):
        engine.submit("a")
    with pytest.raises(UserError, match="closed"):
        engine.call(lambda: None)
    engine.close()  # twice does no harm


def test_slots_are_given_back(start, make_adapter):
    engine = start()
    for seed in range(70):  # more than there are slots
        "".join(engine.submit("a", make_adapter(seed), max_new_tokens=2))
    wait_until_idle(engine)
    assert engine.adapted._slots == {}


def test_calls_run_between_two_tokens_without_an_adapter(start, tokenizer, make_adapter, alone):
    engine = start()
    stream = engine.submit("a", make_adapter(1), max_new_tokens=100)
    pieces = iter(stream)
    text = next(pieces)
    ids = torch.tensor([format_prompt(tokenizer, "x y")])
    inside = engine.call(lambda: engine.adapted.model(ids).logits)
    text += "".join(pieces)
    torch.testing.assert_close(inside, engine.adapted.model(ids).logits)
    assert text == alone("a", make_adapter(1), 100)
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0)


def test_one_thread_is_put_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def wait_until_idle(engine: ChatEngine) -> None:
    """Return once the worker has dealt with all that it had."""
    idle = threading.Event()
    while not idle.is_set():
        engine.call(lambda: None if engine._batch.rows or engine._waiting else idle.set())
    engine.call(lambda: None)  # after the worker's last cleaning up


# ---- text from tokens ----


def stream_of(tokenizer, ids: list[int]) -> ChatStream:
    stream = ChatStream(tokenizer)
    for item in [*ids, None]:
        stream._queue.put(item)
    return stream


def bytewise() -> PreTrainedTokenizerFast:
    """GPT-2's kind: one token a byte, so that most characters span tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama's kind: a word's first token carries its space, and unknown characters fall back to bytes."""
    words = ["<unk>", "▁the", "▁cat", "s", "▁", "e", "a"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    "text", ["plain", "naïve — “quotes” 🙂🏳️‍🌈 日本語 " * 8, "end 🙂"], ids=["ascii", "long", "emoji"]
)
def test_bytes_are_streamed_as_whole_characters(text):
    tokenizer = bytewise()
    pieces = list(stream_of(tokenizer, tokenizer(text).input_ids))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) >= len(set(text))


def test_a_character_that_never_ends_comes_as_decode_has_it():
    tokenizer = bytewise()
    ids = tokenizer("a🙂").input_ids[:-1]
    assert "".join(stream_of(tokenizer, ids)) == tokenizer.decode(ids) == "a\ufffd"


def test_spaces_between_words_are_kept():
    tokenizer = sentencepiece()
    to_id = tokenizer.convert_tokens_to_ids
    ids = to_id(["▁the", "▁cat", "s", "▁", *(f"<0x{byte:02X}>" for byte in "🙂".encode()), "▁the"] * 9)
    pieces = list(stream_of(tokenizer, ids))
    assert "".join(pieces) == tokenizer.decode(ids) == " ".join(["the cats 🙂 the"] * 9)
    assert not any("\ufffd" in piece for piece in pieces)


def test_long_texts_of_bytes_are_streamed_as_whole_characters():
    """A script that the tokenizer knows only as bytes, three a character: 16 tokens are no whole number of them."""
    tokenizer = sentencepiece()
    text = "".join(chr(0x16A0 + i) for i in range(70))
    pieces = list(stream_of(tokenizer, tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text.encode()])))
    assert pieces == list(text)
