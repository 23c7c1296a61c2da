"""Tables of comma-separated values: every line is read as it stands, or its file and number are named."""

import csv
import io
import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm.datasets.sources import source
from hooked_vlm.datasets.tables import lines
from hooked_vlm.errors import DataError, TaskSchemaError
from tests.datasets.folders import picture, svo_folder, svo_line

COLUMNS = ("one", "two")
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


def written(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: pathlib.Path) -> list[dict[str, str]]:
    return [line for _, line in lines(path, COLUMNS)]


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8))
def test_whatever_a_writer_wrote_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([COLUMNS, *rows])
    path = written(tmp_path_factory.mktemp("table") / "t.csv", text.getvalue())
    assert read(path) == [dict(zip(COLUMNS, map(str.strip, row), strict=True)) for row in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=ascii)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=ascii)
def test_marks_ends_of_lines_and_empty_lines_change_nothing(tmp_path: pathlib.Path, end: str, mark: str) -> None:
    path = written(tmp_path / "t.csv", mark + end.join(["two, one ", "", 'b,"a, a"', "d,c"]))
    assert list(lines(path, COLUMNS, ("three",))) == [
        (3, {"one": "a, a", "two": "b", "three": ""}),
        (4, {"one": "c", "two": "d", "three": ""}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('one,two\na,b\n"c"d,e\n', r"Line 3 of .*t\.csv' cannot be read .* A quote inside"),
        ('one,two\na,b\n"c,d\ne,f\n', r"Line 4 of .*t\.csv' cannot be read .* unexpected end of data"),
        ('one,two\n"a,b\nc,"d"\n', r"Line 3 of .*t\.csv'"),
        ("one,two\na,b\nc\n", r"Line 3 of .*t\.csv' has 1 cells and the header 2"),
        ("one,two\na,b,c\n", r"Line 2 of .*t\.csv' has 3 cells and the header 2"),
        ('one,two\na, "b, c"\n', r"Line 2 of .*t\.csv' has 3 cells and the header 2: .* double quotes"),
        ("one,two\na,b\nc,\0d\n", r"Line 3 of .*t\.csv' holds a NUL"),
        ("one,two\na," + "b" * 200_000, r"Line 2 of .*t\.csv' cannot be read .* field larger"),
        ("one,two\na,b\nc,caf\u00e9\n".encode("latin-1"), r"Line 3 of .* not UTF-8 \(byte 0xe9.*reads 'c,caf\u00e9"),
        ("one,two\na,b\n".encode("utf-16"), r"t\.csv' is UTF-16, not UTF-8\. Save it as UTF-8"),
        ("one,two\na,b\n".encode("utf-32"), r"t\.csv' is UTF-32, not UTF-8\. Save it as UTF-8"),
        ("one,two\na,b\n".encode("utf-16-be"), r"Line 1 of .*t\.csv' holds a NUL: .* not UTF-8"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: pathlib.Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(written(tmp_path / "t.csv", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one,two,one\na,b,c\n", r"t\.csv' has two columns called 'one'"),
        ("one;two\na;b\n", r"t\.csv' has no column one, two: expected one, two; found one;two"),
        ("", r"t\.csv' has no column one, two: .* found nothing"),
    ],
)
def test_a_header_that_does_not_fit_is_named(tmp_path: pathlib.Path, content: str, message: str) -> None:
    with pytest.raises(TaskSchemaError, match=message):
        read(written(tmp_path / "t.csv", content))


PAIRS = "image,corrupt_image,prompt,answer,wrong_answer"
PAIR = "cat.png,dog.png,is it a cat or a dog?,cat,dog"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'{PAIRS}\n{PAIR}\n"cat.png"x,dog.png,a or b?,a,b\n', r"Line 3 of .*pairs\.csv' cannot be read"),
        (f"{PAIRS}\n{PAIR}\ncat.png,dog.png\n", r"Line 3 of .*pairs\.csv' has 2 cells and the header 5"),
        (f"{PAIRS}\n{PAIR}\n{PAIR},more\n", r"Line 3 of .*pairs\.csv' has 6 cells and the header 5"),
        (f"{PAIRS}\n{PAIR},caf\u00e9\n".encode("latin-1"), r"Line 2 of .* not UTF-8 \(byte 0xe9"),
        (f"{PAIRS}\n{PAIR}\n".encode("utf-16"), r"pairs\.csv' is UTF-16, not UTF-8"),
    ],
)
def test_a_damaged_table_of_pairs_is_refused_by_its_line(
    tmp_path: pathlib.Path, content: str | bytes, message: str
) -> None:
    for number, name in enumerate(("cat.png", "dog.png")):
        picture(tmp_path / name, number)
    written(tmp_path / "pairs.csv", content)
    with pytest.raises(DataError, match=message):
        list(source("folder", data=tmp_path).rows)


def test_a_table_of_pairs_has_each_column_once(tmp_path: pathlib.Path) -> None:
    for number, name in enumerate(("cat.png", "dog.png")):
        picture(tmp_path / name, number)
    written(tmp_path / "pairs.csv", f"{PAIRS},prompt\n{PAIR},a cat or a dog?\n")
    with pytest.raises(TaskSchemaError, match=r"pairs\.csv' has two columns called 'prompt'"):
        list(source("folder", data=tmp_path).rows)


def test_a_cell_under_no_name_is_refused_save_in_the_first_column(tmp_path: pathlib.Path) -> None:
    """The first is an index, as data frames write it; empty columns at the end are a spreadsheet's."""
    assert read(written(tmp_path / "t.csv", ",one,two,,\n0,a,b,,\n1,c,d, ,\n")) == [
        {"one": "a", "two": "b"},
        {"one": "c", "two": "d"},
    ]
    with pytest.raises(
        TaskSchemaError, match=r"Line 3 of .*t\.csv' holds 'lost' in column 4, which the header does not"
    ):
        read(written(tmp_path / "t.csv", "one,two,,\na,b,,\nc,d,,lost\n"))


def test_what_is_no_file_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t\.csv' is no file"):
        read(tmp_path / "t.csv")


def test_the_tables_of_data_sets_are_read_by_the_same_reader(tmp_path: pathlib.Path) -> None:
    folder = svo_folder(tmp_path, [svo_line("girl,ride,horse", "boy,ride,horse", 1, 2)])
    whole = (folder / "svo_probes.csv").read_text()
    for spoilt, message in [
        (whole + "a,b\n", "Line 3 .* has 2 cells"),
        (whole.replace("pos_url", "neg_url"), "neg_url"),
    ]:
        (folder / "svo_probes.csv").write_text(spoilt)
        with pytest.raises(DataError, match=message):
            source("svo_subject", data=folder)
