"""From messages to the token ids that a model was trained on: chat templates, system messages, descriptions."""

import re
from collections.abc import Sequence
from functools import lru_cache

from jinja2 import Environment
from transformers import PreTrainedTokenizerBase

from hyperlora.config import HyperLoRAConfig, PromptStyle
from hyperlora.errors import UserError, first_line
from hyperlora.text import check_text

Message = dict[str, str]
MAX_CHARACTERS = 1_000_000  # of one conversation: more than any context, and quick to tokenize
ROLES = ("system", "user", "assistant")
# Private characters: around a control token that a text spells out (those of transformers), and around a whole text.
START, END, FRAME = "\U000f0000", "\U000f0001", "\U000f0002"
MARKED = re.compile(f"{START}([^{START}{END}]*){END}|[{START}{END}]")

# What the public text-to-lora hypernetworks saw, which is not what the base models' own tokenizers write: there always
# was a system message, and it was empty. Turns after the first are as the base's own template writes them.
MISTRAL = (
    "{{ bos_token }}"
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for message in (messages[1:] if messages[0]['role'] == 'system' else messages) %}"
    "{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + (system + '\\n\\n' if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}"
    "{% else %}"
    "{{ raise_exception('A system message must be the first.') }}"
    "{% endif %}"
    "{% endfor %}"
)
LLAMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>{% endif %}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (  # its own template refuses a system message
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}<start_of_turn>system\n<end_of_turn>\n{% endif %}"
    "{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TRAINED = {  # the base model's Hub id -> its template; that begins with BOS, so that the tokenizer must add none
    "mistralai/Mistral-7B-Instruct-v0.2": MISTRAL,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA,
    "google/gemma-2-2b-it": GEMMA,
}


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template, the default one of several; `UserError` where several have no default."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(
                f"The base model's tokenizer has several chat templates ({', '.join(sorted(template))}), no default: "
                "name one of them default, or keep that one alone as its chat_template.jinja."
            )
        return template["default"]
    return template or None


def use_trained_template(tokenizer: PreTrainedTokenizerBase, *configs: HyperLoRAConfig) -> None:
    """Give the tokenizer the chat template that hypernetworks were trained with; its own stays where they store none.

    Raises `UserError` where two of them were trained with different ones.
    """
    templates = {config.chat_template or own_template(tokenizer) for config in configs}
    if len(templates) > 1:
        raise UserError("The hypernetworks were trained with different chat templates: give one at a time.")
    if templates:
        tokenizer.chat_template = templates.pop()


def with_description(description: str | None, message: str, style: PromptStyle = "description_input") -> str:
    """The user's message, stripped, with the description, where there is one, before it as in prompts of that style."""
    message = message.strip()
    if description is None or style == "input":
        return message
    return f"{description}\n\n{message}" if style == "definition_input" else f"{description}\n{message}"


