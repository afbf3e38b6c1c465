"""Messages in, streamed text out, many users at once: one worker thread decodes all running requests together.

A request joins the running batch at the next token and leaves it when it is done. Every row of the batch has its own
adapter, its own options, and its own left padding in the shared key-value cache.
"""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, fields
from inspect import signature
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hyperlora.adapted import AdaptedModel
from hyperlora.base import context_length, device_of, end_tokens, out_of_memory
from hyperlora.batch import Batch, merge, select
from hyperlora.errors import UserError
from hyperlora.lora import Adapter
from hyperlora.prompt import format_prompt

T = TypeVar("T")
WINDOW = 16  # tokens that are decoded again with the next one


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, this thread computes on one core.

    PyTorch's OpenMP keeps a team of threads for every thread that ever computed on several cores, and once there are
    more of them than cores it lets all teams sleep between any two operations: with two teams on two cores, decoding
    a small model takes three times as long. So only the engine's thread computes on several.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class Options:
    """How to choose tokens, by the names that `transformers` gives them. A value out of range raises `UserError`."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not isinstance(self.do_sample, bool):
            raise UserError("do_sample must be True or False.")
        for name, kind, low, high in (
            ("temperature", (int, float), 1e-3, 100),
            ("top_p", (int, float), 1e-6, 1),
            ("top_k", int, 0, 10**9),
            ("repetition_penalty", (int, float), 1e-3, 100),
            ("max_new_tokens", int, 1, 10**6),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                hint = "; for the likeliest answer set do_sample=False" if name == "temperature" else ""
                raise UserError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}{hint}.")

    @classmethod
    def said_by(cls, config: GenerationConfig) -> dict[str, bool | float]:
        """What a model's generation_config says, by these names, a value without any meaning left out.

        A temperature or a top_p of 0 is greedy decoding, a top_k below 0 means all tokens.
        """
        said = {option.name: getattr(config, option.name, None) for option in fields(cls)}
        numbers = {name: value for name, value in said.items() if type(value) in (int, float) and value == value}
        for name, most in (("top_k", 10**9), ("max_new_tokens", 10**6)):
            if name in numbers:
                said[name] = int(max(0, min(numbers[name], most)))
        if 0 <= numbers.get("temperature", 1) < 1e-3 or 0 <= numbers.get("top_p", 1) < 1e-6:
            said["do_sample"] = False
        for name in list(said):
            try:
                cls(**{name: said[name]})
            except UserError:
                del said[name]
        return said

    def processors(self) -> LogitsProcessorList | None:
        """What `generate` would apply, in its order; None for plain greedy decoding."""
        chain = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chain.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.do_sample:
            if self.temperature != 1.0:
                chain.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k:
                chain.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1.0:
                chain.append(TopPLogitsWarper(float(self.top_p)))
        return chain if chain or self.do_sample else None


class ChatStream:
    """The answer to one request: iterate over it for pieces of text as they come.

    Each piece is final: a character whose bytes span tokens comes with its last one. An error of the request is raised
    from the iteration. Leaving the iteration early, or `stop()` from any thread, ends the request at the next token. It
    is read once: a second iteration gives nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.text = ""  # what the iteration has yielded so far
        self.stopped = False
        self._read = False
        self._tokenizer = tokenizer
        self._queue: SimpleQueue[int | Exception | None] = SimpleQueue()  # token ids, then None or an error

    def stop(self) -> None:
        """End this answer, also one that still waits for its turn; what has been decoded stays."""
        self.stopped = True
        self._queue.put(None)  # the reader need not wait for the engine

    def __iter__(self) -> Iterator[str]:
        if self._read:
            return
        self._read = True
        # Text is made here, in the reader's thread, not in the engine's. Only a window of the last tokens is decoded,
        # since a token's text can depend on a few before it; `shown` is the part of the window's text that is out.
        window: list[int] = []
        shown = ""
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                window.append(item)
                text = self._decode(window)
                if len(text) > len(shown) and not text.endswith("\ufffd"):  # else a character is incomplete
                    piece, shown = text[len(shown) :], text
                    self.text += piece
                    yield piece
                    if len(window) >= 2 * WINDOW:
                        # Not cut inside a character: the bytes left of it would spoil all bytes after them.
                        tails = (window[-size:] for size in range(WINDOW, len(window)))
                        window = next((tail for tail in tails if text.endswith(self._decode(tail))), window)
                        shown = self._decode(window)
            if piece := self._decode(window)[len(shown) :]:
                self.text += piece
                yield piece
        finally:
            self.stop()

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


