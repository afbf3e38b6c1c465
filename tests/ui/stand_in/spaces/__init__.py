"""A stand-in for the package `spaces`, which every Space with Gradio has, and Gradio asks for what is below."""

import os
from collections.abc import Callable

if os.environ.get("SPACES_ZERO_GPU"):
    from spaces.zero_gpu import GPU as GPU


def gradio_auto_wrap(function: Callable) -> Callable:
    return function
