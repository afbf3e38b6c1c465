"""The engine answers many chats at once, and each as if it were alone."""

import copy
import gc
import json
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import accumulate, pairwise
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RepetitionPenaltyLogitsProcessor,
)

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.chat import ChatEngine, ChatStream, Options, one_thread
from hyperlora.errors import UserError
from hyperlora.presets import assets_dir
from hyperlora.prompt import format_prompt
from tests.conftest import TINY

PROMPTS = ["one two three", "a", "the quick brown fox jumps over the lazy dog", "42 + 17", "x y"]


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture
def start(tiny_model, tokenizer):
    """start(**options) -> an engine over the tiny base that never meets an end-of-sequence token; closed at the end."""
    engines = []

    def make(model=tiny_model, endless=True, max_adapters=64, **options) -> ChatEngine:
        engines.append(ChatEngine(AdaptedModel(model, ["q_proj", "v_proj"], max_adapters), tokenizer, **options))
        engines[-1]._eos = set() if endless else engines[-1]._eos
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


# ---- each as if it were alone ----


def test_one_chat_streams_and_is_read_once(start, answers):
    stream, again = start().submit_many(["one two three"] * 2, [None] * 2, max_new_tokens=12)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.text == answers(again, "one two three", None, 12)
    assert list(stream) == []


def test_the_output_matrix_reads_contiguous_states(start, tiny_model):
    """With a slice of the prompt's states PyTorch copies the matrix for each row, in bfloat16 on a CPU."""
    found = []
    tiny_model.lm_head.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    for stream in start().submit_many(PROMPTS, [None] * len(PROMPTS), max_new_tokens=2):
        "".join(stream)
    assert found and all(states.shape[1] == 1 for states in found)
    assert all(states.is_contiguous() for states in found)


def test_rows_with_different_adapters_prompts_and_lengths(start, answers, make_adapter):
    adapters = [make_adapter(0), None, make_adapter(1, rank=3), make_adapter(2).scaled(0.5), make_adapter(0)]
    lengths = [12, 5, 30, 1, 17]
    engine = start()
    streams = [
        engine.submit(prompt, adapter, max_new_tokens=n)
        for prompt, adapter, n in zip(PROMPTS, adapters, lengths, strict=True)
    ]
    for stream, prompt, adapter, n in zip(streams, PROMPTS, adapters, lengths, strict=True):
        answers(stream, prompt, adapter, n)


def test_chats_that_join_a_running_batch(start, answers, make_adapter):
    adapters = [make_adapter(i) for i in range(3)]
    engine = start()
    first = engine.submit(PROMPTS[0], adapters[0], max_new_tokens=60)
    wait_for_tokens(first, 2)
    longer = engine.submit(PROMPTS[2], adapters[1], max_new_tokens=40)  # its prompt is longer than all of the first
    shorter = engine.submit(PROMPTS[1], adapters[2], max_new_tokens=3)
    answers(shorter, PROMPTS[1], adapters[2], 3)
    answers(longer, PROMPTS[2], adapters[1], 40)
    answers(first, PROMPTS[0], adapters[0], 60)


@pytest.mark.parametrize("piece", [1, 7, 16, 512])
def test_a_long_prompt_is_read_in_pieces_between_the_others_tokens(start, answers, make_adapter, monkeypatch, piece):
    engine, read = start(), []
    monkeypatch.setattr(engine, "_piece", lambda: piece)
    engine.adapted.model.base_model.register_forward_pre_hook(
        lambda module, args, inputs: read.append(inputs["input_ids"].shape), with_kwargs=True
    )
    running = [engine.submit(prompt, make_adapter(i), max_new_tokens=120) for i, prompt in enumerate(PROMPTS[:2])]
    for stream in running:
        wait_for_tokens(stream, 2)
    before = len(read)
    long = "the quick brown fox " * 8
    answers(engine.submit(long, make_adapter(5), max_new_tokens=20), long, make_adapter(5), 20)
    for i, stream in enumerate(running):
        answers(stream, PROMPTS[i], make_adapter(i), 120)
    pieces = [i for i, (rows, tokens) in enumerate(read[before:]) if rows == 1 and tokens > 1]
    if piece == 7:
        assert len(pieces) >= 20 and {b - a for a, b in pairwise(pieces)} == {2}


