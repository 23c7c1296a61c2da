"""Pictures in large folders: listed and never opened before they are due, and every kind of damage named."""

import gc
import io
import os
import pathlib
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hooked_vlm.datasets import pictures
from hooked_vlm.datasets.pictures import NAMES_KEPT, Deck, Skips, same, shuffled
from hooked_vlm.datasets.questions import Questions, in_turns
from hooked_vlm.datasets.replacements import Related
from hooked_vlm.datasets.sources import source
from hooked_vlm.errors import DataError, ImageError
from hooked_vlm.images import read
from tests.datasets.folders import damaged, picture

names = st.sets(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6), max_size=12)


# --- one picture ----------------------------------------------------------------------------------------


def test_every_kind_of_picture_becomes_rgb(tmp_path: pathlib.Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = grey.astype(np.uint16) * 257
    files = {"grey.png": Image.fromarray(grey), "deep.png": Image.fromarray(deep)}
    files |= {"palette.gif": Image.fromarray(grey).convert("P"), "ink.jpg": Image.fromarray(grey).convert("CMYK")}
    for name, made in files.items():
        made.save(tmp_path / name)
        found = read(tmp_path / name)
        assert found.mode == "RGB" and found.size == (16, 16)
        if name != "ink.jpg":
            assert (np.asarray(found) == grey[:, :, None]).all(), name


def test_a_camera_s_rotation_is_applied(tmp_path: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read(tmp_path / "turned.jpg").size == (4, 8)


def test_every_kind_of_damage_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged(tmp_path / "cut.png")
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    for name in ("cut.png", "page.jpg", "empty.jpg", "folder.jpg", "gone.jpg"):
        with pytest.raises(ImageError, match=name.replace(".", r"\.")):
            read(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"more than PIL\.Image\.MAX_IMAGE_PIXELS"):
        read(picture(tmp_path / "large.png", 1, side=12))


def test_only_equal_pictures_are_the_same() -> None:
    one = Image.new("RGB", (2, 3), (1, 2, 3))
    assert same(one, one.copy())
    assert not same(one, Image.new("RGB", (3, 2), (1, 2, 3)))
    assert not same(one, Image.new("RGB", (2, 3), (1, 2, 4)))


# --- names ----------------------------------------------------------------------------------------------


@given(names, st.integers(0, 99))
def test_a_name_that_goes_moves_no_other(drawn: set[str], seed: int) -> None:
    order = shuffled(drawn, "some", seed)
    assert sorted(order) == sorted(drawn)
    for name in order:
        assert shuffled(drawn - {name}, "some", seed) == [each for each in order if each != name]


def test_every_order_is_drawn_about_as_often() -> None:
    orders = Counter(tuple(shuffled("abc", seed)) for seed in range(600))
    assert len(orders) == 6 and min(orders.values()) > 60


def test_a_name_that_is_no_utf_8_is_a_name(tmp_path: pathlib.Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    try:
        os.rename(picture(tmp_path / "one.png", 1), odd)
    except OSError:
        pytest.skip("this disk takes UTF-8 alone")
    found = Deck(tmp_path, "any", 0, skips=Skips(), label="here").once()
    assert found is not None and same(found[1], read(os.fsdecode(odd)))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: pathlib.Path) -> None:
    for listing in (pictures.names_in, pictures.folders_in):
        with pytest.raises(DataError, match="gone' cannot be listed"):
            list(listing(tmp_path / "gone"))


def test_skips_count_all_and_name_the_first() -> None:
    skips = Skips()
    for k in range(3 * NAMES_KEPT):
        skips.add("why", f"name {k}")
    assert skips.counts == {"why": 3 * NAMES_KEPT}
    assert skips.names["why"] == [f"name {k}" for k in range(NAMES_KEPT)]


def test_a_long_list_of_damage_is_cut_in_the_warning() -> None:
    skips = Skips()
    for k in range(NAMES_KEPT + 5):
        skips.add(pictures.UNREADABLE, f"{k}.jpg")
    with pytest.warns(UserWarning, match=rf"{NAMES_KEPT + 5} of the pictures of here .* and 5 more"):
        skips.warn("here")


# --- decks ----------------------------------------------------------------------------------------------


def test_a_deck_gives_each_picture_once_and_partners_for_ever(tmp_path: pathlib.Path) -> None:
    for k in range(5):
        picture(tmp_path / f"{k}.PNG", k)
    damaged(tmp_path / "bad.png")
    picture(tmp_path / ".hidden.png", 9)
    (tmp_path / "Thumbs.db").touch()
    skips = Skips()
    deck = Deck(tmp_path, "any", 0, skips=skips, label="here")
    assert len(deck) == 6
    partners = [deck.partner() for _ in range(12)]
    once = [deck.once() for _ in range(6)]
    assert once[-1] is None and deck.once() is None
    assert {each[0] for each in once[:5] if each} == {f"{k}.PNG" for k in range(5)}
    assert set(Counter(each[0] for each in partners[:10] if each).values()) == {2}
    assert len(deck) == 5
    assert skips.names == {"the picture cannot be read": ["here/bad.png"]}


def test_an_empty_deck_gives_nothing(tmp_path: pathlib.Path) -> None:
    deck = Deck(tmp_path, "any", skips=Skips(), label="here")
    assert deck.once() is None and deck.partner() is None and len(deck) == 0


# --- questions ------------------------------------------------------------------------------------------


def test_turns_go_round_until_all_are_at_their_end() -> None:
    groups = [iter([{"id": f"{name}{k}"} for k in range(n)]) for name, n in (("a", 1), ("b", 3), ("c", 0), ("d", 2))]
    assert [row["id"] for row in in_turns(groups)] == ["a0", "b0", "d0", "b1", "d1", "b2"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=40), st.integers(0, 99))
def test_places_stay_level_whichever_answers_come(answers: list[tuple[str, bool]], seed: int) -> None:
    draws = Questions("some", seed, None, Related(), Skips())
    image = Image.new("RGB", (1, 1))
    first: Counter[tuple[str, str]] = Counter()
    for k, (group, one) in enumerate(answers):
        right, wrong = ("yes", "no") if one else ("no", "yes")
        row = draws.row(str(k), group, right, wrong, lambda a, b: f"{a} {b}", image, image, ())
        first[group, right] += 1 if row["prompt"].startswith(right) else -1
        assert abs(first[group, right]) <= 1
    assert abs(sum(first.values())) <= 4


# --- sixty thousand -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Faces under 60,000 names; the files of one emotion are one picture, linked."""
    folder = tmp_path_factory.mktemp("large")
    for number, emotion in enumerate(("happy", "sad", "angry")):
        one = picture(folder / "train" / emotion / "00000.png", number)
        for k in range(1, 20_000):
            os.link(one, one.with_name(f"{k:05d}.png"))
    return folder


def test_sixty_thousand_pictures_are_listed_and_only_those_due_are_opened(
    large: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Counter[str]()

    def counting(source: Any, name: str | None = None) -> Image.Image:
        opened["all"] += 1
        return read(source, name)

    monkeypatch.setattr(pictures, "read", counting)
    drawn = source("facial_expressions", data=large)
    assert not opened
    assert len([next(drawn.rows) for _ in range(30)]) == 30
    assert opened["all"] == 60


def test_memory_does_not_grow_with_the_rows_drawn(large: pathlib.Path) -> None:
    drawn = source("facial_expressions", data=large)
    for _ in range(20):
        next(drawn.rows)

    def held() -> int:
        """Bytes that the package and Pillow hold: what else this process does, and garbage, is not theirs."""
        gc.collect()
        files = [tracemalloc.Filter(True, f"*{os.sep}{name}{os.sep}*") for name in ("hooked_vlm", "PIL")]
        return sum(each.size for each in tracemalloc.take_snapshot().filter_traces(files).statistics("filename"))

    tracemalloc.start()
    for _ in range(20):
        next(drawn.rows)
    before = held()
    for _ in range(600):
        next(drawn.rows)
    grown = held() - before
    tracemalloc.stop()
    assert grown < 100_000  # the 1,200 pictures of these rows would be nearly 500,000


def test_a_picture_in_bytes_is_read_like_a_file() -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(file, "PNG")
    assert read(file.getvalue()).size == (3, 2)
    with pytest.raises(ImageError, match="'mine' is not an image"):
        read(b"nothing", "mine")
