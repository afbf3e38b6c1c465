"""Messages in, streamed text out, many users at once: one worker thread decodes all running requests together.

A request's prompt is read a piece at a time between the others' tokens; then it joins the running batch, which it
leaves when it is done. Every row of the batch has its own adapter, its own options, and its own left padding in the
shared key-value cache.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from inspect import signature
from queue import SimpleQueue
from typing import Literal, NamedTuple, TypeVar

import torch
from tokenizers.decoders import DecodeStream
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
from hyperlora.errors import Busy, UserError, shown
from hyperlora.graph import StepGraph
from hyperlora.lora import Adapter
from hyperlora.prompt import format_begun

T = TypeVar("T")
Prompt = str | list[dict[str, str]] | list[int]
RECORD_AFTER = 64  # tokens, after which recording the step is worth its second or two
PIECE, LEAST_PIECE = 512, 16  # tokens of a prompt that are read at once: at most, and in any case
MAX_STOPS, MAX_STOP = 16, 200
MAX_TOP = 20  # likeliest tokens that are told for each of an answer's
CLOSED = "The chat engine has been closed."
FORKED = (
    "This process was forked after the model was loaded, and no thread of the model came along: load it in the new "
    "process, or start that with the method spawn."
)


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


def _is_stop(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= MAX_STOP


@dataclass
class Options:
    """How to choose tokens, by the names that `transformers` gives them. A value out of range raises `UserError`.

    An answer ends before the first of the `stop_strings`.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    stop_strings: Sequence[str] = ()

    def __post_init__(self) -> None:
        stops = self.stop_strings
        if not isinstance(stops, list | tuple) or len(stops) > MAX_STOPS or not all(map(_is_stop, stops)):
            raise UserError(f"stop_strings must be at most {MAX_STOPS} texts of 1 to {MAX_STOP} characters.")
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
                raise UserError(f"{name} must be a number from {low:g} to {high:g}, not {shown(value)}{hint}.")

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


class Chances(NamedTuple):
    """Of a token that was chosen, by the model's logits as they are, before temperature and penalties."""

    token: int
    log_prob: float
    top: list[tuple[int, float]]
    """The likeliest token ids, each with its log-probability."""


