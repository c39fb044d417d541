"""What a model answers with: layers, their weights, whitening, the guard; folded norms; old bundles and digests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skumatch import artefact
from skumatch.embed import Pipeline
from skumatch.encoder import asking, open_encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.errors import ConfigError, ModelError
from skumatch.eval.pool import embed_pool
from skumatch.finetune.guarding import (
    Inside,
    fit_guard,
    fit_middle,
    remember,
    shared_blocks,
    spherical_kmeans,
    within_sku,
)
from skumatch.finetune.whiten import fit_pca
from skumatch.match import Matcher
from skumatch.model import MANIFEST, WEIGHTS, Contents, open_bundle, save_bundle
from skumatch.readers import open_dataset
from skumatch.runtime.folding import folded
from skumatch.runtime.guard import Guard, HalfWay, Middle
from skumatch.runtime.served import Served
from skumatch.runtime.torch import Network, TorchEncoder, make_spec, tensors_digest
from skumatch.spec import Pixels, Vectors, spec_digest
from skumatch.technique_store import unit_rows
from skumatch.towers.base import Tower
from skumatch.towers.build import ModelSource, build

CONV = "timm:test_efficientnet"


@pytest.fixture(scope="module")
def tower() -> Tower:
    made = build(ModelSource(CONV, random_init=True, size=32))
    made.image.eval()
    return made


def linear(width: int, out: int, bias: bool = False) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(width, out, bias=bias).requires_grad_(False)


def pixels(count: int = 3) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)


def unit(count: int, width: int, seed: int = 0) -> Vectors:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    found: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def guard_of(tower: Tower) -> Guard:
    """A guard whose untouched tower differs in the last convolution."""
    name = "conv_head.weight"
    return Guard(torch.from_numpy(unit(2, tower.dim)), 0.1, 0.05, {name: tower.image.state_dict()[name] * 1.5 + 0.1})


def half_way_guard(tower: Tower) -> Guard:
    """The same, whose last block differs too, with a vector from in front of it."""
    made = guard_of(tower)
    blocks = shared_blocks(tower.image, [name for name in tower.image.state_dict() if name.startswith("blocks.")][-1:])
    last = {name: tensor + 0.1 for name, tensor in tower.image.state_dict().items() if name.startswith(blocks[-1])}
    inside = HalfWay(tower.image, blocks[-1])
    with torch.no_grad():
        width = inside(torch.zeros(1, 3, 32, 32)).shape[1] - tower.dim
    inside.close()
    middle = Middle(linear(width, width), 0.05, 0.3, 0.1)
    floating = {name: tensor for name, tensor in last.items() if tensor.is_floating_point()}
    return Guard(made.centres, 0.1, 0.05, made.differing | floating, blocks, middle)


def test_both_layers_side_by_side_have_the_weighted_cosine(tower: Tower) -> None:
    head = linear(tower.dim, 5)
    features = torch.randn(4, tower.dim)
    rows = Served("both", head, 0.3)(features)
    f, h = nn.functional.normalize(features), nn.functional.normalize(head(features))
    assert rows.shape == (4, tower.dim + 5)
    assert torch.allclose(rows @ rows.T, 0.7 * f @ f.T + 0.3 * h @ h.T, atol=1e-6)


def every_way(tower: Tower) -> list[Served]:
    head, whiten = linear(tower.dim, 5), linear(tower.dim, 4, bias=True)
    return [
        Served(),
        Served("head", head),
        Served("both", head, 0.25),
        Served(whiten=whiten),
        Served("both", head, 0.25, linear(tower.dim + 5, 6, bias=True)),
        Served(guard=guard_of(tower)),
        Served("both", head, 0.25, linear(tower.dim + 5, 6, bias=True), guard_of(tower)),
        Served(guard=half_way_guard(tower)),
    ]


@pytest.mark.parametrize("way", range(8))
def test_what_is_served_survives_saving(tower: Tower, tmp_path: Path, way: int) -> None:
    served = every_way(tower)[way]
    before = TorchEncoder(tower, served, "cpu")
    save_bundle(tmp_path, tower, served, before.spec, Contents({}, tower.model.state_dict()))
    after = open_encoder(tmp_path, "cpu")
    names = ["features", "head", "both", "features+pca4", "both+pca6", "features+guard", "both+pca6+guard"]
    names.append("features+guard")
    widths = [tower.dim, 5, tower.dim + 5, 4, 6, 2 * tower.dim, 6 + tower.dim]
    widths.append(tower.dim + half_way_guard(tower).width)
    found = after.encode(pixels())
    assert after.spec == before.spec and (after.spec.layer, after.spec.dim) == (names[way], widths[way])
    assert found.shape == (3, widths[way]) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.array_equal(found, before.encode(pixels()))
    _, again, _ = open_bundle(tmp_path).load()
    assert make_spec(tower, again).digest == before.spec.digest


def test_every_part_changes_the_digest(tower: Tower) -> None:
    ways = every_way(tower)
    head = linear(tower.dim, 5)
    ways += [Served("both", head, 0.26), Served(guard=Guard(torch.from_numpy(unit(2, tower.dim)), 0.1, 0.05))]
    other, further = guard_of(tower), half_way_guard(tower)
    other.threshold = 0.2
    assert further.middle is not None
    further.middle.far = 0.4
    ways += [Served(guard=other), Served(guard=further)]
    digests = [make_spec(tower, served).digest for served in ways]
    assert len(set(digests)) == len(digests)


def test_digests_of_plain_layers_are_those_of_older_models(tower: Tower) -> None:
    head = linear(tower.dim, 5)
    for served, name, modules in (
        (None, "features", [tower.image, None]),
        (Served("head", head), "head", [tower.image, head]),
    ):
        old = spec_digest(tower.preprocess, tower.architecture, name, tensors_digest(modules))
        assert make_spec(tower, served).digest == old


def test_a_bundle_of_an_older_version_opens(tower: Tower, tmp_path: Path) -> None:
    """Without "serve" in its manifest: the layer stands in the spec."""
    served = Served("head", linear(tower.dim, 5))
    folder = save_bundle(tmp_path, tower, served, make_spec(tower, served), Contents({}, tower.model.state_dict()))
    document = json.loads((folder / MANIFEST).read_text())
    facts = {key: value for key, value in document.items() if key not in ("serve", "files", "manifest_digest")}
    older = tmp_path / "older"
    older.mkdir()
    (older / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    artefact.seal(older, MANIFEST, facts)
    assert np.array_equal(
        open_encoder(older, "cpu").encode(pixels()), TorchEncoder(tower, served, "cpu").encode(pixels())
    )


def test_a_missing_tensor_is_named(tower: Tower, tmp_path: Path) -> None:
    served = Served("head", linear(tower.dim, 5))
    spec = make_spec(tower, served)
    folder = save_bundle(tmp_path, tower, None, spec, Contents({"serve": served.settings()}, tower.model.state_dict()))
    with pytest.raises(ModelError, match=r"lacks 'skumatch_head\.weight'"):
        open_bundle(folder).load()


def test_layer_and_head_must_fit(tower: Tower) -> None:
    with pytest.raises(ValueError, match="needs a head"):
        Served("head")
    with pytest.raises(ValueError, match="has no head"):
        Served("features", linear(tower.dim, 5))


def test_whitening_makes_the_training_vectors_round() -> None:
    mixed = unit(400, 12) @ np.diag(np.linspace(0.2, 2, 12)).astype(np.float32) + 0.3
    layer = fit_pca(mixed.astype(np.float32), 5)
    rows = layer(torch.from_numpy(mixed.astype(np.float32))).numpy()
    assert rows.shape == (400, 5)
    assert np.allclose(np.cov(rows.T), np.eye(5), atol=1e-3) and np.allclose(rows.mean(0), 0, atol=1e-4)
    again = fit_pca(mixed.astype(np.float32), 5)
    assert torch.equal(layer.weight, again.weight)
    kept = layer.weight.numpy()
    assert (kept[np.arange(5), np.abs(kept).argmax(1)] > 0).all()


def test_directions_without_variance_do_not_explode() -> None:
    flat = np.zeros((50, 6), np.float32)
    flat[:, :2] = unit(50, 2)
    layer = fit_pca(flat, 4)
    assert float(layer.weight.abs().max()) < 100


@pytest.mark.parametrize(("rows", "dims"), [(10, 10), (50, 9)])
def test_more_dimensions_than_the_vectors_span_are_refused(rows: int, dims: int) -> None:
    with pytest.raises(ConfigError, match="lower pca"):
        fit_pca(unit(rows, 8), dims)


def shop(seed: int = 0) -> tuple[Vectors, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Twenty SKUs of ten pictures each around one direction of a wide space."""
    rng = np.random.default_rng(seed)
    middle = unit(1, 64, 7)
    skus = middle + 0.04 * rng.normal(size=(20, 64))
    rows = np.repeat(skus, 10, 0) + 0.03 * rng.normal(size=(200, 64))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), np.repeat(np.arange(20), 10)


