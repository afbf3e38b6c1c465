"""OpenAI's chat completions and completions: what a request asks for, and answers in their form.

What would change an answer and is not to be had here is refused by name; what is not known is left unread, as other
servers do.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hyperlora.chat import MAX_STOPS, MAX_TOP, Chances, ChatStream
from hyperlora.errors import UserError, shown
from hyperlora.lora import Adapter
from hyperlora.model import Model
from hyperlora.prompt import check_messages
from hyperlora.recipe import Recipe
from hyperlora.text import check_text

MAX_CHOICES, MAX_PROMPTS = 8, 16
MAX_MESSAGES = 10_000
NAMED = re.compile(r"hyperlora(?:@(?P<strength>[^:]*))?:(?P<description>.*)", re.DOTALL)
ROLES = {"developer": "system"}  # OpenAI's new name for it
REFUSED = {  # what it would take, and the values by which clients ask for nothing
    "tools": "calls of tools",
    "functions": "calls of functions",
    "logit_bias": "biases of tokens",
    "frequency_penalty": "frequency penalty (repetition_penalty is there)",
    "presence_penalty": "presence penalty (repetition_penalty is there)",
    "audio": "audio",
    "prediction": "predicted outputs",
    "web_search_options": "searches",
    "suffix": "suffixes",
    "echo": "echoes of the prompt",
}


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ResponseFormat(BaseModel):
    type: str


Number = Annotated[float, Field(allow_inf_nan=False)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Tokens = Annotated[list[int], Field(fail_fast=True)]


class Asked(BaseModel):
    """What both kinds of request have in common; a null is what is not said."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: int | None = None
    repetition_penalty: Number | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None

    @property
    def choices(self) -> int:
        if not 1 <= (choices := 1 if self.n is None else self.n) <= MAX_CHOICES:
            raise UserError(f"n must be from 1 to {MAX_CHOICES}, not {shown(self.n)}.")
        return choices

    @property
    def usage_streamed(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self, limit: int | None) -> dict[str, Any]:
        """Generation options by the names of `Pipeline.chat`. Raises `UserError` for what is not to be had."""
        for name, what in REFUSED.items():
            if (self.model_extra or {}).get(name) not in (None, False, 0, [], {}):
                raise UserError(f"{name} is not supported: this server has no {what}. Leave it out.")
        options: dict[str, Any] = {}
        if limit is not None:
            options["max_new_tokens"] = limit
        if self.temperature is not None:
            options["do_sample"] = not 0 <= self.temperature < 1e-3  # what is below 0 is refused as any other
            options |= {"temperature": self.temperature} if options["do_sample"] else {}
        elif self.top_p is not None and self.top_p < 1:
            options["do_sample"] = True
        for name in ("top_p", "top_k", "repetition_penalty"):
            if (value := getattr(self, name)) is not None:
                options[name] = value
        if self.stop is not None:
            stops = [self.stop] if isinstance(self.stop, str) else self.stop
            if len(stops) > MAX_STOPS:
                raise UserError(f"stop must be at most {MAX_STOPS} texts.")
            options["stop_strings"] = stops
        return options

    def allowed(self, model: Model, longest: str, options: dict[str, Any], prompts: int = 1) -> dict[str, Any]:
        """The options that all choices may have now, each of which counts as a chat."""
        options = model.allow(longest, options)
        for _ in range(self.choices * prompts - 1):
            model.limits.take("chats")
        return options

    def seeds(self) -> list[int | None]:
        """One for each choice."""
        return [None if self.seed is None else (self.seed + i) % 2**63 for i in range(self.choices)]


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[dict[str, Any]] | None = None

    def read(self) -> dict[str, str]:
        """As `Pipeline.chat` takes it."""
        if (self.model_extra or {}).get("tool_calls") or self.role in ("tool", "function"):
            raise UserError("Messages with calls of tools are not supported: this server has no tools.")
        content = self.content or ""
        if isinstance(content, list):
            if odd := [part for part in content if part.get("type") != "text" or not isinstance(part.get("text"), str)]:
                raise UserError(f"A part of a message must be a text, not {shown(odd[0].get('type'))}.")
            content = "\n".join(part["text"] for part in content)
        return {"role": ROLES.get(self.role, self.role), "content": content}


class ChatAsked(Asked):
    """The body of a chat completion; `describe` is ours, and puts the description before the message too."""

    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    describe: bool | None = None

    @property
    def top(self) -> int | None:
        if not self.logprobs:
            if self.top_logprobs:
                raise UserError("top_logprobs needs logprobs: true beside it.")
            return None
        return _top("top_logprobs", self.top_logprobs or 0)

    def submit(self, model: Model, adapter: Adapter | None) -> list[ChatStream]:
        """A stream for each choice. Raises `UserError` for what cannot be answered, or is one too many."""
        if self.response_format and self.response_format.type != "text":
            raise UserError(f"response_format is {shown(self.response_format.type)}, but answers are text alone.")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        messages = check_messages([message.read() for message in self.messages])
        longest = max((message["content"] for message in messages), key=len)
        options = self.allowed(model, longest, self.options(limit)) | {"top": self.top, "describe": self.describe}
        streams: list[ChatStream] = []
        try:
            for seed in self.seeds():
                streams.append(model.pipe.chat(messages, adapter, stream=True, seed=seed, **options))
        except BaseException:
            stop(streams)
            raise
        return streams


