"""From messages to the token ids that a model was trained on: chat templates, system messages, descriptions."""

import re

from transformers import PreTrainedTokenizerBase

from hyperlora.config import HyperLoRAConfig, PromptStyle
from hyperlora.errors import UserError

MAX_CHARACTERS = 1_000_000  # of one conversation: more than any context, and quick to tokenize
ROLES = ("system", "user", "assistant")
CUT = "\ue000"  # a private character: where a text is cut, so that no control token is found in it

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
TRAINED = {
    "mistralai/Mistral-7B-Instruct-v0.2": MISTRAL,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA,
    "google/gemma-2-2b-it": GEMMA,
}


def trained_template(base_model: str) -> str | None:
    """The chat template (Jinja) that the public text-to-lora hypernetworks for this base model, a Hub id, were trained
    with; None for a base that they know nothing of.

    It begins with the BOS token, so that the tokenizer must add none.
    """
    return TRAINED.get(base_model)


def use_trained_template(tokenizer: PreTrainedTokenizerBase, *configs: HyperLoRAConfig) -> None:
    """Give the tokenizer the chat template that hypernetworks were trained with; its own stays where they store none.

    Raises `UserError` where two of them were trained with different ones.
    """
    templates = {config.chat_template or tokenizer.chat_template for config in configs}
    if len(templates) > 1:
        raise UserError("The hypernetworks were trained with different chat templates: give one at a time.")
    if templates:
        tokenizer.chat_template = templates.pop()


def with_description(description: str | None, message: str, style: PromptStyle = "description_input") -> str:
    """The user's message with the description, where there is one, before it as in prompts of that style."""
    if description is None or style == "input":
        return message
    return f"{description}\n{message}" if style == "description_input" else f"{description}\n\n{message}"


def check_messages(messages: str | list[dict[str, str]]) -> list[dict[str, str]]:
    """A text, or a list of {"role", "content"} whose last is the user's -> that list; `UserError` where it is not."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise UserError("A chat needs a message: a text, or a list of messages with a role and a content.")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError('Each message must be {"role": ..., "content": ...} with a text as its content.')
        if message.get("role") not in ROLES:
            raise UserError(f"A message's role must be one of {', '.join(ROLES)}, not {message.get('role')!r}.")
    if messages[-1]["role"] != "user":
        raise UserError("The last message must be the user's.")
    if not messages[-1]["content"].strip():
        raise UserError("The message is empty: write something for the model to answer.")
    if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
        raise UserError(f"The conversation is longer than {MAX_CHARACTERS:,} characters: shorten it.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def apply_template(tokenizer: PreTrainedTokenizerBase, chat: list, **options: bool) -> str | list:
    """`apply_chat_template`, for training as for chat: models that may think first, as Qwen3, answer at once."""
    return tokenizer.apply_chat_template(chat, enable_thinking=False, **options)


def format_prompt(tokenizer: PreTrainedTokenizerBase, messages: str | list[dict[str, str]]) -> list[int]:
    """Messages -> token ids through the chat template, up to where the answer starts.

    A system message that the template refuses or leaves out goes in front of the user's message that follows it.
    Control tokens that a message spells out ("</s>") are read as plain text. Raises `UserError` where there is no chat
    template, or it does not take the messages.
    """
    messages = check_messages(messages)
    if not tokenizer.chat_template:
        raise UserError("The base model's tokenizer has no chat template: use an instruction-tuned base model.")
    if any(message["role"] == "system" for message in messages) and not _takes_system(tokenizer, messages):
        messages = _fold_system(messages)
    try:
        messages = [message | {"content": _cut(tokenizer, message["content"])} for message in messages]
        text = apply_template(tokenizer, messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template refuses what it does not know, such as two messages of one role in a row
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"The base model's chat template does not take these messages ({reason}).") from error
    first, *others = text.split(CUT)
    newline = tokenizer.encode("\n", add_special_tokens=False)
    ids = tokenizer.encode(first, add_special_tokens=False)
    for piece in others:
        # After a newline, as SentencePiece puts a space before what it takes for the beginning of a text.
        after = tokenizer.encode("\n" + piece, add_special_tokens=False)
        whole = after[: len(newline)] == newline
        ids += after[len(newline) :] if whole else tokenizer.encode(piece, add_special_tokens=False)
    return ids


def _cut(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a CUT inside each control token that it spells out.

    `sanitize_control_tokens` of `apply_chat_template` does as much, but transformers 5.18 ignores it without a word.
    """
    text = text.replace(CUT, "")
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    control = [t.content for t in added if t.special or t.content in tokenizer.chat_template]
    starts = "|".join(re.escape(token) for token in control if token in text)  # few: the expression is slow
    return re.sub(f"(?={starts}).", rf"\g<0>{CUT}", text, flags=re.DOTALL) if starts else text


def _takes_system(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> bool:
    """Whether the template writes the system messages out; some refuse them, some drop them without a word."""
    try:
        text = apply_template(tokenizer, messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # any kind, as each template raises its own
        return False
    return all(message["content"].strip() in text for message in messages if message["role"] == "system")


def _fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages without system messages, the text of each in front of the user's message that follows it."""
    folded, waiting = [], []
    for message in messages:
        if message["role"] == "system":
            waiting += [message["content"]] if message["content"].strip() else []
        elif message["role"] == "user":
            folded.append({"role": "user", "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            folded.append(message)
    return folded