def test_who_stops_while_the_prompt_is_read_leaves(start, answers, make_adapter, monkeypatch):
    engine = start()
    monkeypatch.setattr(engine, "_piece", lambda: 1)
    running = engine.submit("a", make_adapter(1), max_new_tokens=200)
    wait_for_tokens(running, 2)
    long = engine.submit("the quick brown fox " * 8, make_adapter(2), max_new_tokens=20)
    while not engine._joining:
        time.sleep(0.001)
    assert engine.load[:2] == (2, 0)  # it runs
    long.stop()
    answers(running, "a", make_adapter(1), 200)
    assert "".join(long) == "" and not engine._joining and long.finish_reason == "stopped"


def test_more_chats_than_rows(start, answers, make_adapter):
    adapters = [make_adapter(i) for i in range(10)]
    streams = start(max_batch=3).submit_many(PROMPTS * 2, adapters, max_new_tokens=8)
    for stream, prompt, adapter in zip(streams, PROMPTS * 2, adapters, strict=True):
        answers(stream, prompt, adapter, 8)


def test_many_clients_at_once_get_their_own_answers(start, answers, make_adapter):
    engine = start(max_batch=4)
    adapters = [make_adapter(i) for i in range(6)]

    def client(i: int) -> None:
        for prompt in PROMPTS[:3]:
            answers(engine.submit(prompt, adapters[i], max_new_tokens=5 + i), prompt, adapters[i], 5 + i)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(client, range(6)))


def test_a_cache_that_grows_many_times(start, answers, make_adapter):
    answers(start().submit("a", make_adapter(1), max_new_tokens=230), "a", make_adapter(1), 230)


SIZES = TINY | {"head_dim": 8}


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
def test_other_kinds_of_attention(start, tokenizer, kind, config, assert_greedy, read_ids):
    torch.manual_seed(0)
    model = kind(config).eval()
    streams = start(model).submit_many(PROMPTS, [None] * 5, max_new_tokens=20)
    for stream, prompt in zip(streams, PROMPTS, strict=True):
        assert_greedy(model, format_prompt(tokenizer, prompt), read_ids(stream))


def test_a_base_whose_weights_wait_on_the_disk(start, tiny_base, make_adapter, answers):
    model, _ = load_base(tiny_base, device_map={"": "disk"})
    adapters = [make_adapter(1), None, make_adapter(2)]
    streams = start(model).submit_many(PROMPTS[:3], adapters, max_new_tokens=8)
    for stream, prompt, adapter in zip(streams, PROMPTS, adapters, strict=False):
        answers(stream, prompt, adapter, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(start, tiny_base, tokenizer, dtype, assert_greedy, read_ids):
    """Logits of up to 1 have 8 or 11 bits, and what they are sums of has as many."""
    model, _ = load_base(tiny_base, dtype=dtype)
    for stream, prompt in zip(start(model).submit_many(PROMPTS, [None] * 5, max_new_tokens=8), PROMPTS, strict=True):
        assert_greedy(model, format_prompt(tokenizer, prompt), read_ids(stream), tolerance=0.01)


# ---- options ----


def test_an_end_of_sequence_token_ends_the_answer_and_is_not_shown(start, tiny_model, tokenizer):
    text = "".join(start().submit("one two three", max_new_tokens=12))
    end = text[5]
    tiny_model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids(end)]
    engine = start(endless=False)
    assert "".join(engine.submit("one two three", max_new_tokens=12)) == text[: text.index(end)]


@pytest.mark.parametrize("source", ["generation_config", "config", "tokenizer", "template"])
def test_an_answer_ends_whoever_names_its_last_token(start, tiny_base, tiny_model, source):
    """Published models name it in one place or another."""
    text = "".join(start(copy.deepcopy(tiny_model)).submit("one two three", max_new_tokens=12))
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
        {"do_sample": True, "repetition_penalty": 0.8, "temperature": 2.0},
    ],
    ids=str,
)
def test_sampling_is_that_of_generate(start, tiny_model, tokenizer, options, read_ids):
    """Drawn with the same numbers: rounding would have to move a border between two tokens across one of them."""
    engine = start()
    ids = torch.tensor([format_prompt(tokenizer, "one two three")])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        mask = torch.ones_like(ids)
        output = tiny_model.generate(ids, attention_mask=mask, pad_token_id=0, max_new_tokens=20, **options)
        torch.manual_seed(3)
        assert (
            read_ids(engine.submit("one two three", max_new_tokens=20, **options)) == output[0, ids.shape[1] :].tolist()
        )


