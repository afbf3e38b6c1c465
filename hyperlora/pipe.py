"""Everything in one object: describe a task, get its adapter, chat with the adapted model."""

import hashlib
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, overload

import torch
from transformers import PreTrainedTokenizerBase

from hyperlora import smollm2
from hyperlora.adapted import AdaptedModel
from hyperlora.base import DeviceMap, device_of, find_device, load_base, model_folder
from hyperlora.chat import ChatEngine, ChatStream, Options, one_thread
from hyperlora.config import HyperLoRAConfig
from hyperlora.devices import fast_bfloat16
from hyperlora.embedder import load_embedder
from hyperlora.errors import UserError
from hyperlora.files import cache_folder, resolve_folder
from hyperlora.generator import CONFIG, FILES, HyperLoRA
from hyperlora.halves import halve_linears
from hyperlora.lora import Adapter
from hyperlora.memory import CACHED
from hyperlora.presets import Preset, asset_or_hub, base_path, get_preset
from hyperlora.prompt import Message, check_messages, format_prompt, use_trained_template, with_description
from hyperlora.upload import unpack

Chat = str | list[Message]
NO_DESCRIPTION = "This adapter has no description that could be put in the prompt."


class Pipeline:
    """A hypernetwork, the base model that its adapters are for, and an engine that chats with both.

    `multi_turn` False: the model answers each message on its own, so that only the last one of a chat is sent, with the
    system's. `markdown`: whether answers are Markdown, for whoever shows them. `describe`: whether prompts hold the
    adapter's description where a chat does not say, as in the hypernetwork's training. `files`: the folder or the GGUF
    file that the base was read from, where that is known. All methods may be called from several threads, and none in a
    process forked off from this one. A pipeline that is dropped frees its models, as soon as none of its answers is
    being read.
    """

    def __init__(
        self,
        hyperlora: HyperLoRA,
        adapted: AdaptedModel,
        tokenizer: PreTrainedTokenizerBase,
        preset: Preset | None = None,
        base_name: str | None = None,
        files: Path | None = None,
    ):
        self.hyperlora, self.adapted, self.tokenizer = hyperlora, adapted, tokenizer
        self.files = files
        self.preset = preset
        self.base_name = hyperlora.config.base_model or base_name
        self.multi_turn = preset.multi_turn if preset else True
        self.markdown = preset.markdown if preset else True
        self.describe = hyperlora.config.chat_style != "input"
        self._style = hyperlora.config.chat_style if self.describe else "description_input"
        penalty = preset and preset.repetition_penalty
        self.engine = ChatEngine(adapted, tokenizer, unadapted={"repetition_penalty": penalty} if penalty else None)

    @property
    def defaults(self) -> Options:
        """How a chat that names no options is answered, but for those of `engine.unadapted`."""
        longest = {"max_new_tokens": self.preset.max_new_tokens} if self.preset else {}
        return Options(**self.engine.defaults | longest)

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
        self, messages: Chat, adapter: Adapter | None = None, *, stream: Literal[True], **options
    ) -> ChatStream: ...
    @overload
    def chat(self, messages: Chat, adapter: Adapter | None = None, **options) -> str: ...
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

        A list that ends with a message of the assistant's begins the answer; what is given back goes on from there.
        `describe`: put the adapter's description in front of the user's first message too; None: as in training.
        `options` are generation options by their `transformers` names: max_new_tokens, do_sample, temperature, top_p,
        top_k, repetition_penalty, stop_strings (the answer ends before them); and the `seed` of what is sampled. With
        `stream` the answer comes as an iterable of pieces of text; once that is read, its `finish_reason` is "length"
        where the answer was cut at max_new_tokens, which a text does not show.
        """
        answer = self._submit([messages], [adapter], describe, options)[0]
        return answer if stream else "".join(answer)

    @overload
    def chat_batch(
        self, chats: list[Chat], adapters: list[Adapter | None] | None = None, *, stream: Literal[True], **options
    ) -> list[ChatStream]: ...
    @overload
    def chat_batch(self, chats: list[Chat], adapters: list[Adapter | None] | None = None, **options) -> list[str]: ...
    def chat_batch(
        self,
        chats: list[Chat],
        adapters: list[Adapter | None] | None = None,
        *,
        stream: bool = False,
        describe: bool | None = None,
        **options,
    ) -> list[str] | list[ChatStream]:
        """Answer several chats, decoded together, each with its own adapter or None; the answers in their order.

        `stream`, `describe` and `options` are those of `chat`.
        """
        adapters = [None] * len(chats) if adapters is None else adapters
        if len(adapters) != len(chats):
            raise UserError(f"There are {len(chats)} chats and {len(adapters)} adapters: give one (or None) for each.")
        answers = self._submit(chats, adapters, describe, options)
        if stream:
            return answers
        try:
            return ["".join(answer) for answer in answers]
        finally:
            for answer in answers:
                answer.stop()

    def chat_all(
        self,
        chats: Iterable[Chat],
        adapter: Adapter | None = None,
        *,
        describe: bool | None = None,
        ended: SimpleQueue | None = None,
        **options,
    ) -> Iterator[tuple[int, str | UserError]]:
        """Answer any number of chats behind all others: each one's number and its answer, or what is wrong with it, as
        they come.

        They take at most half of the batch, and only what is answered next is read from `chats`. Leaving the iteration
        ends those that run; so does a None that another thread puts into `ended`. `describe` and `options` are those
        of `chat`.
        """
        ended = SimpleQueue() if ended is None else ended
        running: dict[ChatStream, int] = {}
        left = enumerate(chats)
        try:
            while True:
                while len(running) < self.engine.max_batch and (following := next(left, None)):
                    i, chat = following
                    try:
                        [stream] = self._submit([chat], [adapter], describe, options | {"ended": ended})
                        running[stream] = i
                    except UserError as error:
                        yield i, error
                if not running:
                    return
                if (stream := ended.get()) is None:
                    return
                i = running.pop(stream)
                try:
                    answer = "".join(stream)
                except UserError as error:
                    answer = error
                yield i, answer
        finally:
            for stream in running:
                stream.stop()

    def _submit(
        self, chats: list[Chat], adapters: list[Adapter | None], describe: bool | None, options: dict
    ) -> list[ChatStream]:
        if self.preset is not None:
            options = {"max_new_tokens": self.preset.max_new_tokens} | options
        prepared = [self.prepare(chat, adapter, describe) for chat, adapter in zip(chats, adapters, strict=True)]
        return self.engine.submit_many(prepared, adapters, **options)

    def prepare(self, messages: Chat, adapter: Adapter | None, describe: bool | None = None) -> list[Message]:
        """The messages that are sent for `chat`'s; new ones, the caller's stay as they are."""
        chat = check_messages(messages)
        if not self.multi_turn:
            last = max(i for i, message in enumerate(chat) if message["role"] == "user")
            chat = [message for message in chat[:last] if message["role"] == "system"] + chat[last:]
        if adapter is not None and (self.describe if describe is None else describe):
            if adapter.description is None and describe:
                raise UserError(NO_DESCRIPTION)
            first = next(message for message in chat if message["role"] == "user")
            first["content"] = with_description(adapter.description, first["content"], self._style)
        return chat

    def shorten(
        self, messages: Chat, adapter: Adapter | None = None, describe: bool | None = None, *, room: int = 0
    ) -> list[Message]:
        """The messages without as many of the oldest as it takes for an answer of `room` tokens to fit the context.

        The system's stay, and what comes from the user's last one on: alone they may still be too long.
        """
        chat = check_messages(messages)
        system = [message for message in chat if message["role"] == "system"]
        others = [message for message in chat if message["role"] != "system"]
        asked = [i for i, message in enumerate(others) if message["role"] == "user"]

        def fits(start: int) -> bool:
            prompt = self.prepare(system + others[start:], adapter, describe)
            return len(format_prompt(self.tokenizer, prompt)) + room <= self.engine.context

        if fits(asked[0]):
            return chat
        return system + others[asked[bisect_left(asked, True, hi=len(asked) - 1, key=fits)] :]

    def load_adapter(self, path: str | Path) -> Adapter:
        """A PEFT folder, or anybody's zip of one -> an adapter that fits this base model; `UserError` says what does
        not fit."""
        path = Path(path)
        if path.is_file():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    unpack(path, Path(folder))
                    return self.load_adapter(folder)
                except UserError as error:  # in the words of the zip
                    raise UserError(str(error).replace(folder + os.sep, "")) from error
        adapter = Adapter.from_pretrained(path)
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
    base_revision: str | None = None,
    hyperlora_revision: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | str | None = None,
    quantize: Literal["4bit", "8bit"] | None = None,
    device_map: DeviceMap | None = None,
    attention: str | None = None,
    embedder_device: str = "cpu",
    local_files_only: bool = False,
) -> Pipeline:
    """Load a preset, or any pair of `base` and `hyperlora`; one of the two replaces the preset's.

    Both are folders or Hub ids, the base may be a GGUF file too.

    `hyperlora` may also be a folder in the public text-to-lora format. `device`, `quantize`, `device_map`, `attention`
    and `local_files_only` are those of `load_base`; so is `dtype`, where None is bfloat16 on a GPU or in few bits, and
    float32 on the CPU (not for SmolLM2 on one that has instructions for bfloat16). The hypernetwork computes where the
    base's embeddings do, a description's encoder on `embedder_device`. Raises `UserError` where a file is missing or
    damaged, where an option is not possible here, or where the two do not belong together.
    """
    chosen, subfolder = None, None
    if base is None or hyperlora is None:
        if preset is None:
            raise UserError("Name a preset, or give both base and hyperlora.")
        chosen = get_preset(preset)
        if base is not None or hyperlora is not None:  # its words are of the two together
            chosen = replace(chosen, summary="", description="")
        if base is None:
            base, base_revision = base_path(chosen.name, local_files_only), chosen.base_revision
        if hyperlora is None:
            hyperlora, hyperlora_revision = asset_or_hub(chosen.hyperlora), chosen.hyperlora_revision
            subfolder = chosen.hyperlora_subfolder
    if dtype is None:
        whole = device_map is None and quantize is None and find_device(device).type == "cpu"
        fast = chosen is not None and chosen.base == smollm2.NAME and fast_bfloat16("cpu")
        dtype = torch.float32 if whole and not fast else torch.bfloat16
    embedder_device = str(find_device(embedder_device))
    with one_thread():
        generator, kept = _open(hyperlora, subfolder, hyperlora_revision, f"{base}@{base_revision}", local_files_only)
        config = generator.config
        model, tokenizer = load_base(
            base,
            base_revision,
            dtype=dtype,
            device=device,
            quantize=quantize,
            device_map=device_map,
            attention=attention,
            local_files_only=local_files_only,
        )
        use_trained_template(tokenizer, config)
        adapted = AdaptedModel(model, config.target_modules)
        if adapted.num_layers != config.num_layers:
            raise UserError(
                f"{hyperlora} makes adapters for {config.num_layers} layers, but {base} has {adapted.num_layers}: "
                "use the base model that it was trained on."
            )
        if config.task_input == "text":
            generator.embedder = load_embedder(
                config.embedder, config.embedder_revision, embedder_device, (model, tokenizer), local_files_only
            )
        if model.num_parameters() > CACHED:
            halve_linears(model)
        generator.to(device_of(model.get_input_embeddings()))
    given = Path(base).expanduser()
    files = given if given.is_file() else model_folder(base, base_revision, local_files_only=True)
    pipe = Pipeline(generator, adapted, tokenizer, chosen, str(base), files.resolve())
    if config.module_order_assumed:
        from hyperlora.interop.order import choose_order

        try:
            pipe.hyperlora = pipe.engine.call(lambda: choose_order(generator, adapted, tokenizer))
        except BaseException:
            pipe.close()
            raise
        if kept is not None and not pipe.hyperlora.config.module_order_assumed:
            with suppress(OSError):  # a disk that is full, or may not be written, only means to choose again
                pipe.hyperlora.save_pretrained(kept)
    return pipe


def _open(
    source: str | Path, subfolder: str | None, revision: str | None, base: str, local_files_only: bool
) -> tuple[HyperLoRA, Path | None]:
    """The hypernetwork; and, where the order of its module types is not settled, the folder to keep it in once it is.

    That folder is in the user's cache, one for each checkpoint, revision and `base`.
    """
    from hyperlora.interop import text_to_lora

    here = Path(source).expanduser()
    public = subfolder is not None or (here / text_to_lora.WEIGHTS).is_file()
    names = FILES
    if public:
        names = (text_to_lora.WEIGHTS, text_to_lora.ARGS, text_to_lora.ADAPTER)
    inside = f"{subfolder}/" if subfolder else ""
    folder = resolve_folder(source, revision, [inside + name for name in names], local_files_only) / inside
    generator, kept = None, None
    if public or HyperLoRAConfig.load(folder / CONFIG).module_order_assumed:
        kept = _kept([path for name in names for path in sorted(folder.glob(name))], base)
        if (kept / CONFIG).is_file():
            with suppress(UserError):  # damaged: read the original again
                generator = HyperLoRA.from_pretrained(kept)
    if generator is None:
        generator = text_to_lora.import_checkpoint(folder) if public else HyperLoRA.from_pretrained(folder)
    generator.name = folder.resolve().name if here.is_dir() else f"{source}/{inside}".rstrip("/")
    return generator, kept


def _kept(files: list[Path], base: str) -> Path:
    """Where in the user's cache the native form of these files for that base is kept; nothing is written yet."""
    facts = [base]
    for file in files:
        if file.is_file():
            real = file.resolve()  # in the Hub's cache, named by what it holds
            facts += [str(real), str(real.stat().st_size), str(real.stat().st_mtime_ns)]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    return cache_folder("settled") / key


def _is_path(name: str) -> bool:
    """Whether a base model's name is somebody's folder, which says nothing about the model."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