class ChatStream:
    """The answer to one request: iterate over it for pieces of text as they come.

    Each piece is final: a character whose bytes span tokens comes with its last one. An error of the request is raised
    from the iteration. Leaving the iteration early, dropping the stream, or `stop()` from any thread, ends the request
    at the next token. It is read once: a second iteration gives nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, engine: "ChatEngine | None" = None):
        self.text = ""  # what the iteration has yielded so far
        self.tokens = 0  # that have been read for it
        self.stopped = False
        self.finish_reason: Literal["stop", "length", "stopped"] | None = None
        """Why the answer ended: at an end token or a stop string, at the token limit or the end of the context, by
        `stop()`; None until it has been read to its end, and where that is an error."""
        self.prompt_tokens = 0
        self.chances: list[Chances] = []
        """Of each token so far, where they were asked for; those of `tokens` have been read."""
        self._begun: list[int] = []  # token ids of the answer that the prompt holds
        self._stops: Sequence[str] = ()
        self._read = False
        self._tokenizer = tokenizer
        self._engine = engine  # held until the answer has ended: nobody else need
        self._pid = os.getpid()
        self._queue: SimpleQueue[int | str | Exception] = SimpleQueue()  # token ids, then the reason or an error

    def stop(self) -> None:
        """End this answer, also one that still waits for its turn; what has been decoded stays."""
        self.stopped, self._engine = True, None
        self.finish_reason = self.finish_reason or "stopped"
        self._queue.put("stopped")  # the reader need not wait for the engine

    def __iter__(self) -> Iterator[str]:
        if self._read:
            return
        self._read = True
        held = ""  # the beginning of a stop string, perhaps
        with closing(self._pieces()) as pieces:
            for piece in pieces:
                held += piece
                found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
                until = min(found) if found else len(held) - max((_overlap(held, s) for s in self._stops), default=0)
                if until:
                    self.text += held[:until]
                    yield held[:until]
                if found:
                    self.finish_reason = self.finish_reason or "stop"
                    return
                held = held[until:]
            if held:
                self.text += held
                yield held

    def _pieces(self) -> Iterator[str]:
        # Text is made here, in the reader's thread, not in the engine's.
        reason, pending, shown = "stopped", [], self._begun
        decoder, tokenizer = DecodeStream(self._begun, skip_special_tokens=True), self._tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        try:
            while not isinstance(item := self._next(), str):
                if isinstance(item, Exception):
                    reason = None
                    raise item
                self.tokens += 1
                pending.append(item)
                try:
                    piece = decoder.step(backend, item) if backend else _piece(tokenizer, shown, pending)
                except Exception:  # after bytes that are no text, and then a token that is
                    piece = tokenizer.decode(pending, skip_special_tokens=True)
                    decoder = DecodeStream([item], skip_special_tokens=True)
                if piece is not None:
                    shown, pending = pending, []
                    yield piece
            if piece := _piece(tokenizer, shown, pending, last=True):  # a character that never ended
                yield piece
            reason = item
        finally:
            self.stopped, self._engine = True, None
            self.finish_reason = self.finish_reason or reason

    def _next(self) -> int | str | Exception:
        return self._queue.get() if os.getpid() == self._pid else UserError(FORKED)


def _overlap(text: str, stop: str) -> int:
    """How many characters of the text's end are the beginning of the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _piece(tokenizer: PreTrainedTokenizerBase, shown: list[int], new: list[int], last: bool = False) -> str | None:
    """What `DecodeStream` gives, for tokenizers that it does not know: the text of the tokens `new` behind those of the
    piece before; None where that is nothing yet or, but for the `last`, ends within a character."""
    before, text = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (shown, shown + new))
    if not text.startswith(before):  # after bytes that are no text
        before, text = "", tokenizer.decode(new, skip_special_tokens=True)
    return None if text == before or (text.endswith("\N{REPLACEMENT CHARACTER}") and not last) else text[len(before) :]