def test_chats_without_an_adapter_may_have_options_of_their_own(start, make_adapter, answers):
    engine, adapter = start(unadapted={"repetition_penalty": 1.5}), make_adapter(1)
    alone, adapted = engine.submit_many(["one two three"] * 2, [None, adapter], max_new_tokens=20)
    said = engine.submit("one two three", max_new_tokens=20, repetition_penalty=1.0)
    answers(alone, "one two three", None, 20, processor=RepetitionPenaltyLogitsProcessor(1.5))
    answers(adapted, "one two three", adapter, 20)
    answers(said, "one two three", None, 20)


def test_a_seed_gives_the_same_sample_whatever_else_is_decoded(start, read_ids):
    engine = start()
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 20}
    alone = read_ids(engine.submit("one two three", seed=5, **options))
    beside = [engine.submit("a" * n, **options) for n in (1, 30)]
    assert read_ids(engine.submit("one two three", seed=5, **options)) == alone
    assert read_ids(engine.submit("one two three", seed=6, **options)) != alone
    assert all("".join(stream) for stream in beside)
    for seed in (-1, 0.5, True, "5", 2**63):
        with pytest.raises(UserError, match="seed must be a whole number from 0 to"):
            engine.submit("a", seed=seed)


def test_each_row_has_its_own_options(start, answers):
    engine = start()
    sampled = engine.submit("one two three", do_sample=True, top_k=1, max_new_tokens=20)
    penalised = engine.submit("one two three", repetition_penalty=1.5, max_new_tokens=20)
    greedy = engine.submit("one two three", max_new_tokens=20)
    answers(sampled, "one two three", None, 20)
    answers(greedy, "one two three", None, 20)
    answers(penalised, "one two three", None, 20, processor=RepetitionPenaltyLogitsProcessor(1.5))


def test_defaults_come_from_the_models_generation_config(start, tiny_model, answers):
    tiny_model.generation_config.max_new_tokens = 4
    tiny_model.generation_config.repetition_penalty = 1.5
    answers(start().submit("a"), "a", None, 4, processor=RepetitionPenaltyLogitsProcessor(1.5))


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
def test_a_base_whose_file_asks_for_greedy_decoding_so(start, tiny_base, tmp_path, answers, said):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    engine = start(load_base(folder)[0])
    greedy = answers(engine.submit("a", max_new_tokens=30), "a", None, 30)
    assert "".join(engine.submit("a", do_sample=True, max_new_tokens=30)) != greedy  # whoever asks for another gets it
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
        ({"max_new_tokens": 10**400}, "max_new_tokens must be a number from 1 to 1e"),
        ({"temperature": -(10**5000)}, "temperature must be a number from 0.001 to 100"),  # too long to be written
        ({"top_k": 10**5000}, "top_k must be"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be"),
        ({"top_p": float("nan")}, "top_p must be"),
        ({"stop_strings": "a"}, "stop_strings must be at most 16 texts of 1 to 200 characters"),
        ({"stop_strings": [""]}, "stop_strings must be"),
        ({"stop_strings": ["a", 3]}, "stop_strings must be"),
        ({"stop_strings": ["a"] * 17}, "stop_strings must be"),
        ({"stop_strings": ["a" * 201]}, "stop_strings must be"),
    ],
)
def test_bad_options(start, options, sentence):
    with pytest.raises(UserError, match=sentence):
        start().submit("a", **options)