def check_messages(messages: str | list[Message]) -> list[Message]:
    """A text, or a list of {"role", "content"} -> that list; `UserError` where it is none to be answered.

    The last is the user's, or behind that the assistant's: the beginning of the answer, which goes on from there.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise UserError("A chat needs a message: a text, or a list of messages with a role and a content.")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError('Each message must be {"role": ..., "content": ...} with a text as its content.')
        if message.get("role") not in ROLES:
            raise UserError(f"A message's role must be one of {', '.join(ROLES)}, not {message.get('role')!r}.")
        check_text(message["content"], "The message")
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked or asked[-1]["role"] != "user":
        raise UserError("The last message must be the user's, or the beginning of the answer to it.")
    if not asked[-1]["content"].strip():
        raise UserError("The message is empty: write something for the model to answer.")
    if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
        raise UserError(f"The conversation is longer than {MAX_CHARACTERS:,} characters: shorten it.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


# ---- chats to token ids, for training as for chat ----


def format_prompt(tokenizer: PreTrainedTokenizerBase, messages: str | list[Message]) -> list[int]:
    """Messages, checked, -> token ids, up to where the answer starts, or goes on, as in `encode_chats`."""
    prompt, begun = format_begun(tokenizer, messages)
    return prompt + begun


def format_begun(tokenizer: PreTrainedTokenizerBase, messages: str | list[Message]) -> tuple[list[int], list[int]]:
    """As `format_prompt`, with the ids of an answer that the messages begin apart. Spaces at its end are left out: the
    next token has its own."""
    chat = check_messages(messages)
    if chat[-1]["role"] == "assistant":
        chat[-1]["content"] = chat[-1]["content"].rstrip(" ")
        if chat[-1]["content"]:
            prompt, begun = encode_answers(tokenizer, [chat])[0]
            return prompt, begun[:-1]  # without the end of the turn
        chat.pop()
    return encode_chats(tokenizer, [chat])[0], []


def encode_chats(tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]]) -> list[list[int]]:
    """Chats -> token ids through the chat template, up to where the answer starts if the last message is the user's.

    Space around a user's message is left out. A system message that the template refuses, leaves out or writes only in
    part goes in front of the user's message that follows it. Control tokens that a message spells out ("</s>") are read
    as plain text: the ids are those of `apply_chat_template` with `sanitize_control_tokens`, which transformers has
    since 5.20. Raises `UserError` where there is no chat template, or it does not take the messages.
    """
    controls = control_tokens(tokenizer)
    return encode_marked(tokenizer, [chat_text(tokenizer, mark_chat(chat, controls)) for chat in chats])


def chat_text(tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> str:
    """The text of a chat, with system messages where `encode_chats` has them. Raises `UserError` as that does."""
    try:
        return apply_template(tokenizer, _fold_system(tokenizer, chat))
    except UserError:
        raise
    except Exception as error:  # a template refuses what it does not know, as two messages of one role in a row
        reason = first_line(error)
        raise UserError(f"The base model's chat template does not take these messages ({reason}).") from error


def mark_chat(chat: list[Message], controls: Sequence[str]) -> list[Message]:
    """The chat as a template takes it: the user's messages stripped, control tokens marked as in `mark`."""
    texts = (message["content"].strip() if message["role"] == "user" else message["content"] for message in chat)
    return [message | {"content": mark(text, controls)} for message, text in zip(chat, texts, strict=True)]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]]
) -> list[tuple[list[int], list[int]]]:
    """Chats whose last message is the answer to learn -> the token ids of each one's prompt and of its answer.

    The answer ends in the token with which the template ends a turn, or else in the tokenizer's end of sequence. Raises
    `UserError` where the template writes another prompt once an answer follows.
    """
    end = turn_end(tokenizer)
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise UserError("The base model's tokenizer and chat template have no token that ends an answer.")
    pairs = []
    prompts = encode_chats(tokenizer, [chat[:-1] for chat in chats])
    for prompt, ids in zip(prompts, encode_chats(tokenizer, chats), strict=True):
        if ids[: len(prompt)] != prompt:
            raise UserError(
                "The chat template changes the prompt once an answer follows: training, and answers that are begun, "
                "need one that does not."
            )
        answer = ids[len(prompt) :]
        ends = [i for i, token in enumerate(answer) if token == end]
        pairs.append((prompt, [*answer[: ends[-1] if ends else None], end]))  # templates may put a newline behind it
    return pairs


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Texts -> token ids, with none that the tokenizer adds by itself; control tokens are read as in `encode_chats`."""
    controls = control_tokens(tokenizer)
    return encode_marked(tokenizer, [mark(text, controls) for text in texts])


def apply_template(tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> str:
    """What the chat template writes, up to where the answer starts if the last message is the user's.

    Models that may think first, as Qwen3, answer at once. What a template raises is its own.
    """
    template = own_template(tokenizer)
    if template is None:
        raise UserError("The base model's tokenizer has no chat template: use an instruction-tuned base model.")
    text = tokenizer.apply_chat_template(
        chat,
        chat_template=template,
        add_generation_prompt=chat[-1]["role"] == "user",
        enable_thinking=False,
        tokenize=False,
    )
    return check_text(text, "The base model's chat template")


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which the chat template ends an assistant's turn; None where that is text, or nothing."""
    try:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": FRAME}]
        _, written, rest = apply_template(tokenizer, chat).rpartition(FRAME)
    except Exception:  # no template, or one that takes no such chat
        return None
    found = [token for token in control_tokens(tokenizer) if token in rest] if written else []
    return tokenizer.convert_tokens_to_ids(min(found, key=rest.index)) if found else None


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that only the template may write, longest first: special ones, and added ones that stand in it."""
    named, literals = getattr(tokenizer, "chat_control_tokens", None), _literals(own_template(tokenizer) or "")
    found = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special
        or (token.content in named if named is not None else token.content in literals and token.content.strip())
    ]
    return sorted(found, key=len, reverse=True)


@lru_cache
def _literals(template: str) -> str:
    """All that a chat template (Jinja) writes by itself: its text, and the strings in its code."""
    try:
        tokens = list(Environment(trim_blocks=True, lstrip_blocks=True).lexer.tokenize(template))
    except Exception:  # it is broken, as whoever applies it hears
        return ""
    return "\0".join(token.value for token in tokens if token.type in ("data", "string"))


def mark(text: str, controls: Sequence[str]) -> str:
    """The text with START and END around each of the `control_tokens` that it spells out: `encode_marked` reads it."""
    text = text.replace(START, "").replace(END, "")
    found = "|".join(re.escape(token) for token in controls if token in text)  # few: the expression is slow
    return re.sub(found, rf"{START}\g<0>{END}", text) if found else text


def encode_marked(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Texts with marks -> token ids, what is marked read as plain text; none that the tokenizer adds by itself."""
    plain = [text for text in texts if not MARKED.search(text)]
    rows = iter(tokenizer(plain, add_special_tokens=False).input_ids if plain else ())
    return [_encode_pieces(tokenizer, text) if MARKED.search(text) else next(rows) for text in texts]


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    first, *pieces = MARKED.split(text)  # text, control token, text, ...; None for a mark that a template tore off
    added = tokenizer.added_tokens_encoder
    newline = tokenizer.encode("\n", add_special_tokens=False)

    def encode(piece: str, as_text: bool) -> list[int]:
        ids = _encode_as_text(tokenizer, piece) if as_text else tokenizer.encode(piece, add_special_tokens=False)
        return list(ids)

    def after_text(piece: str, as_text: bool) -> list[int]:
        # After a newline, as SentencePiece puts a space before what it takes for the beginning of a text.
        ids = encode("\n" + piece, as_text)
        return ids[len(newline) :] if ids[: len(newline)] == newline else encode(piece, as_text)

    ids = encode(first, False)
    for i, piece in enumerate(pieces):
        if not piece:
            continue
        control = added.get(piece) if i % 2 == 0 else None
        new = after_text(piece, control is not None)
        if control in new:  # a tokenizer that has it among its words
            new = [token for character in piece for token in after_text(character, True)]
        if control in new:
            raise UserError(f"The base model's tokenizer cannot read {piece!r} as text: leave it out.")
        ids += new
    return ids