@dataclass(eq=False)
class _Row:
    """One running request."""

    ids: list[int]  # the prompt, then the answer
    adapter: Adapter | None
    options: Options
    stream: "weakref.ref[ChatStream]"
    queue: SimpleQueue  # the stream's
    limit: int  # tokens that may come
    processors: LogitsProcessorList | None
    random: torch.Generator | None  # of its sampling; None: the thread's
    ended: SimpleQueue | None = None  # of a background job: gets the stream at the answer's end
    top: int | None = None  # so many of the likeliest tokens are told
    chances: list[Chances] = field(default_factory=list)  # the stream's
    made: int = 0  # tokens that came
    slot: int | None = None
    error: Exception | None = None

    @property
    def stopped(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return (stream := self.stream()) is None or stream.stopped

    def end(self, how: str | Exception) -> None:
        self.queue.put(how)
        if self.ended is not None and (stream := self.stream()) is not None:
            self.ended.put(stream)


@dataclass(eq=False)
class _Joining:
    """A request whose prompt is being read: `batch.length` tokens of it so far, in a cache of its own; then `read`."""

    row: _Row
    batch: Batch[_Row]
    read: bool = False


class _Inbox:
    """What callers leave for the worker thread. The thread keeps this alone, so that an engine that is dropped goes."""

    def __init__(self) -> None:
        self.wake = threading.Condition()
        self.waiting: deque[_Row] = deque()
        self.calls: deque[tuple[Callable[[], object], Future]] = deque()
        self.closed = False
        self.pid = os.getpid()


def _work(inbox: _Inbox, engine: "weakref.ref[ChatEngine]", threads: int) -> None:
    """The worker thread: rounds of the engine for as long as there is one."""
    torch.set_num_threads(threads)
    busy = False
    while True:
        with inbox.wake:
            while not (inbox.waiting or inbox.calls or busy or inbox.closed):
                inbox.wake.wait()
        this = engine()
        if this is None or not this._round():
            return
        busy = bool(this._batch.rows or this._joining)
        del this


def _close(inbox: _Inbox, thread: threading.Thread) -> None:
    if os.getpid() != inbox.pid:  # after a fork there is no thread, and the lock may be held for ever
        return
    with inbox.wake:
        inbox.closed = True
        inbox.wake.notify()
    if threading.current_thread() is not thread:
        thread.join()


class ChatEngine:
    """Serves chats over one adapted model. `submit` may be called from any thread; `close` ends the worker, and so does
    dropping the engine. Chats that run at once have at most as many rows as `adapted` has slots. `defaults` are the
    generation_config's options; `unadapted` come before them in chats without an adapter."""

    def __init__(
        self,
        adapted: AdaptedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_batch: int = 16,
        max_waiting: int = 64,
        unadapted: dict[str, float] | None = None,
    ):
        self.adapted, self.tokenizer = adapted, tokenizer
        self.max_batch, self.max_waiting = min(max_batch, adapted.max_adapters), max_waiting
        self.context = context_length(adapted.model)
        self._model, self._reader = adapted.model, adapted.model.base_model  # which has no logits
        self._device = device_of(adapted.model.get_input_embeddings())
        self._eos = end_tokens(adapted.model, tokenizer)
        self.defaults = Options.said_by(adapted.model.generation_config)
        self.unadapted = unadapted or {}
        only_last = "logits_to_keep" in signature(adapted.model.forward).parameters
        # An index copies the states; with a slice of them a bfloat16 product on a CPU copies the matrix for each row.
        self._prefill_options = {"logits_to_keep": torch.tensor([-1])} if only_last else {}

        self._tokens = 0  # of all answers so far
        self._graph, self._steps = StepGraph(adapted), 0
        self._batch = Batch()
        self._joining: deque[_Joining] = deque()
        self._step_seconds = self._token_seconds = 0.0  # of the last step, and of a prompt's token, on a CPU
        self._slots: set[int] = set()  # those that are loaded
        self._inbox = _Inbox()
        given = self._inbox, weakref.ref(self), torch.get_num_threads()
        self._thread = threading.Thread(target=_work, args=given, name="hyperlora-chat", daemon=True)
        self._thread.start()
        # Also at exit: a thread that still computes when the interpreter goes would abort the process.
        self._finalizer = weakref.finalize(self, _close, self._inbox, self._thread)

    # ---- for callers, from any thread ----

    @property
    def load(self) -> tuple[int, int, int]:
        """How many chats run, how many wait, and how many tokens have been written for all so far."""
        return len(self._batch.rows) + len(self._joining), len(self._inbox.waiting), self._tokens

    def submit(
        self,
        messages: Prompt,
        adapter: Adapter | None = None,
        seed: int | None = None,
        **options,
    ) -> ChatStream:
        """Queue one chat: a message, messages, or the token ids of a prompt that no template is put around. `options`
        are those of `Options`, the model's generation_config filling in the rest.

        `seed`: of what is sampled, which then depends on no other chat, but for rounding. Raises `UserError` for
        messages or options that cannot be served, a prompt longer than the context, and a full queue.
        """
        return self.submit_many([messages], [adapter], seed, **options)[0]

    def submit_many(
        self,
        chats: Sequence[Prompt],
        adapters: Sequence[Adapter | None],
        seed: int | None = None,
        ended: SimpleQueue | None = None,
        top: int | None = None,
        **options,
    ) -> list[ChatStream]:
        """Queue several chats at once, to be decoded together: all of them, or none where one raises.

        With `top` the streams tell the `chances` of their tokens, and so many of the likeliest beside each. With
        `ended` they are a background job's: they take at most half of the batch, after all others that wait, and each
        stream is put in there once its answer has ended.
        """
        known = [option.name for option in fields(Options)]
        if unknown := sorted(set(options) - set(known)):
            raise UserError(f"The option {unknown[0]!r} is not supported; use {', '.join(known)}.")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, not {shown(seed)}.")
        if top is not None and (type(top) is not int or not 0 <= top <= MAX_TOP):
            raise UserError(f"top must be a whole number from 0 to {MAX_TOP}, not {shown(top)}.")
        settings = Options(**self.defaults | options), Options(**self.defaults | self.unadapted | options)
        streams = [ChatStream(self.tokenizer, self) for _ in chats]
        rows = [
            self._row(stream, chat, adapter, settings[adapter is None], seed, ended, top)
            for stream, chat, adapter in zip(streams, chats, adapters, strict=True)
        ]
        with self._leaving() as inbox:
            waiting = [row for row in inbox.waiting if not row.stopped]  # the others have left
            before = sum((row.ended is None) == (ended is None) for row in waiting)
            if before + len(rows) > max(self.max_waiting, len(rows)):
                raise Busy(f"The model is busy: {before} chats are waiting. Try again in a moment.")
            inbox.waiting = deque(waiting + rows)
        return streams

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the worker thread, between two tokens, with no adapter in use; returns what it returns."""
        future: Future[T] = Future()
        with self._leaving() as inbox:
            inbox.calls.append((function, future))
        return future.result()

    def close(self) -> None:
        """End all chats and the worker thread."""
        self._finalizer()

    @contextmanager
    def _leaving(self) -> Iterator[_Inbox]:
        """Inside, something may be left for the worker; `UserError` where there is none."""
        if os.getpid() != self._inbox.pid:
            raise UserError(FORKED)
        with self._inbox.wake:
            if self._inbox.closed:
                raise UserError(CLOSED)
            yield self._inbox
            self._inbox.wake.notify()

    def _row(
        self,
        stream: ChatStream,
        messages: Prompt,
        adapter: Adapter | None,
        options: Options,
        seed: int | None,
        ended: SimpleQueue | None,
        top: int | None,
    ) -> _Row:
        if messages and isinstance(messages, list) and all(type(token) is int for token in messages):
            words = self._model.get_input_embeddings().num_embeddings
            if not 0 <= min(messages) <= max(messages) < words:
                raise UserError(f"A prompt's token ids must be from 0 to {words - 1:,}.")
            prompt = messages
        else:
            prompt, stream._begun = format_begun(self.tokenizer, messages)
        stream._stops, ids = options.stop_strings, prompt + stream._begun
        stream.prompt_tokens = len(ids)
        if len(ids) >= self.context:
            raise UserError(
                f"The conversation is {len(ids):,} tokens long and the model reads {self.context:,}: shorten it."
            )
        limit = min(options.max_new_tokens, self.context - len(ids))
        random = None if seed is None else torch.Generator(self._device).manual_seed(seed)
        processors = options.processors()
        given = weakref.ref(stream), stream._queue, limit, processors, random, ended, top, stream.chances
        return _Row(ids, adapter, options, *given)

    # ---- in the worker thread ----

    @torch.inference_mode()
    def _round(self) -> bool:
        """What was asked for between two tokens, then those who join, then tokens; False where the engine is closed."""
        inbox, joining = self._inbox, self._joining
        with inbox.wake:
            calls = [inbox.calls.popleft() for _ in range(len(inbox.calls))]
            while row := self._next(self._rows):
                inbox.waiting.remove(row)
                if not row.stopped:
                    pad = torch.zeros(1, dtype=torch.long, device=self._device)
                    joining.append(_Joining(row, Batch([row], pad=pad)))
            closed = inbox.closed
        if closed:
            self._end([*self._rows, *inbox.waiting], UserError(CLOSED))
            for _, future in calls:
                future.set_exception(UserError(CLOSED))
            return False
        for function, future in calls:
            try:
                with torch.inference_mode(False):
                    future.set_result(function())
            except BaseException as error:
                future.set_exception(self._in_words(error))
        self._read_prompts()
        try:
            if self._batch.rows:
                self._decode()
        except Exception as error:
            rows = self._batch.rows
            # Where memory ran out, what the last who came needed is enough for the others; jobs end before visitors.
            newest = min(rows, key=lambda row: (row.ended is None, row.made))
            ending = [newest] if out_of_memory(error) else rows
            self._end(ending, error)
            self._batch = select(self._batch, [i for i, row in enumerate(rows) if row not in ending])
        self._unload()
        return True

    @property
    def _rows(self) -> list[_Row]:
        """All that run: those that decode, and those whose prompt is being read."""
        return self._batch.rows + [each.row for each in self._joining]

    def _next(self, running: list[_Row]) -> _Row | None:
        """Who joins next, of those who wait: a visitor, or else a background job's row where it has few of them."""
        waiting = list(self._inbox.waiting)  # others may come meanwhile
        if not waiting or len(running) >= self.max_batch:
            return None
        late = sum(row.ended is not None for row in running) >= max(1, self.max_batch // 2)
        others = (row for row in waiting if row.ended is not None and not late)
        return next((row for row in waiting if row.ended is None), None) or next(others, None)

    def _end(self, rows: list[_Row], error: Exception) -> None:
        for row in rows:
            row.end(self._in_words(error))

    def _in_words(self, error: BaseException) -> BaseException:
        """The error, in a sentence where memory ran out."""
        if not out_of_memory(error):
            return error
        said = UserError(
            f"The memory of {self._device} ran out: shorten the conversation, or try again when fewer people chat."
        )
        said.__cause__ = error.with_traceback(None)  # whose frames hold what was computed by then
        return said

    def _read_prompts(self) -> None:
        """Read a piece of the prompts, the first that came first; whoever's has been read joins those that decode."""
        left = self._piece() if self._joining else 0
        while self._joining and left > 0:
            one = self._joining[0]
            try:
                left -= self._read(one, left)
            except Exception as error:  # whatever it was, it ends this answer and no others
                self._end([one.row], error)
                one.read = True
            if one.read:
                self._joining.popleft()

    def _read(self, one: _Joining, most: int) -> int:
        """At most so many of the next tokens of a prompt; returns how many. With the last, the row has its first token
        and decodes."""
        row, batch = one.row, one.batch
        if row.stopped:
            row.end("stopped")
            one.read = True
            return 0
        if row.slot is None:
            row.slot = self._load(row.adapter, self._rows)
        ids, began = row.ids[batch.length : batch.length + most], time.monotonic()
        one.read = batch.length + len(ids) == len(row.ids)
        model = self._model if one.read else self._reader
        with self.adapted.use([row.slot]):
            output = model(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=torch.arange(batch.length, batch.length + len(ids), device=self._device)[None],
                past_key_values=batch.cache,
                use_cache=True,
                **self._prefill_options if one.read else {},
            )
        batch.length += len(ids)
        self._token_seconds = (time.monotonic() - began) / len(ids)
        if one.read and self._advance(batch, self._choose(batch, output.logits[:, -1])):
            self._batch = merge(self._batch, batch)
        return len(ids)

    def _piece(self) -> int:
        """How many tokens of prompts are read between two steps: on a CPU what takes a little less than one of them."""
        if self._device.type != "cpu" or not self._batch.rows or not self._token_seconds:
            return PIECE
        return min(PIECE, max(LEAST_PIECE, int(0.75 * self._step_seconds / self._token_seconds)))

    def _load(self, adapter: Adapter | None, others: list[_Row]) -> int | None:
        """The adapter's slot, shared with the rows that have the same one."""
        if adapter is None:
            return None
        for other in others:
            if other.adapter is adapter and other.slot is not None:
                return other.slot
        slot = self.adapted.load(adapter, pinned=True)
        self._slots.add(slot)
        return slot

    def _unload(self) -> None:
        """Give back the slots of rows that have left."""
        for slot in self._slots - {row.slot for row in self._rows}:
            self.adapted.unload(slot)
            self._slots.discard(slot)

    def _decode(self) -> None:
        """Decode the batch until a row is done, or someone waits or joins."""
        batch = self._batch
        positions = (batch.length - batch.pad)[:, None]
        tokens = torch.tensor([[row.ids[-1]] for row in batch.rows], device=self._device)
        with self.adapted.use([row.slot for row in batch.rows]):
            step = self._graph.bind(batch) or self._step(batch)
            while True:
                if self._steps == RECORD_AFTER:  # while rows run: nobody else may use the model then
                    self._graph.record()
                    step = self._graph.bind(batch) or step
                began = time.monotonic()  # what was recorded once is no part of a step
                tokens = self._choose(batch, step(tokens, positions)[:, -1])
                self._steps += 1
                batch.length += 1  # only now: where memory ran out before, the token is computed again
                keep = self._advance(batch, tokens)
                self._step_seconds = time.monotonic() - began
                if len(keep) < len(batch.rows):
                    self._batch = select(batch, keep)
                    return
                inbox = self._inbox
                if inbox.calls or inbox.closed or self._joining or self._next(self._rows):
                    return
                tokens = tokens[:, None]
                positions = positions + 1

    def _step(self, batch: Batch[_Row]) -> Callable[[Tensor, Tensor], Tensor]:
        """The model's own step of a batch: tokens and positions [rows, 1] -> logits [rows, 1, vocabulary]."""
        mask = torch.arange(self.context, device=self._device) >= batch.pad[:, None]
        mask = mask.long()

        def step(tokens: Tensor, positions: Tensor) -> Tensor:
            return self._model(
                input_ids=tokens,
                attention_mask=mask[:, : batch.length + 1],
                position_ids=positions,
                past_key_values=batch.cache,
                use_cache=True,
            ).logits

        return step

    def _choose(self, batch: Batch[_Row], logits: Tensor) -> Tensor:
        """logits [rows, vocabulary] -> token ids [rows]."""
        tokens = logits.argmax(dim=-1)
        for i, row in enumerate(batch.rows):
            try:
                if row.processors is not None:
                    scores = row.processors(torch.tensor([row.ids], device=self._device), logits[i : i + 1].float())
                    if row.options.do_sample:
                        tokens[i] = torch.multinomial(scores.softmax(dim=-1), 1, generator=row.random)[0, 0]
                    else:
                        tokens[i] = scores.argmax()
                if row.top is not None:
                    log_probs = logits[i].float().log_softmax(dim=-1)
                    top = log_probs.topk(min(row.top, len(log_probs)))
                    told = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
                    row.chances.append(Chances(int(tokens[i]), float(log_probs[tokens[i]]), told))
            except Exception as error:  # such as probabilities that are not finite: this row's alone
                row.error = error
        return tokens

    def _advance(self, batch: Batch[_Row], tokens: Tensor) -> list[int]:
        """Hand each row its token, end those that are done, and return the indices of the others."""
        keep = []
        for i, (row, token) in enumerate(zip(batch.rows, tokens.tolist(), strict=True)):
            end = row.error or ("stop" if token in self._eos else "stopped" if row.stopped else None)
            if end is None:
                row.made += 1
                self._tokens += 1
                row.ids.append(token)
                row.queue.put(token)
                end = "length" if row.made == row.limit else None
            if end is None:
                keep.append(i)
            else:
                row.end(end)
        return keep
