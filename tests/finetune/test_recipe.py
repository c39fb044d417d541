"""Recipes: what ships loads, and mistakes in a recipe are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skumatch.errors import ConfigError
from skumatch.finetune.parts import After, Augment, Course, Served
from skumatch.finetune.recipe import Recipe, load_recipe, recipe_from, recipe_names


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_recipes_that_the_readme_names_ship() -> None:
    assert {"default", "quick", "scratch"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.epochs > 0 and len(recipe.schedule.steps()) > 0


def test_a_file_sets_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "epochs = 3\nlr_conv = 1\n[augment]\nblur = 0\n"))
    assert recipe == Recipe(epochs=3, lr_conv=1.0, augment=Augment(blur=0.0))
    assert isinstance(recipe.lr_conv, float)
    assert isinstance(recipe.augment.blur, float)


def test_overrides_replace_and_none_keeps(tmp_path: Path) -> None:
    path = write(tmp_path, "epochs = 3\nseed = 4\n")
    assert load_recipe(path, epochs=5, seed=None) == Recipe(epochs=5, seed=4)


def test_overrides_reach_into_tables_and_keep_what_they_do_not_name(tmp_path: Path) -> None:
    path = write(tmp_path, "[schedule]\nsizes = '64'\npatience = 3\n")
    recipe = load_recipe(path, schedule={"sizes": "32"}, serve={"guard": True})
    assert recipe == Recipe(schedule=Course(sizes="32", patience=3), serve=Served(guard=True))


def test_sizes_are_pixels_or_shares_with_their_parts() -> None:
    assert Course(sizes="128:4, 160:4,0.5").steps() == [(128, 4), (160, 4), (0.5, 1)]


def test_few_pictures_are_shown_more_often() -> None:
    recipe = Recipe(epochs=4, min_steps=100)
    assert [recipe.lengthened(steps).epochs for steps in (1, 9, 25, 1000)] == [100, 12, 4, 4]
    assert Recipe(epochs=0, min_steps=100).lengthened(5).epochs == 0


def test_overrides_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="epochs is -1"):
        load_recipe("default", epochs=-1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "unknown key 'epoch' - did you mean 'epochs'"),
        ("[augment]\nrotatoin = 3", r"\[augment\]: unknown key 'rotatoin' - did you mean 'rotation'"),
        ("zzzzqqq = 3", "unknown key 'zzzzqqq' - remove it"),
        ("epochs = 'three'", "epochs is 'three' - give a value of type int"),
        ("epochs = 3.5", r"epochs is 3\.5 - give a value of type int"),
        ("epochs = true", "epochs is True"),
        ("dropout = 1", "dropout is 1.0 - choose 0 to 0.9"),
        ("batch = 1", "batch is 1 - choose 2 to"),
        ("[arcface]\ns = nan", "s is nan"),
        ("[arcface]\nmargin_to = inf", "margin_to is inf"),
        ("[augment]\nmin_scale = 0", "min_scale is 0.0"),
        ("augment = 3", "augment is not a table"),
        ("serve = 'tail'", r"serve is not a table - write it as \[serve\]"),
        ("[serve]\nlayer = 'tail'", "serve: layer is 'tail' - choose features, head, both, measure"),
        ("mode = 'lore'", "mode is 'lore' - choose head, projection, lora, full"),
        ("[objectives]\narcface = 0", "nothing teaches the SKUs"),
        ("[objectives]\narcface = -1", "arcface is -1"),
        ("[objectives]\ndistil = 1", "distil has no teacher"),
        ("[clip]\ntemplates = ['a photo']", "every template needs one {}"),
        ("[clip]\ntemplates = 'a {}'", "give a list in brackets"),
        ("[clip]\ntemplates = [3]", "templates is 3 - give a value of type str"),
        ("[clip]\nlearn = 1", "learn is 1 - give a value of type bool"),
        ("[schedule]\nsizes = '128:4,x'", "sizes is '128:4,x' - write it like"),
        ("[schedule]\nsizes = '3'", "sizes is '3'"),
        ("[schedule]\nsizes = '128:0'", "sizes is '128:0'"),
        ("[schedule]\nsizes = '1.2.3'", "sizes is '1.2.3'"),
        ("[schedule]\nkind = 'step'", "kind is 'step' - choose cosine, one-cycle, restarts"),
        ("[after]\nwise_ft = [0.5, 2]", "wise_ft is"),
        ("batch = 6\n[sampler]\ndraw = 'pk'", "holds less than two SKUs of 4 pictures"),
        ("epochs = 0\nhead_epochs = 0", "no epochs at all"),
        ("hold_out = 0.95", "hold_out is 0.95 - choose 0 to 0.9"),
        ("hold_out = -0.1", "hold_out is -0.1"),
        ("hold_out = '10 %'", "hold_out is '10 %' - give a value of type float"),
        ("epochs = = 3", "not valid TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe(write(tmp_path, text))


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        load_recipe(str(tmp_path / "bad.toml"))


@pytest.mark.parametrize("name", ["no-such-recipe", "."])
def test_an_unknown_name_lists_the_recipes(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no recipe .* - choose .*default.*quick"):
        load_recipe(name)


def test_a_record_from_before_there_was_hold_out_holds_out_nothing() -> None:
    record = {key: value for key, value in Recipe(epochs=2).to_json().items() if key != "hold_out"}
    assert recipe_from(record).hold_out == 0


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(epochs=2, hold_out=0.2, augment=Augment(jpeg=0.5), after=After(wise_ft=(0.5, 1.0)))
    assert recipe_from(json.loads(json.dumps(recipe.to_json()))) == recipe
