"""A Modelfile, by which Ollama answers as the chat here does: the same prompts, end tokens and choice of tokens.

Ollama writes prompts by a template of Go's. It is found by what the chat template, in Jinja, writes for a few chats,
and kept only where it writes the same for others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperlora.base import end_tokens
from hyperlora.errors import UserError
from hyperlora.llama_cpp import adds_bos
from hyperlora.lora import Adapter
from hyperlora.pipe import Pipeline
from hyperlora.prompt import FRAME, Message, chat_text

CONTEXT = 4096  # tokens, beyond which Ollama would ask for much memory


@dataclass(frozen=True)
class Turns:
    """What stands around the texts of a chat. The first user's message is behind `start`, or where there is a system
    message behind `before_system`, that, and `after_system`; `to_assistant` and `to_user` are between two messages,
    `end` is where the answer begins."""

    start: str
    before_system: str
    after_system: str
    to_assistant: str
    to_user: str
    end: str
    last_only: bool = False
    """Each message is answered on its own."""

    def write(self, chat: Sequence[Message]) -> str:
        """The prompt, as the template below writes it: system messages first, then user and assistant in turn."""
        system = "\n\n".join(message["content"] for message in chat if message["role"] == "system")
        others = [message for message in chat if message["role"] != "system"]
        text = self.before_system + system + self.after_system if system else self.start
        for message in others[-1:] if self.last_only else others:
            content = message["content"]
            text += content if message["role"] == "user" else self.to_assistant + content + self.to_user
        return text + self.end

    @property
    def default_system(self) -> str:
        """The system message of a chat that has none; "" where that has no text."""
        found = self.start.startswith(self.before_system) and self.start.endswith(self.after_system)
        size = len(self.start) - len(self.after_system)
        return self.start[len(self.before_system) : size].strip() if found else ""

    def go(self) -> str:
        """The template in Go's language."""
        system = f"{_go(self.before_system)}{{{{ .System }}}}{_go(self.after_system)}"
        head = f"{{{{ if .System }}}}{system}{{{{ else }}}}{_go(self.start)}{{{{ end }}}}"
        if self.last_only:
            last = "{{ if eq (len (slice $.Messages $i)) 1 }}{{ $message.Content }}{{ end }}"
            return f"{head}{{{{ range $i, $message := .Messages }}}}{last}{{{{ end }}}}{_go(self.end)}"
        between = f"{_go(self.to_assistant)}{{{{ .Content }}}}{_go(self.to_user)}"
        return (
            f'{head}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}'
            f'{{{{ else if eq .Role "assistant" }}}}{between}{{{{ end }}}}{{{{ end }}}}{_go(self.end)}'
        )


def _go(text: str) -> str:
    """A text that Go writes as it is."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def written_before(pipe: Pipeline, adapter: Adapter | None) -> str:
    """What prompts hold before the first message, the adapter's description; "" where they hold none."""
    return pipe.prepare("a", adapter)[0]["content"].removesuffix("a")


def find_turns(pipe: Pipeline, adapter: Adapter | None) -> Turns | None:
    """What stands around the texts of the chats that `Pipeline.chat` sends; None where it is not as `Turns` has it."""
    tokenizer = pipe.tokenizer
    texts = [f"{FRAME}{i}{FRAME}" for i in range(7)]

    def write(system: int, *texts: str) -> str:
        chat = [{"role": "system" if i < system else "user" if (i - system) % 2 == 0 else "assistant", "content": text}
                for i, text in enumerate(texts)]  # fmt: skip
        return chat_text(tokenizer, pipe.prepare(chat, adapter))

    try:
        start, end = write(0, texts[0]).split(texts[0])
        before, rest = write(1, *texts[:2]).split(texts[0])
        between, to_user = "", ""
        if pipe.multi_turn:
            between, rest_of = write(0, *texts[:3]).split(texts[0])[1].split(texts[1])
            to_user = rest_of.split(texts[2])[0]
        turns = Turns(start, before, rest.split(texts[1])[0], between, to_user, end, not pipe.multi_turn)
        for system in (0, 1):
            for count in (1, 3, 5):
                chat = [{"role": "system", "content": "Be brief."}] * system
                roles = ["user", "assistant"] * 3
                chat += [{"role": roles[i], "content": f"{i} is a number."} for i in range(count)]
                if turns.write(chat) != chat_text(tokenizer, pipe.prepare(chat, adapter)):
                    return None
    except (UserError, ValueError):  # a template that refuses such a chat, drops its texts, or writes them twice
        return None
    return turns


def modelfile(pipe: Pipeline, adapter: Adapter | None, base: str, lora: str | None = None) -> str:
    """A Modelfile for the GGUF files `base` and, of an adapter, `lora`, both beside it."""
    turns, defaults, tokenizer = find_turns(pipe, adapter), pipe.defaults, pipe.tokenizer
    lines = [f"FROM ./{base}"]
    lines += [f"ADAPTER ./{lora}"] if lora else []
    if turns is None:
        lines += [
            "# The model's chat template cannot be written as Ollama's: what Ollama sends is not as in training.",
            "# llama.cpp reads the template itself (--jinja).",
        ]
        if before := written_before(pipe, adapter):
            lines += [f"# Send this before the first message: {json.dumps(before, ensure_ascii=False)}"]
    else:
        if adds_bos(tokenizer):  # and so does Ollama
            bos = tokenizer.bos_token
            start, before_system = (text.removeprefix(bos) for text in (turns.start, turns.before_system))
            turns = replace(turns, start=start, before_system=before_system)
        lines.append(f'TEMPLATE """{turns.go()}"""')
        if (system := turns.default_system) and '"""' not in system:
            lines.append(f'SYSTEM """{system}"""')
    ends = tokenizer.convert_ids_to_tokens(sorted(end_tokens(pipe.adapted.model, tokenizer)))
    lines += [f'PARAMETER stop "{end}"' for end in ends]
    if defaults.do_sample:
        lines += [f"PARAMETER {name} {getattr(defaults, name)}" for name in ("temperature", "top_k", "top_p")]
    else:
        lines += ["PARAMETER temperature 0"]
    lines += [f"PARAMETER repeat_penalty {defaults.repetition_penalty}", "PARAMETER repeat_last_n -1"]
    lines += [f"PARAMETER num_predict {defaults.max_new_tokens}"]
    lines += [f"PARAMETER num_ctx {min(pipe.engine.context, CONTEXT)}"]
    return "\n".join(lines) + "\n"
