"""Where a base model can run on this machine, and how much memory is free there."""

from dataclasses import dataclass

import psutil

from hyperlora.errors import UserError


@dataclass(frozen=True)
class Device:
    """Where a base model can run. `free`: bytes."""

    name: str
    free: float
    bfloat16: bool = True


def gpus() -> list[Device]:
    """The GPUs that this PyTorch can use, the one with the most free memory first."""
    import torch

    found = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            capability = torch.cuda.get_device_capability(i)
            if _compiled_for(capability, torch.cuda.get_arch_list()):
                # An AMD card's numbers start higher; all that ROCm supports know bfloat16.
                found.append(Device(f"cuda:{i}", float(torch.cuda.mem_get_info(i)[0]), capability >= (8, 0)))
    elif torch.backends.mps.is_available():
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        found.append(Device("mps", float(free)))
    return sorted(found, key=lambda device: device.free, reverse=True)


def device_named(name: str) -> Device:
    """The device of that name and what it has free; "auto": the GPU with the most, or else the CPU.

    Raises `UserError` where there is none.
    """
    if name == "cpu":
        return Device("cpu", float(psutil.virtual_memory().available))
    found = gpus()
    if name == "auto":
        return found[0] if found else device_named("cpu")
    for device in found:
        if name in (device.name, device.name.removesuffix(":0")):
            return device
    others = ", ".join([*(device.name for device in found), "cpu"])
    raise UserError(f"The device {name!r} cannot be used here: PyTorch can use {others}.")


def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 is faster there than float32: a CPU without instructions for it takes fifty times as long."""
    import torch

    has = torch.cpu.get_capabilities()
    return not device.startswith("cpu") or bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _compiled_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether a build for such architectures (sm_80, compute_90, ...) runs on a GPU of that compute capability."""
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        digits = "".join(filter(str.isdigit, number))
        if kind not in ("sm", "compute") or not digits:
            return True  # AMD's names; what ROCm lists it can use
        major, minor = int(digits[:-1]), int(digits[-1])
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return True
    return False
