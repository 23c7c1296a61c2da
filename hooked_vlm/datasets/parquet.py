"""Rows of a task from a parquet file, whoever wrote it: its columns and ids checked at once, its rows one at a time.

Costs: the column of ids; then one row group in memory at a time.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.rows import Row
from hooked_vlm.errors import DataError, TaskSchemaError, cut, quoted


def opened(path: Path) -> pq.ParquetFile:
    """A task's file, its columns and ids checked; its pictures stay on disk.

    Raises:
        DataError: There is no such file, it is no parquet file, or it holds no rows.
        TaskSchemaError: A column is missing or of another type, or a row has no id or another row's.
    """
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}: a task's parquet file is written by pairs.write_parquet.")
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)  # else it keeps every row group it read
        _check_columns(path, file.schema_arrow)
        ids = file.read(columns=["id"])["id"].cast(pa.string())
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{str(path)!r} is no parquet file that can be read: {cut(error)}") from error
    if not len(ids):
        raise DataError(f"{str(path)!r} holds no rows: expected one at least.")
    if pc.count_distinct(ids, mode="all").as_py() != len(ids) or ids.null_count:
        names = ids.to_pylist()
        if None in names:
            raise TaskSchemaError(f"Row {names.index(None)} of {str(path)!r} has no id.")
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise TaskSchemaError(f"{str(path)!r} has two rows called {quoted(twice)}: ids differ in a task.")
    if (empty := pc.index(pc.utf8_trim_whitespace(ids), "").as_py()) >= 0:
        raise TaskSchemaError(f"Row {empty} of {str(path)!r} has no id.")
    return file


def rows(file: pq.ParquetFile, path: Path) -> Iterator[Row]:
    """The raw rows of a file, as `rows.whole` reads them.

    Raises:
        DataError: The file is damaged further on.
    """
    columns = [name for name in pairs.COLUMNS if name in file.schema_arrow.names]
    try:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(batch_size=8, row_groups=[group], columns=columns, use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read to its end: {cut(error)}") from error


def _check_columns(path: Path, schema: pa.Schema) -> None:
    there = schema.names
    if missing := [name for name in pairs.COLUMNS if name not in (*there, *pairs.OPTIONAL)]:
        raise TaskSchemaError(f"{str(path)!r} has no column {', '.join(missing)}: a task has all of them.")
    if twice := [name for name in pairs.COLUMNS if there.count(name) > 1]:
        raise TaskSchemaError(f"{str(path)!r} has two columns called {', '.join(twice)}: names differ.")
    for name in pairs.COLUMNS:
        if name not in there:
            continue
        found = schema.field(name).type
        fits, expected = (_is_text, "texts") if name in pairs.TEXTS else (_is_picture, "pictures (bytes, or paths)")
        if not (fits(found) or pa.types.is_null(found)) or (name == "id" and pa.types.is_null(found)):
            raise TaskSchemaError(f"The column {name} of {str(path)!r} holds {cut(found)}; expected {expected}.")


def _is_text(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)


def _is_picture(found: pa.DataType) -> bool:
    if pa.types.is_struct(found):
        kinds = {field.name: field.type for field in found}
        return bool(kinds) and set(kinds) <= {"bytes", "path"} and all(map(_is_picture, kinds.values()))
    return _is_text(found) or pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_null(found)