class TextAsked(Asked):
    """The body of a completion, whose prompt goes to the model as it is: no template is put around it, and control
    tokens in it are control tokens."""

    prompt: str | Texts | Tokens | Annotated[list[Tokens], Field(fail_fast=True)]
    logprobs: int | None = None
    best_of: int | None = None

    @property
    def top(self) -> int | None:
        return None if self.logprobs is None else _top("logprobs", self.logprobs)

    def submit(self, model: Model, adapter: Adapter | None) -> list[ChatStream]:
        """A stream for each choice of each prompt. Raises `UserError` for what cannot be answered, or is one too
        many."""
        if (self.best_of or 1) > self.choices:
            raise UserError("best_of is not supported: ask for n, and choose.")
        one = isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int))
        prompts = [self.prompt] if one else self.prompt
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise UserError(f"There must be 1 to {MAX_PROMPTS} prompts, not {len(prompts)}.")
        if (answers := len(prompts) * self.choices) > (most := model.pipe.engine.max_waiting):
            raise UserError(f"This asks for {answers} answers at once; the limit is {most}: send fewer prompts, or n.")
        longest = max((each for each in prompts if isinstance(each, str)), key=len, default="")
        options = {"max_new_tokens": 16} | self.options(self.max_tokens)  # 16 as OpenAI's
        options = self.allowed(model, longest, options, len(prompts)) | {"top": self.top}
        tokenizer, engine = model.pipe.tokenizer, model.pipe.engine
        ids = [
            tokenizer(check_text(each, "The prompt")).input_ids if isinstance(each, str) else each for each in prompts
        ]
        if not all(ids):
            raise UserError("A prompt is empty: write something that the model may continue.")
        streams: list[ChatStream] = []
        try:
            for each in ids:
                for seed in self.seeds():
                    streams.append(engine.submit(each, adapter, seed=seed, **options))
        except BaseException:
            stop(streams)
            raise
        return streams


def _top(name: str, count: int) -> int:
    if not 0 <= count <= MAX_TOP:
        raise UserError(f"{name} must be from 0 to {MAX_TOP}, not {shown(count)}.")
    return count


def stop(streams: list[ChatStream]) -> None:
    """End answers that nobody waits for any more."""
    for stream in streams:
        stream.stop()


def read_model(name: str) -> Recipe | None:
    """`hyperlora:DESCRIPTION` or `hyperlora@0.8:DESCRIPTION` -> its recipe; None for another name.

    What is behind the first colon is the description, whatever it holds. Raises `UserError` where there is no such
    adapter.
    """
    if not (match := NAMED.fullmatch(name)):
        return None
    try:
        strength = float(1 if match["strength"] is None else match["strength"])
    except ValueError:
        raise UserError(
            f"The strength in the model's name is {shown(match['strength'])}: write hyperlora@0.8:DESCRIPTION."
        ) from None
    return Recipe(match["description"], strength=strength)


def adapter_id(recipe: Recipe, checkpoint: str) -> str:
    """The name of an adapter that was made for a key: the same for the same."""
    return "adapter-" + hashlib.sha256(f"{checkpoint} {recipe.to_json()}".encode()).hexdigest()[:24]


# ---- answers ----


@dataclass
class Reply:
    """One choice of an answer as it grows, for either kind of request."""

    index: int
    stream: ChatStream
    kind: Literal["chat", "text"]
    decode: Any
    """Token ids -> text."""
    likely: bool = False
    _told: int = field(default=0)  # tokens whose chances have been given
    _offset: int = field(default=0)  # characters of a completion's text before them

    @property
    def finish_reason(self) -> str:
        """OpenAI's words: an answer that was stopped here is as good as cut."""
        return {"stop": "stop", "length": "length"}.get(self.stream.finish_reason or "", "length")

    def choice(self, text: str) -> dict[str, Any]:
        """The whole choice, of a request that is not streamed."""
        said = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.kind == "chat"
            else {"text": text}
        )
        return {"index": self.index, **said, "logprobs": self._chances(), "finish_reason": self.finish_reason}

    def piece(self, text: str | None, begun: bool = True) -> dict[str, Any]:
        """A part of the choice, with the role where nothing was said before; None: its end."""
        delta = {} if begun else {"role": "assistant"}
        delta |= {} if text is None else {"content": text}
        said = {"delta": delta} if self.kind == "chat" else {"text": text or ""}
        return {
            "index": self.index,
            **said,
            "logprobs": self._chances(),
            "finish_reason": self.finish_reason if text is None else None,
        }

    def _chances(self) -> dict[str, Any] | None:
        """Of the tokens that have been read and not told yet."""
        if not self.likely:
            return None
        new = self.stream.chances[self._told : self.stream.tokens]
        self._told += len(new)
        if self.kind == "chat":
            return {"content": [self._entry(each) for each in new], "refusal": None}
        texts = [self.decode([each.token]) for each in new]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [each.log_prob for each in new],
            "top_logprobs": [{self.decode([token]): value for token, value in each.top} for each in new],
            "text_offset": offsets,
        }

    def _entry(self, chances: Chances) -> dict[str, Any]:
        top = [self._token(token, value) for token, value in chances.top]
        return self._token(chances.token, chances.log_prob) | {"top_logprobs": top}

    def _token(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self.decode([token])
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}


def usage(streams: list[ChatStream], choices: int) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of all answers."""
    prompt = sum(stream.prompt_tokens for stream in streams[::choices])
    answer = sum(stream.tokens for stream in streams)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