@pytest.mark.parametrize("begun", ["a", "one two", "quick brown "])
def test_an_answer_goes_on_from_its_beginning(start, answers, make_adapter, begun):
    messages = [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": begun}]
    answers(start().submit(messages, make_adapter(1), max_new_tokens=20), messages, make_adapter(1), 20)


def test_an_answer_ends_before_a_stop_string(start):
    """The first that is whole, also where it spans pieces or another begins as it does; no other text is lost."""
    engine = start()
    whole_pieces = list(engine.submit("a", max_new_tokens=60))
    whole = "".join(whole_pieces)
    for stops in (
        [whole[10:11]],
        [whole[20:24], whole[12:17]],
        [whole[5:8] + "no", whole[30:35]],
        (whole[50:55], whole[40:60]),
    ):
        stream = engine.submit("a", max_new_tokens=60, stop_strings=stops)
        pieces = list(stream)
        texts = accumulate(whole_pieces)
        until = next(text for text in texts if any(stop in text for stop in stops))
        assert "".join(pieces) == stream.text == until[: min(until.find(stop) for stop in stops if stop in until)]
        assert stream.finish_reason == "stop" and 0 < stream.tokens < 60
    stream = engine.submit("a", max_new_tokens=60, stop_strings=[whole + "!", "no such text", whole[-3:] + "?"])
    assert "".join(stream) == whole and (stream.finish_reason, stream.tokens) == ("length", 60)
    wait_until_idle(engine)  # those that ended early are decoded no further
    assert not engine._batch.rows


def test_the_context_bounds_prompt_and_answer(start, answers):
    engine = start()
    with pytest.raises(UserError, match="tokens long and the model reads 256"):
        engine.submit("x" * 300)
    prompt = len(format_prompt(engine.tokenizer, "x" * 200))
    answers(engine.submit("x" * 200, max_new_tokens=500), "x" * 200, None, 256 - prompt)


def test_blank_messages_are_refused(start):
    with pytest.raises(UserError, match="The message is empty"):
        start().submit("   ")


# ---- stopping, failing, closing ----


def test_stop_ends_an_answer_and_no_other(start, answers):
    engine = start()
    endless, other = engine.submit("a", max_new_tokens=240), engine.submit("x y", max_new_tokens=60)
    wait_for_tokens(endless, 1)
    endless.stop()
    assert 0 < len(answers(endless, "a")) < 240
    answers(other, "x y", None, 60)


def test_leaving_the_iteration_stops_the_answer(start):
    engine = start()
    stream = engine.submit("a", max_new_tokens=240)
    for _ in stream:
        break
    assert stream.stopped
    wait_until_idle(engine)
    assert len(stream.text) == 1


def test_a_chat_that_was_stopped_before_it_started(start, answers):
    engine = start(max_batch=1)
    running, waiting = engine.submit("a", max_new_tokens=100), engine.submit("a", max_new_tokens=100)
    waiting.stop()
    answers(running, "a", None, 100)
    assert len("".join(waiting)) <= 1


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("how", ["stopped", "dropped"])
def test_who_left_the_queue_takes_no_place_in_it(start, how, at_once, read_ids):
    engine = start(max_batch=1, max_waiting=2)
    running = engine.submit("a", max_new_tokens=240)
    wait_for_tokens(running, 1)
    for _ in range(20):  # more than there are places
        streams = engine.submit_many(["x"] * at_once, [None] * at_once)
        if how == "stopped":
            [stream.stop() for stream in streams]
        del streams
    others = engine.submit_many(["x", "y"], [None, None], max_new_tokens=2)
    others[0].stop()
    others.append(engine.submit("z", max_new_tokens=2))
    with pytest.raises(UserError, match="busy: 2 chats are waiting"):
        engine.submit("a")
    running.stop()
    assert [len(read_ids(stream)) for stream in others] == [0, 2, 2]


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


def test_an_adapter_that_does_not_fit_fails_alone(start, answers, make_adapter):
    engine = start()
    wrong = make_adapter(0)
    wrong.weights["q_proj"] = (torch.zeros(2, 8, 99), torch.zeros(2, 64, 8))
    streams = engine.submit_many(["a", "a"], [wrong, make_adapter(1)], max_new_tokens=5)
    with pytest.raises(UserError, match="made for another base model"):
        list(streams[0])
    answers(streams[1], "a", make_adapter(1), 5)


def test_values_that_are_not_finite_fail_their_row_alone(start, answers, make_adapter):
    engine = start()
    broken = make_adapter(0)
    broken.weights["q_proj"] = (broken.weights["q_proj"][0] * float("inf"), broken.weights["q_proj"][1])
    streams = engine.submit_many(["a", "a"], [broken, None], do_sample=True, top_k=1, max_new_tokens=5)
    with pytest.raises(RuntimeError):
        list(streams[0])
    answers(streams[1], "a", None, 5)


def test_the_engine_survives_a_failing_forward(start, answers, monkeypatch):
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
    answers(engine.submit("a", max_new_tokens=5), "a", None, 5)


# ---- more than there is room for ----


@pytest.fixture
def memory(monkeypatch):
    """memory(n): the cache can grow by n tensors, then memory runs out once."""

    def set_left(n: int) -> None:
        left = iter([True] * n + [False])

        def pad(*args):
            if not next(left, True):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch.nn.functional.pad(*args)

        monkeypatch.setattr("hyperlora.batch.F", SimpleNamespace(pad=pad))

    return set_left


@pytest.mark.parametrize("allocations", [0, 1, 3, 4, 6, 7])
def test_a_chat_for_which_there_is_no_memory_leaves_the_others_alone(start, answers, make_adapter, memory, allocations):
    """Two layers of keys and values, each padded on both sides of a merge."""
    engine = start()
    running = engine.submit("one two", make_adapter(1), max_new_tokens=40)
    wait_for_tokens(running, 2)
    memory(allocations)
    with pytest.raises(UserError, match="The memory of cpu ran out"):
        "".join(engine.submit(PROMPTS[2], make_adapter(2), max_new_tokens=40))
    later = engine.submit("x y", make_adapter(3), max_new_tokens=10)
    answers(later, "x y", make_adapter(3), 10)
    answers(running, "one two", make_adapter(1), 40)


@pytest.mark.parametrize("allocations", [0, 1, 2, 3])
def test_a_cache_that_cannot_grow_loses_the_newest_chat(start, answers, make_adapter, memory, allocations):
    engine = start()
    oldest = engine.submit("one two", make_adapter(1), max_new_tokens=200)
    older = engine.submit("a", make_adapter(2), max_new_tokens=200)
    wait_for_tokens(older, 1)
    choose, short = engine._choose, threading.Event()

    def wait(batch, logits):
        assert len(batch.rows) < 3 or short.wait(60)  # all three are decoded once memory is short, not before
        return choose(batch, logits)

    engine._choose = wait
    newest = engine.submit("x y", max_new_tokens=200)
    while newest._queue.empty():
        time.sleep(0.001)
    memory(allocations)
    short.set()
    with pytest.raises(UserError, match="The memory of cpu ran out"):
        "".join(newest)
    assert newest.finish_reason is None
    answers(oldest, "one two", make_adapter(1), 200)
    answers(older, "a", make_adapter(2), 200)


def test_a_prompt_that_is_too_much_leaves_the_others_alone(start, answers, make_adapter, monkeypatch):
    engine = start()
    running = engine.submit("one two", make_adapter(1), max_new_tokens=60)
    wait_for_tokens(running, 2)

    def limit(forward):
        def small(**inputs):
            if inputs["input_ids"].shape[1] > 1 and inputs["position_ids"][0, -1] > 20:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(**inputs)

        return small

    monkeypatch.setattr(engine, "_model", limit(engine._model))
    monkeypatch.setattr(engine, "_reader", limit(engine._reader))
    with pytest.raises(UserError, match="The memory of cpu ran out"):
        "".join(engine.submit(PROMPTS[2], make_adapter(2)))
    answers(running, "one two", make_adapter(1), 60)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_rows_never_lose_their_adapter_to_others(start, answers, make_adapter, slots):
    """More chats than slots, and others who load adapters between two tokens."""
    adapters = [make_adapter(i) for i in range(5)]
    engine = start(max_batch=4, max_adapters=slots)
    streams = engine.submit_many(PROMPTS, adapters, max_new_tokens=30)
    others = []

    def load() -> None:
        with suppress(UserError):  # no slot is free for another one
            others.append(engine.adapted.load(make_adapter(9)))

    for _ in range(10):
        engine.call(load)
    for stream, prompt, adapter in zip(streams, PROMPTS, adapters, strict=True):
        answers(stream, prompt, adapter, 30)


# ---- how it ended ----


def test_a_stream_says_why_it_ended(start, tiny_model, tokenizer, read_ids):
    engine = start()
    limited, full = engine.submit_many(["a", "x" * 200], [None, None], max_new_tokens=100)
    text = ""
    for piece in limited:
        assert limited.finish_reason is None
        text += piece
    assert limited.finish_reason == "length"
    assert len(read_ids(full)) < 100 and full.finish_reason == "length"  # the context's end
    early, stopped, unread = engine.submit_many(["a", "b", "c"], [None] * 3)
    for _ in early:
        break
    stopped.stop()
    assert (early.finish_reason, stopped.finish_reason, unread.finish_reason) == ("stopped", "stopped", None)
    assert read_ids(stopped) is not None and stopped.finish_reason == "stopped"
    unread.stop()

    tiny_model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(text[5])
    n, engine = text.index(text[5]), start(endless=False)
    for limit, reason in [(n, "length"), (n + 1, "stop"), (n + 2, "stop")]:
        stream = engine.submit("a", max_new_tokens=limit)
        assert "".join(stream) == text[:n] and stream.finish_reason == reason


# ---- engines that are dropped, and processes that are forked ----


@pytest.mark.parametrize("state", ["new", "idle", "read", "unread", "running"])
def test_an_engine_that_nobody_has_goes_with_its_thread_and_model(tiny_base, tokenizer, make_adapter, state):
    model = load_base(tiny_base)[0]
    engine = ChatEngine(AdaptedModel(model, ["q_proj", "v_proj"]), tokenizer)
    engine._eos = set()
    stream = None
    if state != "new":
        stream = engine.submit("a", make_adapter(1), max_new_tokens=200 if state == "running" else 5)
    if state in ("idle", "read"):
        "".join(stream)
    if state == "running":
        wait_for_tokens(stream, 1)
    if state != "read":  # that one keeps its text, and nothing of the engine
        stream = None
    thread, model, adapted = engine._thread, weakref.ref(model), weakref.ref(engine.adapted)
    del engine
    thread.join()
    gc.collect()
    assert model() is None and adapted() is None
    assert stream is None or len(stream.text) == 5


def test_a_stream_keeps_its_engine_until_it_has_been_read(tiny_model, tokenizer, answers):
    engine = ChatEngine(AdaptedModel(tiny_model, ["q_proj"]), tokenizer)
    engine._eos = set()
    stream, thread = engine.submit("a", max_new_tokens=20), engine._thread
    del engine
    gc.collect()
    answers(stream, "a", None, 20)
    thread.join()


@pytest.mark.filterwarnings("ignore:This process")  # what Python says of a fork with threads
@pytest.mark.parametrize("held", [False, True])
def test_a_forked_process_is_told_to_load_the_model_itself(start, answers, in_a_fork, held):
    engine = start()
    stream = engine.submit("a", max_new_tokens=100)
    wait_for_tokens(stream, 1)
    with engine._inbox.wake if held else nullcontext():  # as if the worker, or a caller, had been in there
        for work in (
            lambda: engine.submit("b"),
            lambda: engine.submit_many(["b"], [None]),
            lambda: engine.call(lambda: None),
            lambda: "".join(stream),
        ):
            assert in_a_fork(work).startswith("UserError: This process was forked after the model was loaded")
        assert in_a_fork(engine.close) == "None"
    answers(stream, "a", None, 100)


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


def test_a_background_job_takes_half_of_the_batch_and_waits_for_all_others(start, answers):
    engine, ended = start(max_batch=4, max_waiting=3), SimpleQueue()
    job = engine.submit_many(["a"] * 9, [None] * 9, ended=ended, max_new_tokens=200)
    wait_for_tokens(job[1], 2)
    assert len(engine._batch.rows) == 2 and not job[2]._queue.qsize()
    visitors = engine.submit_many(["one two three"] * 3, [None] * 3, max_new_tokens=20)  # whose queue has room
    for visitor in visitors:
        answers(visitor, "one two three", None, 20)
    assert not job[3]._queue.qsize()
    assert {ended.get(), ended.get()} == set(job[:2])
    for stream in job[2:]:
        stream.stop()
    answers(job[0], "a", None, 200)


def test_memory_that_runs_out_ends_a_background_job_first(start, answers, monkeypatch):
    engine, ended = start(), SimpleQueue()
    [job] = engine.submit_many(["a"], [None], ended=ended, max_new_tokens=200)
    wait_for_tokens(job, 1)
    visitor = engine.submit("one two", max_new_tokens=40)
    step, failed = engine._choose, []

    def choose(batch, logits):
        if len(batch.rows) == 2 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("out of memory")
        return step(batch, logits)

    engine._choose = choose
    answers(visitor, "one two", None, 40)
    assert failed and ended.get() is job
    with pytest.raises(UserError, match="memory of cpu ran out"):
        "".join(job)


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


def test_calls_run_between_two_tokens_without_an_adapter(start, tokenizer, make_adapter, answers):
    engine = start()
    stream = engine.submit("a", make_adapter(1), max_new_tokens=100)
    wait_for_tokens(stream, 1)
    ids = torch.tensor([format_prompt(tokenizer, "x y")])
    inside = engine.call(lambda: engine.adapted.model(ids).logits)
    answers(stream, "a", make_adapter(1), 100)
    torch.testing.assert_close(inside, engine.adapted.model(ids).logits)
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0)


