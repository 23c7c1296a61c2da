"""Pictures of scenes: the same everywhere, and masks that are exact."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_vlm.datasets import scenes
from hooked_vlm.datasets.scenes import BACKGROUNDS, COLOURS, JITTER, PLACES, RADII, SHAPES, Dice, Scene, Thing

jitters = st.tuples(st.integers(-JITTER, JITTER), st.integers(-JITTER, JITTER))


@st.composite
def drawn_scenes(draw: st.DrawFn) -> Scene:
    places = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True))
    traits = st.tuples(st.sampled_from(SHAPES), st.sampled_from(tuple(COLOURS)), jitters, st.sampled_from(RADII))
    things = []
    for place in places:
        shape, colour, jitter, radius = draw(traits)
        things.append(Thing(shape, colour, place, jitter, radius))
    return Scene(draw(st.sampled_from(tuple(BACKGROUNDS))), tuple(things))


PINNED = Scene(
    "dark",
    (
        Thing("circle", "red", (0, 0), (-2, 1), 8),
        Thing("triangle", "yellow", (1, 1), (2, -1), 7),
        Thing("cross", "green", (2, 0), (0, 2), 8),
    ),
)


def test_a_scene_has_the_same_bytes_on_every_machine() -> None:
    assert hashlib.sha256(scenes.render(PINNED).tobytes()).hexdigest() == (
        "f79f64737b0b216377923723a738bcf2c798cd6628c68ed24c1103e6c4ceaaf6"
    )
    assert hashlib.sha256(scenes.render(PINNED, 96).tobytes()).hexdigest() == (
        "06ca674a72bc0294083b6deeab1ae365d8f5da469422581fba9b69ff8f30ad3f"
    )


def test_dice_fall_the_same_on_every_machine() -> None:
    dice = Dice("a key", 7)
    assert [dice.below(1000) for _ in range(6)] == [338, 12, 150, 407, 862, 619]
    assert dice.sample("abcd", 4) == ["a", "c", "b", "d"]


@given(st.integers(0, 10**6), st.integers(1, 50))
def test_dice_stay_in_range_and_samples_hold_no_thing_twice(seed: int, n: int) -> None:
    dice = Dice("range", seed)
    assert 0 <= dice.below(n) < n
    assert sorted(dice.sample(range(n), n)) == list(range(n))


def test_dice_are_fair() -> None:
    counts = np.bincount([Dice("fair", seed).below(6) for seed in range(6000)], minlength=6)
    assert abs(counts - 1000).max() < 150  # five standard deviations


@settings(max_examples=60)
@given(drawn_scenes(), st.sampled_from((32, 64, 100)))
def test_a_mask_holds_every_pixel_its_thing_changes_and_no_other(scene: Scene, size: int) -> None:
    picture = scenes.render(scene, size)
    for number, thing in enumerate(scene.things):
        rest = Scene(scene.background, scene.things[:number] + scene.things[number + 1 :])
        changed = (picture != scenes.render(rest, size)).any(axis=-1)
        assert (changed == scenes.mask(thing, size)).all()


@settings(max_examples=60)
@given(drawn_scenes())
def test_no_two_things_touch(scene: Scene) -> None:
    masks = np.stack([scenes.mask(thing) for thing in scene.things])
    assert masks.sum(axis=0).max() == 1


@settings(max_examples=60)
@given(drawn_scenes())
def test_every_thing_is_whole_and_its_ink_is_its_colour(scene: Scene) -> None:
    picture = scenes.render(scene)
    for thing in scene.things:
        x, y = thing.centre
        assert tuple(picture[y, x]) == COLOURS[thing.colour]
        mask = scenes.mask(thing)
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


@given(drawn_scenes())
def test_the_order_of_things_changes_neither_digest_nor_picture(scene: Scene) -> None:
    turned = replace(scene, things=scene.things[::-1])
    assert turned.digest() == scene.digest()
    assert (scenes.render(turned) == scenes.render(scene)).all()


@given(drawn_scenes(), drawn_scenes())
def test_scenes_with_different_digests_have_different_pictures(one: Scene, other: Scene) -> None:
    assert (one.digest() == other.digest()) == bool((scenes.render(one) == scenes.render(other)).all())


def test_shapes_and_colours_tell_apart() -> None:
    pictures = {
        scenes.render(Scene(ground, (Thing(shape, colour, (1, 1), (0, 0), 8),))).tobytes()
        for shape in SHAPES
        for colour in COLOURS
        for ground in BACKGROUNDS
    }
    assert len(pictures) == len(SHAPES) * len(COLOURS) * len(BACKGROUNDS)


def test_an_unknown_shape_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"'hexagon'.*circle, square, triangle, cross"):
        scenes.mask(Thing("hexagon", "red", (1, 1), (0, 0), 8))
