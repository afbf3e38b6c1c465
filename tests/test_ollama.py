"""Modelfiles: what Ollama writes by the template, System and Messages, is what the chat here sends."""

import json
import re
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from hyperlora.export import export
from hyperlora.ollama import find_turns, modelfile
from hyperlora.pipe import Pipeline
from hyperlora.presets import PRESETS
from hyperlora.prompt import GEMMA, LLAMA, MISTRAL, chat_text

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT = (  # SmolLM2's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are \"helpful\".<|im_end|>\n' }}{% endif %}"
) + CHATML.removeprefix("{% for message in messages %}")
TEMPLATES = {"mistral": MISTRAL, "llama": LLAMA, "gemma": GEMMA, "chatml": CHATML, "smollm2": DEFAULT, "tiny": None}
USER = [{"role": "user", "content": "Hello."}]
MORE = [*USER, {"role": "assistant", "content": 'A "quoted"\n{{ line }} \\ 🎈'}, {"role": "user", "content": "And?"}]
CHATS = [USER, MORE, [*MORE, *MORE[1:]]]
CHATS += [[{"role": "system", "content": "Be brief."}, *chat] for chat in CHATS]


def go(template: str, chat: list[dict[str, str]]) -> str:
    """What Go's text/template writes, of what a Modelfile here holds; `make test-export` asks Go itself."""
    pieces = re.findall(r'\{\{ ("(?:[^"\\]|\\.)*"|.*?) \}\}', template)
    assert "".join(f"{{{{ {piece} }}}}" for piece in pieces) == template
    system = "\n\n".join(message["content"] for message in chat if message["role"] == "system")

    def holds(condition: str, i: int) -> bool:
        if condition == ".System":
            return bool(system)
        if condition == "eq (len (slice $.Messages $i)) 1":
            return i == len(chat) - 1
        return chat[i]["role"] == re.fullmatch(r'eq \.Role "(\w+)"', condition)[1]

    def run(at: int, i: int, writes: bool) -> tuple[str, int]:
        """The text up to an else or end, and its place."""
        text = ""
        while at < len(pieces) and not pieces[at].startswith(("else", "end")):
            piece, at = pieces[at], at + 1
            if piece.startswith("range "):
                start = at
                for j in range(len(chat)):
                    inside, at = run(start, j, writes)
                    text += inside
                at += 1
            elif piece.startswith("if "):
                done, condition = False, piece.removeprefix("if ")
                while True:
                    chosen = writes and not done and (not condition or holds(condition, i))
                    inside, at = run(at, i, chosen)
                    text, done, end = text + inside, done or chosen, pieces[at]
                    at += 1
                    if end == "end":
                        break
                    condition = end.removeprefix("else").strip().removeprefix("if ")
            elif writes:
                values = {".System": lambda: system}
                values |= dict.fromkeys((".Content", "$message.Content"), lambda: chat[i]["content"])
                text += values[piece]() if piece in values else json.loads(piece)
        return text, at

    text, at = run(0, 0, True)
    assert at == len(pieces)
    return text


def template_of(text: str) -> str:
    [template] = re.findall(r'^TEMPLATE """(.*)"""$', text, re.MULTILINE)
    return template


@pytest.fixture
def pipe(tiny_base: Path, open_pipe) -> Pipeline:
    return open_pipe(tiny_base)


@pytest.mark.parametrize("described", [False, True], ids=["message", "description"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_the_chat(name, described, tiny_base, open_pipe, make_adapter):
    pipe = open_pipe(tiny_base, prompt_style="description_input" if described else "input")
    pipe.tokenizer.chat_template = TEMPLATES[name] or pipe.tokenizer.chat_template
    adapter = make_adapter(1, description='Say "it"\nin {two} lines.')
    template = template_of(modelfile(pipe, adapter, "base.gguf"))
    for chat in CHATS:
        wanted = chat_text(pipe.tokenizer, pipe.prepare(chat, adapter))
        assert go(template, chat) == wanted
        assert described == ("in {two} lines." in wanted)


def test_a_model_that_answers_each_message_on_its_own_is_sent_the_last(pipe, make_adapter):
    pipe.multi_turn = False
    template = template_of(modelfile(pipe, make_adapter(1), "base.gguf"))
    for chat in CHATS:
        assert go(template, chat) == chat_text(pipe.tokenizer, pipe.prepare(chat, None))


def test_smollm2s_own_system_message_is_said(pipe, make_adapter):
    pipe.tokenizer.chat_template = DEFAULT
    text = modelfile(pipe, make_adapter(1), "base.gguf")
    assert '\nSYSTEM """You are "helpful"."""\n' in text
    chat = [{"role": "system", "content": 'You are "helpful".'}, *USER]
    assert go(template_of(text), chat) == go(template_of(text), USER)
    pipe.tokenizer.chat_template = CHATML
    assert "SYSTEM" not in modelfile(pipe, make_adapter(1), "base.gguf")


def test_bos_is_left_to_ollama_where_the_tokenizer_adds_it(tiny_base, open_pipe, make_adapter, tmp_path):
    pipe = open_pipe(tiny_base)
    assert '{{ "<s>[INST] " }}' in modelfile(pipe, make_adapter(1), "base.gguf")
    pipe.tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    assert '{{ "[INST] " }}' in modelfile(pipe, make_adapter(1), "base.gguf")


def test_end_tokens_and_greedy_choice_are_the_chats(pipe, make_adapter):
    pipe.adapted.model.generation_config.eos_token_id = [2, 4]
    pipe.preset = PRESETS["mini"]
    lines = modelfile(pipe, make_adapter(1), "base.gguf", "adapter.gguf").splitlines()
    assert lines[:2] == ["FROM ./base.gguf", "ADAPTER ./adapter.gguf"]
    assert lines[3:] == [
        'PARAMETER stop "</s>"',
        'PARAMETER stop "[/INST]"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER repeat_last_n -1",
        "PARAMETER num_predict 128",
        "PARAMETER num_ctx 256",
    ]


def test_sampling_is_said_where_the_base_samples(pipe, make_adapter):
    pipe.engine.defaults = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1}
    text = modelfile(pipe, make_adapter(1), "base.gguf")
    assert "PARAMETER temperature 0.6\nPARAMETER top_k 40\nPARAMETER top_p 0.9\nPARAMETER repeat_penalty 1.1\n" in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ loop.index }}: {{ message['content'] }}\n{% endfor %}",  # numbers turns
        "{{ messages[0]['content'] }}",  # drops all but one
        "{{ messages[0]['content'] | upper }}{{ bos_token }}",
        "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
    ],
)
def test_a_template_of_another_form_is_not_written(template, tiny_base, open_pipe, make_adapter, tmp_path):
    """And what to send is said."""
    pipe = open_pipe(tiny_base, prompt_style="description_input")
    pipe.tokenizer.chat_template = template
    adapter = make_adapter(1, description="Sort\nthem.")
    assert find_turns(pipe, adapter) is None
    folder = export(pipe, adapter, "gguf", tmp_path / "out")
    text = (folder / "Modelfile").read_text()
    assert "TEMPLATE" not in text and "# The model's chat template cannot be written as Ollama's" in text
    assert '# Send this before the first message: "Sort\\nthem.\\n"\n' in text
    assert (folder / "chat_template.jinja").read_text() == template


def test_a_tokenizer_without_a_template(pipe, make_adapter):
    pipe.tokenizer.chat_template = None
    assert find_turns(pipe, make_adapter(1)) is None
