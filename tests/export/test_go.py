"""A Modelfile's template in Go's own text/template, with the values that Ollama gives it.

`make test-export` runs this, with the Go that it installs.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from hyperlora.ollama import modelfile
from hyperlora.prompt import chat_text
from tests.test_ollama import CHATS, TEMPLATES, template_of

PROGRAM = """\
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct { Role, Content string }
type Values struct { System string; Messages []Message }

func main() {
    var asked []struct { Template string; Chats []Values }
    if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil { panic(err) }
    written := [][]string{}
    for _, each := range asked {
        parsed := template.Must(template.New("").Option("missingkey=zero").Parse(each.Template))
        texts := []string{}
        for _, chat := range each.Chats {
            var text strings.Builder
            if err := parsed.Execute(&text, chat); err != nil { panic(err) }
            texts = append(texts, text.String())
        }
        written = append(written, texts)
    }
    json.NewEncoder(os.Stdout).Encode(written)
}
"""


def run(asked: list[dict], folder: Path) -> list[list[str]]:
    """What Go writes for each template and chat."""
    paths = [Path(entry, "go/bin/go") for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    go = next((path for path in paths if path.is_file()), None)
    if go is None:
        pytest.skip("there is no Go")
    (folder / "main.go").write_text(PROGRAM)
    environment = os.environ | {
        "GOCACHE": str(folder / "cache"),
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "HOME": str(folder),
    }
    done = subprocess.run(
        [go, "run", "main.go"], cwd=folder, env=environment, input=json.dumps(asked), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_go_writes_the_prompts_of_the_chat(tiny_base, open_pipe, make_adapter, tmp_path):
    asked, wanted, pipe = [], [], open_pipe(tiny_base, prompt_style="description_input")
    own = pipe.tokenizer.chat_template
    adapters = [make_adapter(1), make_adapter(1, description='Say "it"\nin {two} `lines`.')]
    for pipe.multi_turn in (True, False):
        for pipe.tokenizer.chat_template in (template or own for template in TEMPLATES.values()):
            for adapter in adapters:
                system = ["\n\n".join(m["content"] for m in chat if m["role"] == "system") for chat in CHATS]
                chats = [
                    {"System": said, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in chat]}
                    for said, chat in zip(system, CHATS, strict=True)
                ]
                template = template_of(modelfile(pipe, adapter, "base.gguf"))
                asked.append({"Template": template, "Chats": chats})
                wanted.append([chat_text(pipe.tokenizer, pipe.prepare(chat, adapter)) for chat in CHATS])
    assert run(asked, tmp_path) == wanted and len(wanted) == 24
