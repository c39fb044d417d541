"""The guard: two towers side by side, shared blocks, and who answers for which picture."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from skumatch.runtime.guard import Guard, Twin, beside, twin_of
from skumatch.towers.base import Tower
from skumatch.towers.build import ModelSource, build

CONV, VIT, TINY = "timm:mobilenetv2_050", "timm:vit_tiny_patch16_224", "open_clip:skumatch-tiny-96"


def tower_of(name: str, size: int | None = None) -> Tower:
    tower = build(ModelSource(name, random_init=True, size=size))
    tower.image.eval()
    return tower


def trained(image: nn.Module, prefix: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy with other weights where a name starts with ``prefix``, and the original's tensors there."""
    tuned = copy.deepcopy(image)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.startswith(prefix):
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    before = image.state_dict()
    return tuned, {name: tensor.clone() for name, tensor in before.items() if name.startswith(prefix)}


def guard(differing: dict[str, Tensor], blocks: tuple[str, ...] = (), threshold: float = 0.5) -> Guard:
    return Guard(torch.eye(4), threshold, 0.01, differing, blocks)


def chain(image: nn.Module, name: str) -> tuple[str, ...]:
    """Return the blocks of ``image`` up to its last one."""
    if name == CONV:
        stages: nn.Sequential = image.blocks  # type: ignore[assignment]
        every = [f"blocks.{i}.{j}" for i, stage in enumerate(stages) for j in range(len(stage))]  # type: ignore[arg-type]
        return tuple(every)
    inner = "transformer.resblocks" if name == TINY else "blocks"
    prefix = next(
        n for n, m in image.named_modules() if n.endswith(inner) and isinstance(m, nn.ModuleList | nn.Sequential)
    )
    return tuple(f"{prefix}.{i}" for i in range(len(image.get_submodule(prefix))))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [CONV, VIT, TINY])
def test_shared_blocks_change_nothing_in_either_answer(name: str) -> None:
    tower = tower_of(name)
    blocks = chain(tower.image, name)
    tuned, differing = trained(tower.image, blocks[-1] + ".")
    assert differing
    size = tower.preprocess.size
    twin = twin_of(copy.deepcopy(tuned), guard(differing, blocks), size).eval()
    pictures = torch.randn(3, 3, size, size)
    with torch.no_grad():
        found, untouched = twin(pictures)
        assert torch.allclose(found, tuned(pictures), atol=1e-5)
        assert torch.allclose(untouched, tower.image(pictures), atol=1e-5)
    assert not torch.allclose(found, untouched, atol=1e-3)


def test_shared_blocks_run_once() -> None:
    tower = tower_of(CONV)
    blocks = chain(tower.image, CONV)
    tuned, differing = trained(tower.image, blocks[-1] + ".")
    twin = twin_of(tuned, guard(differing, blocks), 64)
    untouched = twin.untouched
    assert untouched is not None
    kept = sum(p.numel() for p in untouched.parameters())
    assert kept < 0.7 * sum(p.numel() for p in tuned.parameters())  # the shared blocks are gone from the second tower


def test_blocks_that_are_no_prefix_are_not_shared() -> None:
    """The second block was trained as well: sharing it would give another answer, so both towers run in full."""
    tower = tower_of(CONV)
    blocks = chain(tower.image, CONV)
    tuned, differing = trained(tower.image, "blocks.")
    twin = twin_of(tuned, guard(differing, blocks), 64).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(twin(pictures)[1], tower.image(pictures), atol=1e-5)


def test_without_changes_one_tower_answers_for_both() -> None:
    tower = tower_of(CONV)
    twin = twin_of(tower.image, guard({}), 64).eval()
    with torch.no_grad():
        tuned, untouched = twin(torch.randn(2, 3, 64, 64))
    assert twin.untouched is None and tuned is untouched


def test_threads_do_not_see_each_others_pictures() -> None:
    tower = tower_of(CONV)
    blocks = chain(tower.image, CONV)
    tuned, differing = trained(tower.image, blocks[-1] + ".")
    twin = twin_of(tuned, guard(differing, blocks), 64).eval()
    pictures = [torch.randn(1, 3, 64, 64) for _ in range(2)]
    with torch.no_grad():
        wanted = [tower.image(picture) for picture in pictures]
    wrong: list[int] = []

    def ask(which: int) -> None:
        with torch.no_grad():
            for _ in range(15):
                if not torch.allclose(twin(pictures[which])[1], wanted[which], atol=1e-5):
                    wrong.append(which)

    threads = [threading.Thread(target=ask, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_guard_opens_near_the_centres_and_closes_away_from_them() -> None:
    near = nn.functional.normalize(torch.tensor([[1.0, 0.1, 0, 0], [0.5, 0.5, 0.5, 0.5], [-1.0, 0, 0, 0]]), dim=1)
    share = guard({}, threshold=0.7)(near).flatten()
    assert share[0] > 0.999 and share[1:].tolist() == pytest.approx([0.1, 0.1], abs=1e-4)
    assert guard({}, threshold=0.5)(near)[1] == pytest.approx(0.55)


def test_a_crop_is_told_apart_by_the_tuned_vector_among_pictures_the_guard_does_not_know() -> None:
    generator = torch.Generator().manual_seed(0)
    crop_u, crop_v = (nn.functional.normalize(torch.randn(1, 6, generator=generator), dim=1) for _ in range(2))
    views_u, views_v = (nn.functional.normalize(torch.randn(9, 6, generator=generator), dim=1) for _ in range(2))
    share = guard({}, threshold=0.99)(nn.functional.normalize(torch.rand(9, 4, generator=generator), dim=1))
    scores = beside(crop_u, crop_v, torch.ones(1, 1)) @ beside(views_u, views_v, share).T
    assert scores.argsort().tolist() == (crop_v @ views_v.T).argsort().tolist()


def test_side_by_side_rows_have_the_dot_product_that_is_promised() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (nn.functional.normalize(torch.randn(5, d, generator=generator), dim=1) for d in (7, 3))
    g = torch.rand(5, 1, generator=generator)
    rows = beside(u, v, g)
    assert rows.shape == (5, 10) and torch.allclose(rows.norm(dim=1), torch.ones(5))
    wanted = torch.sqrt((1 - g) @ (1 - g).T) * (u @ u.T) + torch.sqrt(g @ g.T) * (v @ v.T)
    assert torch.allclose(rows @ rows.T, wanted, atol=1e-6)


def test_a_twin_can_be_copied() -> None:
    tower = tower_of(CONV)
    blocks = chain(tower.image, CONV)
    tuned, differing = trained(tower.image, blocks[-1] + ".")
    twin = twin_of(tuned, guard(differing, blocks), 64).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = Twin.forward(twin, pictures)[1]
        assert torch.allclose(copy.deepcopy(twin)(pictures)[1], wanted, atol=1e-5)
