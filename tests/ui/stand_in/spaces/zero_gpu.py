"""What the package does on ZeroGPU, where here the CPU is the GPU: written after its version 0.51.

It takes `cuda` over where it is imported, and what is put there is gone from this process when the page opens. A
decorated generator runs in a forked worker that has it again, is given its arguments as a pickle, and waits for others
when it is done. LENT names a file of what happens, a line of JSON each; while there is a file LENT.slow, each piece
takes a while.
"""

import inspect
import json
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from multiprocessing.connection import Connection

import psutil

assert "torch" not in sys.modules, "torch was imported before spaces"

import gradio as gr  # noqa: E402
import torch  # noqa: E402
from gradio.context import LocalContext  # noqa: E402

fork = multiprocessing.get_context("fork")
on_cuda: dict[torch.Tensor, torch.Tensor | None] = {}
idle: list[tuple[multiprocessing.Process, Connection, object]] = []
decorated = []
to, launch = torch.nn.Module.to, gr.Blocks.launch


def happened(what: str, **more: object) -> None:
    with open(os.environ["LENT"], "a") as file:
        file.write(json.dumps({"what": what, "pid": os.getpid()} | more) + "\n")


def refuse(*_: object) -> None:
    raise RuntimeError("CUDA was asked for something where there is none")


def move(module: torch.nn.Module, *places: object, **more: object) -> torch.nn.Module:
    if "cuda" not in map(str, places):
        return to(module, *places, **more)
    to(module, *(place for place in places if str(place) != "cuda"), **more)
    on_cuda.update({tensor: None for tensor in (*module.parameters(), *module.buffers())})
    return module


def pack_and_launch(demo: gr.Blocks, *arguments: object, **options: object) -> object:
    """What is on `cuda` leaves this process: a forward here gives nothing that anybody could take for an answer."""
    gr.Blocks.launch = launch
    assert decorated, "no function asks for a GPU"
    for tensor in on_cuda:
        on_cuda[tensor] = tensor.data
        tensor.data = torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else torch.zeros_like(tensor)
    happened("packed", tensors=len(on_cuda))
    return demo.launch(*arguments, **options)


torch.nn.Module.to, gr.Blocks.launch = move, pack_and_launch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch._C._cuda_getCurrentRawStream = refuse  # which bitsandbytes takes where it is imported
torch.cuda.mem_get_info = torch.cuda.get_arch_list = torch.cuda._lazy_init = refuse


def GPU(task: Callable | None = None, *, duration: Callable[..., float]) -> Callable:
    if task is None:
        return lambda task: GPU(task, duration=duration)
    assert inspect.isgeneratorfunction(task)
    decorated.append(task)

    @wraps(task)
    def call(*arguments: object) -> Iterator[object]:
        request = LocalContext.request.get(None)
        assert request is not None, "no visitor's event asks for this GPU"
        lent = duration(*arguments)
        assert 0 < lent <= 120
        if "no quota" in str(arguments):
            raise gr.Error("You have exceeded your quota. Try again in 1:00:00.", title="ZeroGPU quota exceeded")
        worker, pipe, stop = idle.pop() if idle else start(task)
        happened("lent", visitor=request.session_hash, seconds=lent, worker=worker.pid)
        stop.clear()
        pipe.send_bytes(pickle.dumps(arguments))
        try:
            while True:
                kind, value = pickle.loads(pipe.recv_bytes())
                if kind == "value":
                    yield value
                elif kind == "error":
                    raise gr.Error(value, title="ZeroGPU worker error")
                else:
                    break
        except GeneratorExit:
            stop.set()
            while pickle.loads(pipe.recv_bytes())[0] == "value":
                pass
            idle.append((worker, pipe, stop))
            raise
        except EOFError:
            raise gr.Error("GPU task aborted", title="ZeroGPU worker error") from None
        idle.append((worker, pipe, stop))

    return call


def start(task: Callable) -> tuple[multiprocessing.Process, Connection, object]:
    here, there = fork.Pipe()
    stop = fork.Event()
    worker = fork.Process(target=work, args=(task, there, stop), daemon=True)
    worker.start()
    there.close()
    return worker, here, stop


def work(task: Callable, pipe: Connection, stop: object) -> None:
    """The worker: one call after the other."""
    for connection in psutil.Process().net_connections("tcp"):  # the page's, which this process would keep open
        os.close(connection.fd)
    for tensor, data in on_cuda.items():
        tensor.data = data
    while True:
        while not pipe.poll(0.2):
            if not multiprocessing.parent_process().is_alive():
                return
        arguments = pickle.loads(pipe.recv_bytes())
        made, end = 0, ("end", None)
        generator = task(*arguments)
        try:
            for value in generator:
                if stop.is_set():
                    generator.close()
                    break
                pipe.send_bytes(pickle.dumps(("value", value)))
                time.sleep(0.1 * os.path.exists(f"{os.environ['LENT']}.slow"))
                made += 1
        except Exception as error:
            traceback.print_exc()
            end = ("error", type(error).__name__)
        happened("done", made=made, stopped=stop.is_set())
        pipe.send_bytes(pickle.dumps(end))
