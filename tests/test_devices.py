import psutil
import pytest

from hyperlora.devices import _compiled_for, device_named


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 9), ["sm_80", "sm_90"], True),
        ((7, 5), ["sm_80", "sm_90", "compute_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((11, 0), ["gfx1100"], True),
    ],
)
def test_a_gpu_that_this_pytorch_was_not_built_for_is_left_alone(capability, architectures, runs):
    assert _compiled_for(capability, architectures) is runs


def test_the_cpu_is_always_there_with_its_free_memory():
    device = device_named("cpu")
    assert device.name == "cpu" and 0 < device.free < psutil.virtual_memory().total
