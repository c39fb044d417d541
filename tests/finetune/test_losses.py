"""Sub-centre ArcFace against a reference in plain NumPy float64, and its gradient against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from skumatch.finetune.losses import SubCentreArcFace

SKUS, DIM, N = 5, 4, 7
Floats = NDArray[np.float64]


def reference(x: Floats, weight: Floats, labels: list[int], k: int, s: float, m: float) -> float:
    """One sample at a time, with arccos: nothing here is shared with the implementation."""
    losses = []
    for vector, label in zip(x, labels, strict=True):
        unit = vector / math.sqrt(float(vector @ vector))
        cosines = []
        for sku in range(SKUS):
            centres = weight[sku * k : (sku + 1) * k]
            cosines.append(max(float(unit @ c) / math.sqrt(float(c @ c)) for c in centres))
        theta = math.acos(cosines[label])
        cosines[label] = math.cos(theta + m) if theta + m < math.pi else cosines[label] - m * math.sin(m)
        logits = [s * c for c in cosines]
        top = max(logits)
        losses.append(top + math.log(sum(math.exp(value - top) for value in logits)) - logits[label])
    return sum(losses) / len(losses)


def loss_and_inputs(k: int, s: float) -> tuple[SubCentreArcFace, torch.Tensor, torch.Tensor]:
    torch.manual_seed(k)
    loss = SubCentreArcFace(SKUS, DIM, k, s)
    return loss, torch.randn(N, DIM) * 3, torch.tensor([0, 1, 2, 3, 4, 0, 0])


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.35, 1.5])
def test_the_loss_is_the_papers(k: int, margin: float) -> None:
    loss, x, labels = loss_and_inputs(k, 24.0)
    expected = reference(x.double().numpy(), loss.weight.detach().double().numpy(), labels.tolist(), k, 24.0, margin)
    assert float(loss(x, labels, margin).detach()) == pytest.approx(expected, rel=1e-5)


def test_past_pi_minus_margin_the_target_falls_on_linearly() -> None:
    loss = SubCentreArcFace(SKUS, 2, 1, 10.0)
    angles = torch.tensor([0.0, 2.0, 2.5, 3.0, 4.0])
    loss.weight.data = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0])
    for theta in (math.pi - 0.9, math.pi - 0.5, math.pi - 0.3, math.pi - 0.05):
        x = torch.tensor([[math.cos(-theta), math.sin(-theta)]])
        expected = reference(x.double().numpy(), loss.weight.detach().double().numpy(), [0], 1, 10.0, 0.6)
        value = float(loss(x, labels, 0.6).detach())
        assert value == pytest.approx(expected, rel=1e-4)


def test_margin_0_is_the_normalised_softmax() -> None:
    loss, x, labels = loss_and_inputs(1, 16.0)
    cosines = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(loss.weight).T
    expected = torch.nn.functional.cross_entropy(16.0 * cosines, labels)
    assert float(loss(x, labels, 0.0).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_larger_margin_never_makes_it_easier() -> None:
    loss, x, labels = loss_and_inputs(3, 24.0)
    values = [float(loss(x, labels, m).detach()) for m in (0.0, 0.1, 0.2, 0.3, 0.5)]
    assert values == sorted(values)


@pytest.mark.parametrize("k", [1, 3])
def test_the_gradient_agrees_with_finite_differences(k: int) -> None:
    loss, x, labels = loss_and_inputs(k, 8.0)
    x.requires_grad_(True)
    loss(x, labels, 0.3).backward()
    weight = loss.weight.detach().double().numpy()
    at = x.detach().double().numpy()
    assert x.grad is not None
    assert loss.weight.grad is not None

    def slope(array: Floats, place: tuple[int, int]) -> float:
        step = 1e-6
        found = []
        for sign in (1, -1):
            array[place] += sign * step
            found.append(reference(at, weight, labels.tolist(), k, 8.0, 0.3))
            array[place] -= sign * step
        return (found[0] - found[1]) / (2 * step)

    for place in np.ndindex(*at.shape):
        assert float(x.grad[place]) == pytest.approx(slope(at, place), abs=2e-5, rel=2e-3)
    for place in np.ndindex(*weight.shape):
        assert float(loss.weight.grad[place]) == pytest.approx(slope(weight, place), abs=2e-5, rel=2e-3)


def test_an_embedding_on_its_centre_has_a_finite_gradient() -> None:
    loss = SubCentreArcFace(SKUS, DIM, 1, 24.0)
    x = loss.weight.detach()[:1].clone().requires_grad_(True)
    loss(x, torch.tensor([0]), 0.3).backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert loss.weight.grad is not None
    assert bool(torch.isfinite(loss.weight.grad).all())


def test_the_nearest_sub_centre_counts() -> None:
    loss = SubCentreArcFace(2, 2, 2, 10.0)
    loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [-1.0, -1.0]])
    assert loss.cosines(torch.tensor([[0.0, 3.0]]))[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
