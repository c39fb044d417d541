"""The guard: two towers side by side, shared blocks, and who answers for which picture."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from skumatch.encoder import asking
from skumatch.runtime.guard import Guard, HalfWay, Middle, Twin, average, beside, twin_of
from skumatch.runtime.torch import TorchEncoder
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
        found, untouched, _ = twin(pictures)
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
        tuned, untouched, half_way = twin(torch.randn(2, 3, 64, 64))
    assert twin.untouched is None and tuned is untouched and half_way is None


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
    assert share[0] > 0.999 and share[1:].tolist() == pytest.approx([0, 0], abs=1e-4)
    assert guard({}, threshold=0.5)(near)[1] == pytest.approx(0.5)


def units(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


@pytest.mark.parametrize(("threshold", "share"), [(-5.0, 1.0), (5.0, 0.0)])
def test_a_crop_asks_by_the_tuned_vector_or_by_the_untouched(threshold: float, share: float) -> None:
    u, v, views_u, views_v = units(3, 4, 0), units(3, 6, 1), units(9, 4, 2), units(9, 6, 3)
    rows, views = beside(u, v), beside(views_u, views_v)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3)) and rows.shape == (3, 10)
    asked = guard({}, threshold=threshold).asking(rows.numpy())
    wanted = share * (v @ views_v.T) + (1 - share) * (u @ views_u.T)
    assert torch.allclose(torch.from_numpy(asked) @ views.T, wanted, atol=1e-5)
    assert torch.allclose((torch.from_numpy(asked) * rows).sum(1), torch.ones(3), atol=1e-5)  # with itself: 1


def test_between_the_two_cosines_are_mixed() -> None:
    u, v = nn.functional.normalize(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), dim=1), units(1, 6, 1)
    asked = torch.from_numpy(guard({}, threshold=0.5).asking(beside(u, v).numpy()))
    views_u, views_v = units(5, 4, 2), units(5, 6, 3)
    assert torch.allclose(asked @ beside(views_u, views_v).T, 0.5 * (u @ views_u.T + v @ views_v.T), atol=1e-5)


def test_an_encoder_without_a_guard_asks_with_what_it_gives() -> None:
    rows = units(2, 8, 0).numpy()
    assert asking(TorchEncoder(tower_of(CONV), None, "cpu"), rows) is rows


def test_a_twin_can_be_copied() -> None:
    tower = tower_of(CONV)
    blocks = chain(tower.image, CONV)
    tuned, differing = trained(tower.image, blocks[-1] + ".")
    twin = twin_of(tuned, guard(differing, blocks), 64).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = Twin.forward(twin, pictures)[1]
        assert torch.allclose(copy.deepcopy(twin)(pictures)[1], wanted, atol=1e-5)


@pytest.mark.parametrize("name", [CONV, VIT, TINY])
def test_the_vector_from_half_way_is_the_average_of_what_enters_the_last_block(name: str) -> None:
    tower = tower_of(name)
    blocks = chain(tower.image, name)
    tuned, _ = trained(tower.image, blocks[-1] + ".")
    size = tower.preprocess.size
    pictures = torch.randn(3, 3, size, size)
    seen: list[Tensor] = []
    hook = tower.image.get_submodule(blocks[-1]).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        features = tower.image(pictures)
        hook.remove()
        wanted = average(seen[0], 3)
        for shared in (True, False):
            twin = Twin(copy.deepcopy(tuned), copy.deepcopy(tower.image), blocks, shared).eval()
            _, _, half_way = twin(pictures)
            assert half_way is not None and half_way.shape[0] == 3
            assert torch.allclose(half_way, wanted, atol=1e-5)
        watched = HalfWay(tower.image, blocks[-1])
        both = watched(pictures)
        watched.close()
    assert not tower.image.get_submodule(blocks[-1])._forward_pre_hooks
    normal = nn.functional.normalize
    assert torch.allclose(both, torch.cat([normal(features, dim=1), normal(wanted, dim=1)], 1), atol=1e-5)


def test_averages_are_over_places_whatever_the_layout() -> None:
    maps = torch.randn(2, 5, 7, 7)
    wanted = maps.mean((2, 3))
    tokens = maps.flatten(2).transpose(1, 2)
    for inside in (maps, maps.permute(0, 2, 3, 1), tokens, tokens.transpose(0, 1)):
        assert torch.allclose(average(inside, 2), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("threshold", "wider", "weights"),
    [(-5.0, -6.0, (0, 0.1, 0.9)), (5.0, -6.0, (0.6, 0.4, 0)), (5.0, 4.0, (1, 0, 0))],
    ids=["at home", "between", "far"],
)
def test_a_crop_asks_by_the_vector_from_half_way_as_far_as_it_reaches(
    threshold: float, wider: float, weights: tuple[float, float, float]
) -> None:
    whiten = nn.Linear(5, 5, bias=False).requires_grad_(False)
    asking_guard = Guard(torch.eye(4), threshold, 0.01, {}, ("a", "b"), Middle(whiten, wider, 0.4, 0.1))
    asked, views = ([units(n, width, seed) for width, seed in ((4, 0), (5, 1), (6, 2))] for n in (3, 7))
    rows = torch.from_numpy(asking_guard.asking(beside(*asked).numpy()))
    assert asking_guard.width == 9 and rows.shape == (3, 15)
    wanted = sum(w * (a @ v.T) for w, a, v in zip(weights, asked, views, strict=True))
    assert torch.allclose(rows @ beside(*views).T, torch.as_tensor(wanted), atol=1e-5)