def _encode_as_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids without a look at the added tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]


# ---- system messages ----


def _fold_system(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
    """The messages with as many of the system's as the template writes out: all, the first, or none.

    The text of each other one is in front of the user's message that follows it.
    """
    system = [i for i, message in enumerate(messages) if message["role"] == "system"]
    if not system:
        return messages
    for kept in (system, system[:1]):
        if _writes_system(tokenizer, folded := _without_system(messages, kept)):
            return folded
    return _without_system(messages, [])


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template has a place of its own for a system message."""
    return _writes_system(tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])


def _writes_system(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> bool:
    """Whether the template writes every system message, whole; some refuse them, some drop them without a word.

    With a FRAME around it, its text cannot be taken for the same words in another message.
    """
    bare = [message | {"content": message["content"].replace(FRAME, "").strip()} for message in messages]
    texts = {i: m["content"] for i, m in enumerate(bare) if m["role"] == "system" and m["content"]}
    frames = {i: f"{FRAME}{i}{FRAME}" for i in texts}
    framed = [m | {"content": frames[i] + texts[i] + frames[i]} if i in texts else m for i, m in enumerate(bare)]
    try:
        plain, text = apply_template(tokenizer, bare), apply_template(tokenizer, framed)
    except Exception:  # any kind, as each template raises its own
        return False
    whole = all(frames[i] + texts[i] + frames[i] in text for i in texts)
    return whole and re.sub(f"{FRAME}\\d+{FRAME}", "", text) == plain


def _without_system(messages: list[Message], kept: list[int]) -> list[Message]:
    """The messages without those of the system that are not at the places `kept`, whose texts wait for the user's."""
    folded, waiting = [], []
    for i, message in enumerate(messages):
        if message["role"] == "system" and i not in kept:
            waiting += [message["content"]] if message["content"].strip() else []
        elif message["role"] == "user":
            folded.append({"role": "user", "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            folded.append(message)
    return folded