def test_one_thread_is_put_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def wait_for_tokens(stream: ChatStream, n: int) -> None:
    """Return once that many tokens have been made; none of them is read."""
    while stream._queue.qsize() < n:
        stream._engine.call(lambda: None)  # the worker has come to the end of a round


def wait_until_idle(engine: ChatEngine) -> None:
    """Return once the worker has dealt with all that it had."""
    idle = threading.Event()
    while not idle.is_set():
        engine.call(lambda: None if engine._batch.rows or engine._inbox.waiting else idle.set())
    engine.call(lambda: None)  # after the worker's last cleaning up


# ---- text from tokens ----


def stream_of(tokenizer, ids: list[int]) -> ChatStream:
    stream = ChatStream(tokenizer)
    for item in [*ids, "stop"]:
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


@pytest.mark.parametrize(
    "make", [lambda tokenizer: tokenizer, lambda tokenizer: SimpleNamespace(decode=tokenizer.decode)]
)
def test_what_goes_on_keeps_its_first_space(make):
    """A tokenizer drops the space before a text's first word, and this word is not the first."""
    tokenizer = sentencepiece()
    begun, ids = (tokenizer.convert_tokens_to_ids(tokens) for tokens in (["▁the"], ["▁cat", "s", "▁the"]))
    stream = stream_of(make(tokenizer), ids)
    stream._begun = begun
    assert "".join(stream) == " cats the" and "".join(stream_of(make(tokenizer), ids)) == "cats the"


