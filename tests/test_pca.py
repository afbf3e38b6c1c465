"""The map of the training descriptions, against NumPy's singular values of the directions."""

import numpy as np
import pytest
import torch

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.pca import map_descriptions


@pytest.fixture
def hyperlora(make_config) -> HyperLoRA:
    hyperlora = HyperLoRA(make_config())
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 16, generator=random) * torch.linspace(0.5, 2, 16) + 1
    hyperlora.set_descriptions([f"text {i}" for i in range(50)], rows)
    return hyperlora


def test_the_axes_are_those_of_the_largest_variance(hyperlora):
    found = map_descriptions(hyperlora)
    rows = hyperlora.embeddings.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, values, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    for i in range(2):
        assert abs(axes[i] @ found.axes[:, i].double().numpy()) == pytest.approx(1, abs=1e-5)
    expected = (rows - rows.mean(0)) @ found.axes.double().numpy()
    np.testing.assert_allclose(found.points.numpy(), expected, atol=1e-5)
    assert found.explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), abs=1e-5)
    assert found.descriptions == hyperlora.descriptions


def test_a_description_of_training_is_where_it_was_whatever_its_length(hyperlora):
    found = map_descriptions(hyperlora)
    torch.testing.assert_close(found.place(3 * hyperlora.embeddings[7:9].float()), found.points[7:9])
    assert (found.place(torch.randn(4, 16)) - found.points[:4]).abs().max() > 0.1


@pytest.mark.parametrize("seed", range(8))
def test_the_axes_have_one_sign_everywhere(hyperlora, seed):
    """The eigenvectors of other rows come out with either; the rule for which does not ask how they were computed."""
    hyperlora.set_descriptions(["text"] * 50, torch.randn(50, 16, generator=torch.Generator().manual_seed(seed)))
    found, again = map_descriptions(hyperlora), map_descriptions(hyperlora)
    assert all(axis[axis.abs().argmax()] > 0 for axis in found.axes.T)
    assert torch.equal(found.points, again.points)


def test_few_descriptions_or_none(make_config, hyperlora):
    hyperlora.set_descriptions(["alone"], torch.ones(1, 16))
    alone = map_descriptions(hyperlora)
    assert alone.points.shape == (1, 2) and alone.points.abs().max() < 1e-3 and alone.explained == 0
    with pytest.raises(UserError, match="without its training descriptions"):
        map_descriptions(HyperLoRA(make_config()))
