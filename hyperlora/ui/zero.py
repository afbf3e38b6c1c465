"""ZeroGPU Spaces: an answer is written by a process that is forked for it and lent a GPU for as long as that takes.

The page's process has none. What it puts on `cuda` while it starts is moved to a file when the page opens, and from
there to the GPU of each such process, the worker; descriptions are read and adapters made here, on the CPU.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import fields
from queue import SimpleQueue

import gradio as gr
import spaces
import torch
from safetensors.torch import load, save

from hyperlora.arguments import named, open_pipeline
from hyperlora.chat import ChatEngine
from hyperlora.choice import TINY, Choice, Pair, consider
from hyperlora.errors import UserError
from hyperlora.halves import whole_linears
from hyperlora.lora import Adapter
from hyperlora.pipe import Chat, Pipeline
from hyperlora.presets import PRESETS
from hyperlora.prompt import Message

START, PACE = 15, 20  # seconds until the first token, and tokens a second from then on: what a GPU is asked for
LONGEST = 120  # seconds: what every visitor may ask for
NO_GPU = "Only chats and comparisons are lent a GPU on this Space: for all else run HyperLoRA on a machine of your own."

Packed = tuple[bytes, list[str], dict[str, object]]
Written = tuple[str, int, str | UserError | None]  # a piece of text, tokens so far, and at the end why it is one


def open_zero(args: argparse.Namespace, say: Callable[[str], None], choice: Choice | None) -> "ZeroPipeline":
    """What was named, or Mistral-7B where that can be had, or a smaller model, before the page opens.

    Raises `UserError` as `open_pipeline` does.
    """
    if not named(args):
        try:
            choice = consider(Pair(PRESETS["mistral-7b"]), "cpu", "bfloat16")
        except UserError as error:
            say(str(error))
    return ZeroPipeline(open_pipeline(args, lambda question: None, say, choice=choice))


class ZeroPipeline(Pipeline):
    """A pipeline whose answers are written by workers. Nothing else may compute with its base model."""

    def __init__(self, pipe: Pipeline):
        """Takes the place of `pipe`, which is on the CPU, and puts its base model on `cuda`."""
        model = pipe.adapted.model
        whole_linears(model)
        model.to("cuda", torch.bfloat16 if model.num_parameters() > TINY else model.dtype)
        super().__init__(pipe.hyperlora, pipe.adapted, pipe.tokenizer, pipe.preset, pipe.base_name, pipe.files)
        pipe.engine.close()
        self._page, self._worker = os.getpid(), None
        model.register_forward_pre_hook(self._refuse)
        self._write = spaces.GPU(duration=seconds)(self._written)

    def _refuse(self, *_: object) -> None:
        """Before each forward: in the page's process the weights are gone."""
        if os.getpid() == self._page:
            raise UserError(NO_GPU)

    def _submit(
        self, chats: list[Chat], adapters: list[Adapter | None], describe: bool | None, options: dict
    ) -> "list[Answer]":
        options = {"max_new_tokens": self.defaults.max_new_tokens} | options
        options["max_new_tokens"] = min(options["max_new_tokens"], (LONGEST - START) * PACE)
        prepared = [self.prepare(chat, adapter, describe) for chat, adapter in zip(chats, adapters, strict=True)]
        packed = [pack(adapter) if adapter else None for adapter in adapters]
        return [Answer(self._write, *asked, options) for asked in zip(prepared, packed, strict=True)]

    def chat_all(
        self,
        chats: Iterable[Chat],
        adapter: Adapter | None = None,
        *,
        describe: bool | None = None,
        ended: SimpleQueue | None = None,
        **options,
    ) -> Iterator[tuple[int, str | UserError]]:
        """As `Pipeline.chat_all`, one after the other, each with a GPU of its own."""
        for i, chat in enumerate(chats):
            if ended is not None and not ended.empty():
                return
            try:
                yield i, self.chat(chat, adapter, describe=describe, **options)
            except UserError as error:
                yield i, error

    def _written(self, chat: list[Message], packed: Packed | None, options: dict) -> Iterator[Written]:
        """In the worker, which may be kept for further answers: what an engine of its own writes.

        What was forked off the page's engine has no thread.
        """
        try:
            self._worker = self._worker or ChatEngine(self.adapted, self.tokenizer, unadapted=self.engine.unadapted)
            stream = self._worker.submit(chat, unpack(packed) if packed else None, **options)
            for piece in stream:
                yield piece, stream.tokens, None
            yield "", stream.tokens, stream.finish_reason
        except UserError as error:  # of any other the page would hear the name alone
            yield "", 0, error


class Answer:
    """A `ChatStream` that is written while it is read, in the thread of the visitor's event, whose quota it takes."""

    def __init__(self, write: Callable[..., Iterator[Written]], *asked: object):
        self.text, self.tokens, self.stopped = "", 0, False
        self.finish_reason: str | None = None
        self._write, self._asked = write, asked

    def stop(self) -> None:
        """End the answer at its next piece."""
        self.stopped = True
        self.finish_reason = self.finish_reason or "stopped"

    def __iter__(self) -> Iterator[str]:
        if self.stopped:
            return
        try:
            with closing(self._write(*self._asked)) as written:  # which ends the worker's too
                for piece, tokens, end in written:
                    if isinstance(end, UserError):
                        raise end
                    if self.stopped:
                        return
                    self.tokens = max(tokens, self.tokens)
                    if piece:
                        self.text += piece
                        yield piece
                    self.finish_reason = self.finish_reason or end
        except gr.Error as error:  # the host's: no quota, no GPU, or the worker has ended
            raise UserError(f"{error.title}: {str(error.message).rstrip('.')}.") from error
        finally:
            self.stopped = True


def seconds(chat: list[Message], packed: Packed | None, options: dict) -> float:
    """How long the GPU is asked for, from what `_written` is asked: until it has read and written all."""
    read = sum(len(message["content"]) for message in chat) / 10_000
    return min(LONGEST, START + read + options["max_new_tokens"] / PACE)


def pack(adapter: Adapter) -> Packed:
    """An adapter for another process, which shares no memory with this one."""
    tensors = {f"{module}.{side}": pair[i] for module, pair in adapter.weights.items() for i, side in enumerate("AB")}
    more = {field.name: getattr(adapter, field.name) for field in fields(adapter) if field.name != "weights"}
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}), list(adapter.weights), more


def unpack(packed: Packed) -> Adapter:
    """What `pack` made."""
    data, modules, more = packed
    tensors = load(data)  # in an order of its own
    return Adapter({module: (tensors[f"{module}.A"], tensors[f"{module}.B"]) for module in modules}, **more)