def test_long_texts_of_bytes_are_streamed_as_whole_characters():
    """A script that the tokenizer knows only as bytes, three a character: 16 tokens are no whole number of them."""
    tokenizer = sentencepiece()
    text = "".join(chr(0x16A0 + i) for i in range(70))
    pieces = list(stream_of(tokenizer, tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text.encode()])))
    assert pieces == list(text)


@pytest.mark.parametrize(
    "tokens",
    [
        ["▁the", "<0xFF>", "▁cat", "<0xF0>", "s", "<0xE2>", "<0x82>", "▁the"],
        ["<0xF0>", "<0x9F>", "▁the"],
        ["▁the", "<0xF0>", "<0x9F>"],
        ["<0x80>", "e", "a", "▁cat"],
        ["<0xC3>", "<0xA9>", "▁", "<0xC3>", "▁the"],
    ],
    ids="".join,
)
def test_bytes_that_are_no_text_end_no_answer(tokens):
    tokenizer = sentencepiece()
    ids = tokenizer.convert_tokens_to_ids(tokens)
    pieces = list(stream_of(tokenizer, ids))
    assert "".join(pieces) == tokenizer.decode(ids) and "\ufffd" in "".join(pieces)


@pytest.mark.parametrize("text", ["the naïve 🙂 cat", "日本語", "end 🙂", "e\u0301🏳️‍🌈" * 9])
@pytest.mark.parametrize("make", [bytewise, sentencepiece, ByT5Tokenizer])
def test_a_tokenizer_of_another_library_is_streamed_as_well(make, text):
    """Token by token, none in two halves, with the spaces that a token has among others."""
    tokenizer = make()
    if make is sentencepiece:
        cuts = [f"<0x{byte:02X}>" for byte in text.replace(" ", "").encode()]
        ids = tokenizer.convert_tokens_to_ids(["▁the", *cuts, "▁cat", "s", "▁", "e"])
    else:
        ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = list(stream_of(SimpleNamespace(decode=tokenizer.decode), ids))
    assert "".join(pieces) == tokenizer.decode(ids) and not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) >= len(set(text))
    half = tokenizer.encode("a", add_special_tokens=False) + tokenizer.encode("🙂", add_special_tokens=False)[:-1]
    whole = "".join(stream_of(SimpleNamespace(decode=tokenizer.decode), half))
    assert whole == tokenizer.decode(half)


@pytest.mark.parametrize("kind", ["bytes", "tiny", "mini"])
def test_any_tokens_are_streamed_as_they_are_decoded(kind, tiny_base):
    """Whatever a model may say, control tokens and halves of characters among it."""
    folder = tiny_base if kind == "tiny" else assets_dir() / "mini" / "base"
    tokenizer = bytewise() if kind == "bytes" else AutoTokenizer.from_pretrained(folder)
    random = torch.Generator().manual_seed(0)
    for length in (1, 2, 7, 30, 200):
        ids = torch.randint(len(tokenizer), (length,), generator=random).tolist()
        assert "".join(stream_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)
