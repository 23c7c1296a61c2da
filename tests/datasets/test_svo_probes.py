"""SVO-Probes as it is downloaded: the asked part differs and nothing else, and no picture is another's."""

import hashlib
import pathlib
import shutil
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.sources import Source, source
from hooked_vlm.datasets.svo_probes import COLUMNS, participle, question
from hooked_vlm.datasets.words import NEAR_NOUNS, NEAR_VERBS
from hooked_vlm.errors import DataError
from tests.datasets.folders import damaged, svo_folder, svo_line, table
from tests.models.checkpoints import wordpiece_tokenizer

LINES = [
    *(svo_line("girl,ride,horse", "boy,ride,horse", k, k + 1) for k in range(10, 16)),
    *(svo_line("boy,ride,horse", "girl,ride,horse", k + 1, k) for k in range(10, 13)),
    *(svo_line("dog,lie,bed", "cat,lie,bed", k, k + 1) for k in range(20, 23)),
    *(svo_line("dog,run,beach", "dog,sit,beach", k, k + 1) for k in range(30, 36)),
    *(svo_line("man,hit,ball", "man,eat,ball", k, k + 1) for k in range(40, 43)),
    *(svo_line("woman,hold,cup", "woman,hold,dog", k, k + 1) for k in range(50, 54)),
    *(svo_line("woman,hold,hat", "woman,hold,cat", k, k + 1) for k in range(60, 64)),
]
TASKS = {"svo_subject": 12, "svo_verb": 9, "svo_object": 8}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder for tests that change nothing in it."""
    return svo_folder(tmp_path_factory.mktemp("svo"), LINES)


def line_of(row: dict[str, Any]) -> dict[str, str]:
    return LINES[int(row["id"].rpartition("-")[2]) - 2]  # line 1 is the header


@pytest.mark.parametrize("task", TASKS)
def test_the_clean_picture_is_the_positive_one_and_the_question_has_both_words(kept: pathlib.Path, task: str) -> None:
    rows = list(source(task, data=kept).rows)
    assert len(rows) == TASKS[task]
    part = list(TASKS).index(task)
    for row in rows:
        line = line_of(row)
        positive, negative = (line[which].split(",") for which in ("pos_triplet", "neg_triplet"))
        words = [each[part] if part != 1 else participle(each[part]) for each in (positive, negative)]
        assert [row["answer"], row["wrong_answer"]] == words
        rest = [participle(each) if k == 1 else each for k, each in enumerate(positive) if k != part]
        assert row["prompt"] in {question(part, (rest[0], rest[1]), *each) for each in (words, words[::-1])}
        for which, name in (("pos", "image"), ("neg", "corrupt_image")):
            file = kept / "images" / f"{line[f'{which}_image_id']}.jpg"
            assert (np.asarray(Image.open(file)) == np.asarray(row[name])).all()
    pairs.check(pairs.table(rows, mask=False))


def test_questions_read_as_they_should(kept: pathlib.Path) -> None:
    prompts = {row["prompt"] for task in TASKS for row in source(task, data=kept).rows}
    assert prompts >= {
        "is the girl or boy riding horse?",
        "is the dog running or sitting beach?",
        "is the woman holding dog or cup?",
    }
    assert {"is the dog or cat lying bed?", "is the cat or dog lying bed?"} & prompts


@settings(max_examples=8)
@given(st.sampled_from(list(TASKS)), st.integers(0, 10**6))
def test_answers_stand_first_and_last_equally_often(kept: pathlib.Path, task: str, seed: int) -> None:
    rows = list(source(task, data=kept, seed=seed).rows)
    right = Counter((row["group"], row["answer"]) for row in rows)
    first = Counter((row["group"], row["answer"]) for row in rows if f"{row['answer']} or " in row["prompt"])
    assert all(abs(2 * first[each] - right[each]) <= 1 for each in right)
    assert abs(2 * sum(first.values()) - len(rows)) <= 3
    turns = [row["answer"] for row in rows if row["group"] == "boy/girl"][:6]
    assert turns.count("boy") == turns.count("girl")  # as far as the lines go: there are three for "boy"
    n = len({row["group"] for row in rows})
    assert len({row["group"] for row in rows[:n]}) == n


def test_row_k_is_the_same_row_wherever_a_source_starts(kept: pathlib.Path) -> None:
    whole = [row["id"] for row in source("svo_subject", data=kept, seed=7).rows]
    assert [row["id"] for row in source("svo_subject", data=kept, seed=7, start=4, n=3).rows] == whole[4:7]
    assert whole != [row["id"] for row in source("svo_subject", data=kept, seed=8).rows]


@pytest.mark.parametrize("task", TASKS)
def test_a_replacement_is_a_word_of_the_same_part_and_length(kept: pathlib.Path, task: str) -> None:
    tokenizer, near = wordpiece_tokenizer(), NEAR_VERBS if task == "svo_verb" else NEAR_NOUNS
    made = [row for row in source(task, data=kept, tokenizer=tokenizer).rows if row["corrupt_prompt"]]
    assert made
    for row in made:
        before, after = (row[name].rstrip("?").split() for name in ("prompt", "corrupt_prompt"))
        ((old, new),) = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert old == row["answer"] and new not in before and not near(old, new)
        assert (task == "svo_verb") == new.endswith("ing")
        assert len(tokenizer(row["prompt"])["input_ids"]) == len(tokenizer(row["corrupt_prompt"])["input_ids"])


def counted(folder: pathlib.Path, lines: list[dict[str, str]], task: str = "svo_subject") -> Source:
    """The source of one good line and some others."""
    return source(task, data=svo_folder(folder, [svo_line("girl,eat,cake", "dog,eat,cake", 1, 2), *lines]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (svo_line("girl,eat,cake", "girl,cut,cake", 3, 4), "the pictures differ in another part"),
        (svo_line("girl,eat,cake", "boy,cut,cake", 3, 4), "the pictures differ in another part"),
        (svo_line("girl,eat,cake", "boy,eat,soup", 3, 4, obj_neg="False"), "the triplets differ otherwise"),
        (svo_line("girl,eat", "boy,eat", 3, 4), "a triplet is not three words"),
        (svo_line("girl,,cake", "boy,,cake", 3, 4), "a triplet is not three words"),
        (svo_line("girl,eat,100%", "boy,eat,100%", 3, 4), "a triplet is not three words"),
        (svo_line("woman,eat,cake", "person,eat,cake", 3, 4), "the two answers mean nearly the same"),
        (svo_line("dog,eat,cat", "cat,eat,cat", 3, 4), "an answer stands twice in the question"),
        (svo_line("girl,eat,cake", "dog,eat,cake", 1, 2, sentence="Again."), "an earlier line asks the same"),
    ],
)
def test_a_line_that_does_not_fit_is_counted(tmp_path: pathlib.Path, line: dict[str, str], reason: str) -> None:
    drawn = counted(tmp_path, [line])
    assert len(list(drawn.rows)) == 1
    (said,) = [each for each in drawn.skipped if not each.startswith("no corrupt prompt")]
    assert said.startswith(reason)
    assert drawn.skipped[said] == 1 and drawn.named[said][0].startswith("line 3")


def test_missing_and_damaged_pictures_are_named_and_passed_over(tmp_path: pathlib.Path) -> None:
    lines = [svo_line("girl,eat,cake", "cat,eat,cake", k, k + 1) for k in range(10, 20, 2)]
    lines.append(svo_line("boy,eat,cake", "cat,eat,cake", 12, 17))
    svo_folder(tmp_path, lines)
    (tmp_path / "images" / "10.jpg").unlink()
    damaged(tmp_path / "images" / "12.jpg")
    shutil.copy(tmp_path / "images" / "14.jpg", tmp_path / "images" / "15.jpg")
    drawn = source("svo_subject", data=tmp_path)
    with pytest.warns(UserWarning, match=r"1 of the pictures .* images/12\.jpg"):
        rows = list(drawn.rows)
    assert sorted(row["id"] for row in rows) == ["svo_subject-000005", "svo_subject-000006"]
    assert drawn.named["there is no file of the picture"] == ["line 2: 10"]
    assert drawn.named["the picture cannot be read"] == ["images/12.jpg"]
    assert drawn.skipped["the two pictures are the same picture"] == 1


def test_pictures_are_found_by_id_by_hash_and_by_the_url_s_name(tmp_path: pathlib.Path) -> None:
    svo_folder(tmp_path, LINES[:4], ending=".png")
    urls = {line[f"{which}_image_id"]: line[f"{which}_url"] for line in LINES[:4] for which in ("pos", "neg")}
    (tmp_path / "images" / "10.png").rename(tmp_path / "10.png")
    for id, name in (
        ("11", hashlib.sha256(urls["11"].encode()).hexdigest() + ".png"),
        ("12", hashlib.md5(urls["12"].encode()).hexdigest()),
        ("13", "13_o.png"),
    ):
        (tmp_path / "images" / f"{id}.png").rename(tmp_path / "images" / name)
    drawn = source("svo_subject", data=tmp_path)
    assert len(list(drawn.rows)) == 4
    assert not drawn.skipped["there is no file of the picture"]


def test_a_name_that_two_urls_share_or_that_is_another_picture_s_id_finds_nothing(tmp_path: pathlib.Path) -> None:
    lines = [
        svo_line("girl,eat,cake", "cat,eat,cake", 1, 2, pos_url="http://a.org/photo.jpg"),
        svo_line("boy,eat,cake", "cat,eat,cake", 3, 4, pos_url="http://b.org/photo.jpg"),
        svo_line("dog,eat,cake", "cat,eat,cake", 5, 6, pos_url="http://b.org/4.jpg"),
        svo_line("dog,eat,cake", "cat,eat,cake", 7, 8),
    ]
    svo_folder(tmp_path, lines)
    for id in ("1", "3", "5"):
        (tmp_path / "images" / f"{id}.jpg").unlink()
    shutil.copy(tmp_path / "images" / "2.jpg", tmp_path / "images" / "photo.jpg")
    drawn = source("svo_subject", data=tmp_path)
    assert [row["id"] for row in drawn.rows] == ["svo_subject-000005"]
    assert drawn.skipped["there is no file of the picture"] == 3


def test_a_folder_that_is_something_else_is_refused_with_what_is_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "svo.csv").write_text("")
    with pytest.raises(DataError, match=r"has no svo_probes\.csv: expected .* found svo\.csv"):
        source("svo_verb", data=tmp_path)
    table(tmp_path / "svo_probes.csv", LINES, [name for name in COLUMNS if name != "neg_url"])
    damaged(tmp_path / "images" / "1.jpg")
    with pytest.raises(DataError, match=r"no column neg_url: expected pos_triplet"):
        source("svo_verb", data=tmp_path)
    table(tmp_path / "svo_probes.csv", LINES)
    with pytest.raises(DataError, match=r"No line of .* as svo_verb: .*there is no file of the picture \(9\)"):
        source("svo_verb", data=tmp_path)
    (tmp_path / "images" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"holds no picture: expected .* by image id"):
        source("svo_verb", data=tmp_path)


def test_a_table_in_another_encoding_is_refused(tmp_path: pathlib.Path) -> None:
    svo_folder(tmp_path, LINES[:2])
    raw = (tmp_path / "svo_probes.csv").read_bytes()
    (tmp_path / "svo_probes.csv").write_bytes(raw + "caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"Line 4 of .*svo_probes\.csv' is not UTF-8"):
        source("svo_subject", data=tmp_path)
    (tmp_path / "svo_probes.csv").write_bytes(b"\xef\xbb\xbf" + raw)  # as a spreadsheet saves it
    assert len(list(source("svo_subject", data=tmp_path).rows)) == 2


FORMS = (
    "ride riding, sit sitting, run running, swim swimming, lie lying, die dying, tie tying, see seeing, be being, "
    "ski skiing, stop stopping, hug hugging, play playing, write writing, make making, picnic picnicking, eat eating, "
    "travel traveling, visit visiting, open opening, grab grabbing, put putting, jog jogging, sew sewing, fix fixing, "
    "hit hitting, cut cutting, dig digging, fly flying, carry carrying, dance dancing, bring bringing, riding riding, "
    "sitting sitting, program programming, kneel kneeling, agree agreeing, dye dyeing, surf surfing, skate skating"
)


@pytest.mark.parametrize("pair", FORMS.split(", "))
def test_a_verb_takes_its_ending(pair: str) -> None:
    verb, form = pair.split()
    assert participle(verb) == form
