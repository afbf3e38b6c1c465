"""The benchmarks at real shapes, at the smallest: their own checks that all ways do the same, and what they print."""

import pytest
import torch

from benchmarks import decode, sft_step
from benchmarks.real_shapes import SHAPES, random_base, same_weights
from hyperlora.adapted import AdaptedModel


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_a_random_base_has_its_shape_and_a_second_model_shares_its_weights() -> None:
    model = random_base(SHAPES["mini"], torch.float32, "cpu")
    assert sum(weight.numel() for weight in model.parameters()) == SHAPES["mini"].parameters
    other = same_weights(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    AdaptedModel(other, ["q_proj"])
    assert not any(module._forward_hooks for module in model.modules())
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert model(ids).logits.std() > 0
        torch.testing.assert_close(model(ids).logits, other(ids).logits)


def test_decoding_compares_the_same_step(capsys: pytest.CaptureFixture) -> None:
    decode.main(["--layers", "1", "--dtype", "float32", "--rows", "1", "3", "--context", "8", "--repetitions", "1"])
    printed = capsys.readouterr().out
    assert [line.split(" |")[0] for line in printed.splitlines()[2:]] == [
        *(f"| 1 row: {way}" for way in (decode.NONE, decode.ONE, decode.PEFT)),
        *(f"| 3 rows: {way}" for way in (decode.NONE, decode.ONE, decode.OWN, decode.PEFT, decode.MIXED)),
        "",
    ]


def test_decoding_ends_where_two_ways_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    peft_model = decode.peft_model
    monkeypatch.setattr(decode, "peft_model", lambda base, adapters: peft_model(base, adapters[::-1]))
    with pytest.raises(SystemExit, match="differ by"):
        decode.main(["--layers", "1", "--dtype", "float32", "--rows", "2", "--context", "8", "--repetitions", "1"])


def test_a_training_step_is_the_same_in_both_ways(capsys: pytest.CaptureFixture) -> None:
    sft_step.main(["--shape", "mini", "--layers", "1", "--batch", "2", "--tokens", "8", "--repetitions", "1"])
    assert "A and B repeated for each token" in capsys.readouterr().out


def test_a_training_step_ends_where_the_two_ways_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    use_factors = sft_step.Repeated.use_factors
    monkeypatch.setattr(
        sft_step.Repeated, "use_factors", lambda way, factors, rows, scale: use_factors(way, factors, rows, scale / 2)
    )
    with pytest.raises(SystemExit, match="The gradients differ"):
        sft_step.main(["--shape", "mini", "--layers", "1", "--batch", "2", "--tokens", "8", "--repetitions", "1"])