@dataclass(eq=False)
class _Row:
    """One running request."""

    ids: list[int]  # the prompt, then the answer
    adapter: Adapter | None
    options: Options
    stream: ChatStream
    left: int  # tokens that may still come
    processors: LogitsProcessorList | None = None
    slot: int | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.processors = self.options.processors()


class ChatEngine:
    """Serves chats over one adapted model. `submit` may be called from any thread; `close` ends the worker."""

    def __init__(
        self, adapted: AdaptedModel, tokenizer: PreTrainedTokenizerBase, max_batch: int = 16, max_waiting: int = 64
    ):
        self.adapted, self.tokenizer = adapted, tokenizer
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.context = context_length(adapted.model)
        self._model = adapted.model
        self._device = device_of(adapted.model.get_input_embeddings())
        self._eos = end_tokens(adapted.model, tokenizer)
        self._defaults = Options.said_by(adapted.model.generation_config)
        only_last = "logits_to_keep" in signature(adapted.model.forward).parameters
        # An index copies the states; with a slice of them a bfloat16 product on a CPU copies the matrix for each row.
        self._prefill_options = {"logits_to_keep": torch.tensor([-1])} if only_last else {}

        self._wake = threading.Condition()
        self._waiting: deque[_Row] = deque()
        self._calls: deque[tuple[Callable[[], object], Future]] = deque()
        self._closed = False
        self._batch = Batch()
        self._slots: set[int] = set()  # those that are loaded
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, name="hyperlora-chat", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that still computes when the interpreter goes would abort the process

    # ---- for callers, from any thread ----

    def submit(self, messages: str | list[dict[str, str]], adapter: Adapter | None = None, **options) -> ChatStream:
        """Queue one chat. `options` are those of `Options`, the model's generation_config filling in the rest.

        Raises `UserError` for messages or options that cannot be served, a prompt longer than the context, and a full
        queue.
        """
        return self.submit_many([messages], [adapter], **options)[0]

    def submit_many(
        self, chats: Sequence[str | list[dict[str, str]]], adapters: Sequence[Adapter | None], **options
    ) -> list[ChatStream]:
        """Queue several chats at once, to be decoded together: all of them, or none where one raises."""
        known = [option.name for option in fields(Options)]
        if unknown := sorted(set(options) - set(known)):
            raise UserError(f"The option {unknown[0]!r} is not supported; use {', '.join(known)}.")
        settings = Options(**self._defaults | options)
        rows = [self._row(chat, adapter, settings) for chat, adapter in zip(chats, adapters, strict=True)]
        with self._wake:
            if self._closed:
                raise UserError("The chat engine has been closed.")
            if len(self._waiting) + len(rows) > max(self.max_waiting, len(rows)):
                raise UserError(f"The model is busy: {len(self._waiting)} chats are waiting. Try again in a moment.")
            self._waiting.extend(rows)
            self._wake.notify()
        return [row.stream for row in rows]

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the worker thread, between two tokens, with no adapter in use; returns what it returns."""
        future: Future[T] = Future()
        with self._wake:
            if self._closed:
                raise UserError("The chat engine has been closed.")
            self._calls.append((function, future))
            self._wake.notify()
        return future.result()

    def close(self) -> None:
        """End all chats and the worker thread."""
        atexit.unregister(self.close)
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _row(self, messages: str | list[dict[str, str]], adapter: Adapter | None, options: Options) -> _Row:
        ids = format_prompt(self.tokenizer, messages)
        if len(ids) >= self.context:
            raise UserError(
                f"The conversation is {len(ids):,} tokens long and the model reads {self.context:,}: shorten it."
            )
        left = min(options.max_new_tokens, self.context - len(ids))
        return _Row(ids, adapter, options, ChatStream(self.tokenizer), left)

    # ---- in the worker thread ----

    @torch.inference_mode()
    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self._wake:
                while not (self._waiting or self._calls or self._batch.rows or self._closed):
                    self._wake.wait()
                calls = [self._calls.popleft() for _ in range(len(self._calls))]
                free = self.max_batch - len(self._batch.rows)
                joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
                closed = self._closed
            if closed:
                self._end(self._batch.rows + joining + list(self._waiting), UserError("The chat engine was closed."))
                for _, future in calls:
                    future.set_exception(UserError("The chat engine was closed."))
                return
            for function, future in calls:
                try:
                    with torch.inference_mode(False):
                        future.set_result(function())
                except BaseException as error:
                    future.set_exception(self._in_words(error))
            rows = joining
            try:
                self._join(joining)
                rows = self._batch.rows
                if rows:
                    self._decode()
            except Exception as error:  # whatever it was, it ends these answers and no others
                self._end(rows, error)
                if rows is self._batch.rows:
                    self._batch = Batch()
            self._unload()

    def _end(self, rows: list[_Row], error: Exception | None = None) -> None:
        for row in rows:
            row.stream._queue.put(error and self._in_words(error))

    def _in_words(self, error: BaseException) -> BaseException:
        """The error, in a sentence where memory ran out."""
        if not out_of_memory(error):
            return error
        said = UserError(
            f"The memory of {self._device} ran out: shorten the conversation, or try again when fewer people chat."
        )
        said.__cause__ = error
        return said

    def _join(self, rows: list[_Row]) -> None:
        """Prefill new rows together and put them into the batch."""
        ready = []
        for row in rows:
            if row.stream.stopped:
                self._end([row])
                continue
            try:
                row.slot = self._load(row.adapter, self._batch.rows + ready)
                ready.append(row)
            except Exception as error:
                self._end([row], error)
        if not ready:
            return
        length = max(len(row.ids) for row in ready)
        pad = torch.tensor([length - len(row.ids) for row in ready])
        ids = torch.tensor([[0] * (length - len(row.ids)) + row.ids for row in ready])
        columns = torch.arange(length)
        new = Batch(ready, pad=pad.to(self._device), length=length)
        with self.adapted.use([row.slot for row in ready]):
            logits = self._model(
                input_ids=ids.to(self._device),
                attention_mask=(columns >= pad[:, None]).long().to(self._device),
                position_ids=(columns - pad[:, None]).clamp(min=0).to(self._device),
                past_key_values=new.cache,
                use_cache=True,
                **self._prefill_options,
            ).logits[:, -1]
        keep = self._advance(new, self._choose(new, logits))
        new = select(new, keep)
        self._batch = merge(self._batch, new)

    def _load(self, adapter: Adapter | None, others: list[_Row]) -> int | None:
        """The adapter's slot, shared with the rows that have the same one."""
        if adapter is None:
            return None
        for other in others:
            if other.adapter is adapter:
                return other.slot
        slot = self.adapted.load(adapter)
        self._slots.add(slot)
        return slot

    def _unload(self) -> None:
        """Give back the slots of rows that have left."""
        for slot in self._slots - {row.slot for row in self._batch.rows}:
            self.adapted.unload(slot)
            self._slots.discard(slot)

    def _decode(self) -> None:
        """Decode the batch until a row is done, or someone waits."""
        batch = self._batch
        positions = (batch.length - batch.pad)[:, None]
        mask = torch.arange(self.context, device=self._device) >= batch.pad[:, None]
        mask = mask.long()
        tokens = torch.tensor([[row.ids[-1]] for row in batch.rows], device=self._device)
        with self.adapted.use([row.slot for row in batch.rows]):
            while True:
                batch.length += 1
                logits = self._model(
                    input_ids=tokens,
                    attention_mask=mask[:, : batch.length],
                    position_ids=positions,
                    past_key_values=batch.cache,
                    use_cache=True,
                ).logits[:, -1]
                tokens = self._choose(batch, logits)
                keep = self._advance(batch, tokens)
                if len(keep) < len(batch.rows):
                    self._batch = select(batch, keep)
                    return
                if self._calls or self._closed or (self._waiting and len(batch.rows) < self.max_batch):
                    return
                tokens = tokens[:, None]
                positions = positions + 1

    def _choose(self, batch: Batch[_Row], logits: Tensor) -> Tensor:
        """logits [rows, vocabulary] -> token ids [rows]."""
        tokens = logits.argmax(dim=-1)
        for i, row in enumerate(batch.rows):
            if row.processors is None:
                continue
            try:
                scores = row.processors(torch.tensor([row.ids], device=self._device), logits[i : i + 1].float())
                if row.options.do_sample:
                    tokens[i] = torch.multinomial(scores.softmax(dim=-1), 1)[0, 0]
                else:
                    tokens[i] = scores.argmax()
            except Exception as error:  # such as probabilities that are not finite: this row's alone
                row.error = error
        return tokens

    def _advance(self, batch: Batch[_Row], tokens: Tensor) -> list[int]:
        """Hand each row its token, end those that are done, and return the indices of the others."""
        keep = []
        for i, (row, token) in enumerate(zip(batch.rows, tokens.tolist(), strict=True)):
            stream = row.stream
            row.left -= 1
            done = token in self._eos or stream.stopped or row.error is not None
            if not done:
                row.ids.append(token)
                stream._queue.put(token)
                done = row.left == 0
            if done:
                stream._queue.put(row.error)
            else:
                keep.append(i)
        return keep
