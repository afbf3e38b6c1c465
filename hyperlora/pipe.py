"""Everything in one object: describe a task, get its adapter, chat with the adapted model."""

from pathlib import Path
from typing import Literal, overload

import torch
from transformers import PreTrainedTokenizerBase

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.chat import ChatEngine, ChatStream, one_thread
from hyperlora.embedder import load_embedder
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.presets import Preset, asset_or_hub, get_preset
from hyperlora.prompt import check_messages, use_trained_template, with_description

Message = dict[str, str]
Chat = str | list[Message]
NO_DESCRIPTION = "This adapter has no description that could be put in the prompt."


class Pipeline:
    """A hypernetwork, the base model that its adapters are for, and an engine that chats with both.

    `multi_turn` False: the model answers each message on its own, so that only the last one of a chat is sent, with the
    system's. `describe`: whether prompts hold the adapter's description where a chat does not say, as in the
    hypernetwork's training. All methods may be called from several threads.
    """

    def __init__(
        self,
        hyperlora: HyperLoRA,
        adapted: AdaptedModel,
        tokenizer: PreTrainedTokenizerBase,
        preset: Preset | None = None,
        base_name: str | None = None,
    ):
        self.hyperlora, self.adapted, self.tokenizer = hyperlora, adapted, tokenizer
        self.preset = preset
        self.base_name = hyperlora.config.base_model or base_name
        self.multi_turn = preset.multi_turn if preset else True
        self.describe = hyperlora.config.prompt_style == "description_input"
        self.engine = ChatEngine(adapted, tokenizer)

    @overload
    def adapt(self, description: str) -> Adapter: ...
    @overload
    def adapt(self, description: list[str]) -> list[Adapter]: ...
    def adapt(self, description: str | list[str]) -> Adapter | list[Adapter]:
        """A description -> its adapter; a list of them -> a list. `UserError` for one that is blank or too long."""
        # In the engine's thread, between two tokens: no adapter is in use there, and no other thread takes its cores.
        adapters = self.engine.call(lambda: self.hyperlora.generate(description))
        return adapters[0] if isinstance(description, str) else adapters

    @overload
    def chat(
        self,
        messages: Chat,
        adapter: Adapter | None = None,
        *,
        stream: Literal[False] = False,
        describe: bool | None = None,
        **options,
    ) -> str: ...
    @overload
    def chat(
        self,
        messages: Chat,
        adapter: Adapter | None = None,
        *,
        stream: Literal[True],
        describe: bool | None = None,
        **options,
    ) -> ChatStream: ...
    def chat(
        self,
        messages: Chat,
        adapter: Adapter | None = None,
        *,
        stream: bool = False,
        describe: bool | None = None,
        **options,
    ) -> str | ChatStream:
        """Answer a message, or a list of {"role", "content"}; `adapter` None is the base model.

        `describe`: put the adapter's description in front of the user's first message too; None: as in training.
        `options` are generation options by their `transformers` names: max_new_tokens, do_sample, temperature, top_p,
        top_k, repetition_penalty. With `stream` the answer comes as an iterable of pieces of text.
        """
        answer = self._submit([messages], [adapter], describe, options)[0]
        return answer if stream else "".join(answer)

    def chat_batch(
        self,
        chats: list[Chat],
        adapters: list[Adapter | None] | None = None,
        *,
        describe: bool | None = None,
        **options,
    ) -> list[str]:
        """Answer several chats, decoded together, each with its own adapter or None; the answers in their order.

        `describe` and `options` are those of `chat`.
        """
        adapters = [None] * len(chats) if adapters is None else adapters
        if len(adapters) != len(chats):
            raise UserError(f"There are {len(chats)} chats and {len(adapters)} adapters: give one (or None) for each.")
        answers = self._submit(chats, adapters, describe, options)
        try:
            return ["".join(answer) for answer in answers]
        finally:
            for answer in answers:
                answer.stop()

    def _submit(
        self, chats: list[Chat], adapters: list[Adapter | None], describe: bool | None, options: dict
    ) -> list[ChatStream]:
        if self.preset is not None:
            options = {"max_new_tokens": self.preset.max_new_tokens} | options
        prepared = [self._prepare(chat, adapter, describe) for chat, adapter in zip(chats, adapters, strict=True)]
        return self.engine.submit_many(prepared, adapters, **options)

    def _prepare(self, messages: Chat, adapter: Adapter | None, describe: bool | None) -> list[Message]:
        """The messages that are sent; new ones, the caller's stay as they are."""
        chat = check_messages(messages)
        if not self.multi_turn:
            chat = [message for message in chat[:-1] if message["role"] == "system"] + chat[-1:]
        chat[-1]["content"] = chat[-1]["content"].strip()
        if adapter is not None and (self.describe if describe is None else describe):
            if adapter.description is None and describe:
                raise UserError(NO_DESCRIPTION)
            first = next(message for message in chat if message["role"] == "user")
            first["content"] = with_description(adapter.description, first["content"])
        return chat

    def load_adapter(self, folder: str | Path) -> Adapter:
        """A PEFT folder -> an adapter that fits this base model; `UserError` says what does not fit."""
        adapter = Adapter.from_pretrained(folder)
        self.adapted.check_fit(adapter)
        made_for = adapter.base_model
        if made_for and self.base_name and not _is_path(made_for) and _last(made_for) != _last(self.base_name):
            raise UserError(f"This adapter was made for the base model {made_for}, and this one is {self.base_name}.")
        return adapter

    def close(self) -> None:
        """End all chats and leave the base model as it was."""
        self.engine.close()
        self.adapted.remove()


def pipeline(
    preset: str | None = "mini",
    *,
    base: str | Path | None = None,
    hyperlora: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Pipeline:
    """Load a preset, or any pair of `base` and `hyperlora` (folders or Hub ids); one of the two replaces the preset's.

    `dtype` is the base model's (float32 by default). Raises `UserError` where a file is missing or damaged, or where
    the two do not belong together.
    """
    chosen = None
    if base is None or hyperlora is None:
        if preset is None:
            raise UserError("Name a preset, or give both base and hyperlora.")
        chosen = get_preset(preset)
        base = asset_or_hub(chosen.base) if base is None else base
        hyperlora = asset_or_hub(chosen.hyperlora) if hyperlora is None else hyperlora
    with one_thread():
        generator = HyperLoRA.from_pretrained(hyperlora)
        config = generator.config
        model, tokenizer = load_base(base, dtype=dtype or torch.float32, device=device)
        use_trained_template(tokenizer, config)
        adapted = AdaptedModel(model, config.target_modules)
        if adapted.num_layers != config.num_layers:
            raise UserError(
                f"{hyperlora} makes adapters for {config.num_layers} layers, but {base} has {adapted.num_layers}: "
                "use the base model that it was trained on."
            )
        if config.task_input == "text":
            generator.embedder = load_embedder(config.embedder, config.embedder_revision, base=(model, tokenizer))
    return Pipeline(generator.to(device), adapted, tokenizer, chosen, str(base))


def _is_path(name: str) -> bool:
    """Whether a base model's name is somebody's folder, which says nothing about the model."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