def test_the_guard_lets_new_skus_of_the_shop_in_and_other_things_not() -> None:
    vectors, labels = shop()
    guard = fit_guard(vectors[labels < 14], labels[labels < 14], 0)
    with torch.no_grad():
        new = guard(torch.from_numpy(vectors[labels >= 14])).flatten()
        other = guard(torch.from_numpy(unit(200, 64, 5))).flatten()
    assert (new > 0.5).float().mean() > 0.85 and (other < 0.05).all() and new.median() > 0.9
    again = fit_guard(vectors[labels < 14], labels[labels < 14], 0)
    assert torch.equal(guard.centres, again.centres) and guard.threshold == again.threshold


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_guard_of_hardly_anything_is_still_a_guard(count: int) -> None:
    vectors, _ = shop()
    guard = fit_guard(vectors[:count], np.arange(count), 0)
    with torch.no_grad():
        assert guard(torch.from_numpy(vectors[:count])).isfinite().all() and guard.softness > 0


def noisy(skus: int, each: int, seed: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Unit rows of 16 dimensions: two tell the SKU, the others are how a picture was taken, strongly so in four."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(skus), each)
    angle = 2 * np.pi * labels / skus
    rows = 0.1 * rng.standard_normal((len(labels), 16))
    rows[:, :4] *= 40
    rows[:, 4], rows[:, 5] = rows[:, 4] + 3 * np.cos(angle), rows[:, 5] + 3 * np.sin(angle)
    return unit_rows(rows.astype(np.float32)), labels


def right(vectors: Vectors, views: Vectors, labels: NDArray[np.int64], own: NDArray[np.int64]) -> float:
    return float((own[(vectors @ views.T).argmax(1)] == labels).mean())


def test_scatter_within_a_sku_is_made_alike_in_all_directions() -> None:
    (vectors, labels), (asked, own) = noisy(12, 20, 0), noisy(12, 5, 1)
    layer = within_sku(vectors, labels)
    assert layer is not None
    mapped = vectors.astype(np.float64) @ layer.weight.numpy().T.astype(np.float64)
    scattered = np.concatenate([mapped[labels == sku] - mapped[labels == sku].mean(0) for sku in range(12)])
    values = np.linalg.eigvalsh(scattered.T @ scattered / len(vectors))
    plain = np.concatenate([vectors[labels == sku] - vectors[labels == sku].mean(0) for sku in range(12)])
    before = np.linalg.eigvalsh(plain.T @ plain / len(vectors))
    wanted = np.sort(before / (before + 0.1 * before.mean()))  # all 1 but for the ridge
    assert np.allclose(values / values.max(), wanted / wanted.max(), atol=1e-4)
    views, queries = (unit_rows(rows @ layer.weight.numpy().T) for rows in (vectors, asked))
    assert right(queries, views, own, labels) > right(asked, vectors, own, labels) + 0.2


def test_without_two_pictures_of_a_sku_nothing_is_whitened() -> None:
    vectors, labels = noisy(12, 1, 0)
    assert within_sku(vectors, labels) is None
    assert within_sku(vectors[:0], labels[:0]) is None
    assert within_sku(np.repeat(vectors, 2, 0), np.repeat(labels, 2)) is None


def test_the_vector_from_half_way_is_used_where_it_helps_skus_it_was_not_learnt_from() -> None:
    (middle, labels), (asked, own) = noisy(12, 20, 0), noisy(12, 5, 1)
    features, queries = (
        unit_rows((np.eye(12)[codes] + np.random.default_rng(2).normal(0, 0.6, (len(codes), 12))).astype(np.float32))
        for codes in (labels, own)
    )
    guard = Guard(torch.eye(12), 0.7, 0.05)
    views = Inside(features, middle, labels)
    found = fit_middle(guard, views, Inside(queries, asked, own))
    assert found is not None and found.width == 16 and found.threshold < guard.threshold and found.far > found.near
    scores = queries @ features.T
    with torch.no_grad():
        maps = [found(torch.from_numpy(rows)).numpy() for rows in (asked, middle)]
    both = (1 - found.far) * scores + found.far * maps[0] @ maps[1].T
    assert (labels[both.argmax(1)] == own).mean() > (labels[scores.argmax(1)] == own).mean()


def test_the_vector_from_half_way_is_left_out_where_it_costs_answers_or_nobody_asked() -> None:
    middle, labels = noisy(12, 20, 0)
    asked, own = noisy(12, 5, 1)
    sure = np.eye(12, dtype=np.float32)
    guard = Guard(torch.eye(12), 0.7, 0.05)
    views = Inside(unit_rows(sure[labels] + 1.6), middle, labels)  # right, but by little
    lying = Inside(unit_rows(sure[own] + 1.6), asked, (own + 6) % 12)  # as if half-way, SKUs were swapped
    assert fit_middle(guard, views, Inside(unit_rows(sure[lying.codes] + 1.6), asked, lying.codes)) is None
    nobody = Inside(sure[:0], asked[:0], own[:0])
    assert fit_middle(guard, views, nobody) is None


def test_clusters_are_unit_means_of_their_rows() -> None:
    vectors, _ = shop()
    centres = spherical_kmeans(vectors, 4, 0)
    nearest = (vectors @ centres.T).argmax(1)
    for number in range(4):
        mean = vectors[nearest == number].mean(0)
        assert np.allclose(centres[number], mean / np.linalg.norm(mean), atol=1e-3)


def test_blocks_in_front_of_the_first_change_are_shared(tower: Tower) -> None:
    names = list(tower.image.state_dict())
    last = [name for name in names if name.startswith("blocks.")][-1]
    shared = shared_blocks(tower.image, {last})
    assert len(shared) > 1 and last.startswith(shared[-1]) and not any(last.startswith(b + ".") for b in shared[:-1])
    assert shared_blocks(tower.image, {names[0]}) == ()  # the stem changed
    assert shared_blocks(tower.image, {names[0], last}) == ()


def test_the_guard_remembers_what_changed_and_nothing_else(tower: Tower) -> None:
    before = {name: tensor.clone() for name, tensor in tower.image.state_dict().items()}
    changed = build(ModelSource(CONV, random_init=True, size=32))
    changed.image.load_state_dict({**before, "conv_head.weight": before["conv_head.weight"] + 1})
    guard = remember(Guard(torch.eye(4), 0.5, 0.1), changed.image, before)
    assert list(guard.differing) == ["conv_head.weight"]
    assert torch.equal(guard.differing["conv_head.weight"], before["conv_head.weight"])


def test_a_guarded_encoder_asks_by_the_untouched_vector_far_from_home(tower: Tower) -> None:
    far = Guard(torch.from_numpy(unit(2, tower.dim)), 5.0, 0.01, guard_of(tower).differing)
    near = Guard(torch.from_numpy(unit(2, tower.dim)), -5.0, 0.01, guard_of(tower).differing)
    untouched = build(ModelSource(CONV, random_init=True, size=32))
    untouched.image.load_state_dict({**tower.image.state_dict(), **guard_of(tower).differing})
    tuned, before = (
        TorchEncoder(tower, None, "cpu").encode(pixels()),
        TorchEncoder(untouched, None, "cpu").encode(pixels()),
    )
    assert not np.allclose(tuned, before, atol=1e-2)
    for guard, vectors in ((near, tuned), (far, before)):
        encoder = TorchEncoder(tower, Served(guard=guard), "cpu")
        rows = encoder.encode(pixels())
        assert np.allclose(rows[:, : tower.dim], before * 0.5**0.5, atol=1e-4)
        assert np.allclose(rows[:, tower.dim :], tuned * 0.5**0.5, atol=1e-4)
        assert np.allclose(asking(encoder, rows) @ rows.T, vectors @ vectors.T, atol=1e-3)


@pytest.mark.parametrize("threshold", [-5.0, 5.0])
def test_matching_and_evaluation_ask_through_the_guard(
    tower: Tower, patterns: Path, tmp_path: Path, threshold: float
) -> None:
    """Far from home a guarded model ranks as the untouched encoder does, near it as the tuned one."""
    guard = Guard(torch.from_numpy(unit(2, tower.dim)), threshold, 0.01, guard_of(tower).differing)
    guarded = TorchEncoder(tower, Served(guard=guard), "cpu")
    alone = build(ModelSource(CONV, random_init=True, size=32))
    alone.image.load_state_dict({**tower.image.state_dict(), **(guard.differing if threshold > 0 else {})})
    rows, asked = (open_dataset(patterns).split(split).rows for split in ("train", "test"))
    found = []
    for name, encoder in (("guarded", guarded), ("alone", TorchEncoder(alone, None, "cpu"))):
        gallery = build_gallery(tmp_path / name, Supply.of(rows), encoder, Pipeline()).gallery
        answers = Matcher(encoder, gallery).match([row.path for row in asked], k=3)
        pool = embed_pool([*rows, *asked], encoder, Pipeline(), None)
        scores = pool.queries(asked).vectors @ pool.views(rows).vectors.T
        matches = [match for answer in answers for match in answer.matches]
        found.append(([match.sku for match in matches], [match.score for match in matches], scores))
    assert found[0][0] == found[1][0] and found[0][1] == pytest.approx(found[1][1], abs=1e-3)
    assert np.allclose(found[0][2], found[1][2], atol=1e-3)


@pytest.mark.parametrize("name", [CONV, "timm:test_resnet", "timm:mobilenetv2_050", "timm:test_vit"])
def test_folded_norms_answer_alike(name: str) -> None:
    made = build(ModelSource(name, random_init=True, size=64))
    for module in made.image.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    network = Network(made.image, made.preprocess).eval()
    probe = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    lean = folded(network, probe)
    with torch.no_grad():
        assert torch.allclose(lean(probe), network(probe), atol=1e-5)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in lean.modules())
    assert norms == 0 and (lean is network) == (name == "timm:test_vit")
    if lean is not network:
        assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())  # the plain one is left alone


class Forked(nn.Module):
    """A convolution whose output is used twice, once without the norm: folding would change the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_var.copy_(torch.tensor([9.0, 1, 4, 25]))  # type: ignore[union-attr]

    def forward(self, pictures: Tensor) -> Tensor:
        made = self.conv(pictures)
        return nn.functional.normalize((made + self.norm(made)).mean((2, 3)), dim=1)


def test_what_cannot_be_folded_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    network = Forked().eval()
    assert folded(network, torch.randn(2, 3, 8, 8)) is network
