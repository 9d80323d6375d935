"""The six labels: their order, their weights in the metric, and the competition's long CSV <-> six-column frame.

A label frame is indexed by SOPInstanceUID and has six int8 columns in the order of `LABELS`. The long CSV has a line
for each image and label, `ID_63eb1e259_epidural,0`, under the header `ID,Label`.
"""

import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ich.errors import IchError, name_some, one_line

LABELS: tuple[str, ...] = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
ANY = len(LABELS) - 1  # the index of `any`, after the five subtypes of hemorrhage

METRIC_WEIGHTS: dict[str, int] = {
    "epidural": 1,
    "intraparenchymal": 1,
    "intraventricular": 1,
    "subarachnoid": 1,
    "subdural": 1,
    "any": 2,
}

INDEX_NAME = "SOPInstanceUID"


class LabelFile(NamedTuple):
    """A label file as `read_labels` returns it.

    Args:
        frame: the label frame, rows in the order in which the images first appear in the file.
        merged: number of images that were listed more than once with equal labels, merged to one row.
    """

    frame: pd.DataFrame
    merged: int


def read_labels(source: str | Path | BinaryIO) -> LabelFile:
    """Read the competition's long label file, whatever the order of its rows.

    Args:
        source: path of the CSV, plain or compressed (.gz, .xz, or a .zip of that one file); or a file opened in
            binary mode, such as a member of the competition's archive.

    Returns:
        (frame, merged): frame has int8 labels 0 and 1, shape (images, 6), index of strings `ID_<hex>`.

    Raises:
        IchError: the file cannot be read, has another header or no rows; an id is not `ID_<hex>_<label>`; a label is
            not 0 or 1; an image lacks a label, is listed twice with different labels, or has an `any` which is not
            the OR of the other five. The message names the first three.
    """
    name = _name(source)
    table = _read_table(source, name)
    images, rows, numbers = _number_images(table["ID"], name)
    ones = _read_values(table, name)

    # Fortran's order: pandas stores each column contiguously.
    labels = np.zeros((len(images), len(LABELS)), dtype=np.int8, order="F")
    listed = np.zeros(labels.shape, dtype=np.int32, order="F")
    contradicted = np.zeros(len(images), dtype=bool)
    for column, (at, image) in enumerate(zip(rows, numbers, strict=True)):
        labels[image, column] = ones[at]
        listed[:, column] = np.bincount(image, minlength=len(images))
        contradicted[image[labels[image, column] != ones[at]]] = True

    missing = (listed == 0).any(axis=1)
    if missing.any():
        lacking = [label for label, lacks in zip(LABELS, (listed == 0).any(axis=0), strict=True) if lacks]
        raise IchError(
            f"{name} has fewer than six labels for {name_some(images[missing])} (no {' or '.join(lacking)}); every "
            "image needs one row for each label: get the file again, or remove these images from it"
        )
    if contradicted.any():
        raise IchError(
            f"{name} lists {name_some(images[contradicted])} more than once with different labels; an image has "
            "one label of each kind: get the file again, or keep one of the rows"
        )
    frame = pd.DataFrame(labels, index=pd.Index(images, name=INDEX_NAME), columns=list(LABELS))
    _check_any(frame, name)
    return LabelFile(frame, merged=int((listed > 1).any(axis=1).sum()))


def read_ids(source: str | Path | BinaryIO) -> tuple[pd.Series, pd.Index]:
    """Read the ids of a sample submission's rows, without its labels.

    Args:
        source: as for `read_labels`.

    Returns:
        (rows, images): the IDs `ID_<hex>_<label>` in the file's order, and the images' ids in the order of their first
        rows.

    Raises:
        IchError: the file cannot be read, has another header or no rows; an id is not `ID_<hex>_<label>`; a row
            is listed twice; an image lacks a row.
    """
    name = _name(source)
    table = _read_table(source, name)
    images, _, numbers = _number_images(table["ID"], name)
    rows = table["ID"].cast(pa.string()).to_pandas().rename("ID")
    twice = rows[rows.duplicated()]
    if len(twice):
        raise IchError(f"{name} has the rows {name_some(twice)} more than once; get the file again")
    listed = np.bincount(np.concatenate(numbers), minlength=len(images))
    if (listed < len(LABELS)).any():
        raise IchError(
            f"{name} has fewer than six rows for {name_some(images[listed < len(LABELS)])}; get the file again"
        )
    return rows, images.rename(INDEX_NAME)


def to_long(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a submission or label file: six for each image, in the order of `LABELS`.

    Args:
        frame: six columns in the order of `LABELS`, labels or probabilities, indexed by SOPInstanceUID.

    Returns:
        Columns ID (`<SOPInstanceUID>_<label>`, strings) and Label (the dtype of the six), 6 × images rows, which
        `to_csv(path, index=False)` writes.

    Raises:
        IchError: other columns, ids that are not unique strings, or a missing value.
    """
    _check_shape(frame)
    empty = frame.isna().any(axis=1).to_numpy()
    if empty.any():
        raise IchError(
            f"{name_some(frame.index[empty])} lack a value; nothing is filled in: compute all six, then try again"
        )
    images = pa.array(frame.index, pa.string()).take(pa.array(np.repeat(np.arange(len(frame)), len(LABELS))))
    labels = pa.array(LABELS).take(pa.array(np.tile(np.arange(len(LABELS)), len(frame))))
    ids = pc.binary_join_element_wise(images, labels, "_")
    return pd.DataFrame({"ID": ids.to_pandas(), "Label": frame.to_numpy().ravel()})


def check_frame(frame: pd.DataFrame) -> None:
    """Check the contract of a label frame: six int8 columns in order, unique ids, 0 or 1, `any` the OR of the five.

    Raises:
        IchError: the message names the difference.
    """
    _check_shape(frame)
    dtypes = sorted({str(dtype) for dtype in frame.dtypes if dtype != np.int8})
    if dtypes:
        raise IchError(
            f"labels are int8, got {', '.join(dtypes)}; `read_labels` gives them, `.astype('int8')` makes them"
        )
    # As uint8, negative values are above 1 too.
    wrong = (frame.to_numpy().view(np.uint8) > 1).any(axis=1)
    if wrong.any():
        raise IchError(f"labels are 0 or 1, but {name_some(frame.index[wrong])} have others; correct the label frame")
    _check_any(frame, "the label frame")


def _check_shape(frame: pd.DataFrame) -> None:
    """Raise IchError unless there are six columns in order and an index of unique strings."""
    if list(frame.columns) != list(LABELS):
        raise IchError(
            f"expected the columns {', '.join(LABELS)} in this order, got {', '.join(map(str, frame.columns))}; "
            "select them with `frame[list(LABELS)]`"
        )
    if frame.index.name != INDEX_NAME or frame.index.inferred_type not in ("string", "empty"):
        raise IchError(
            f"expected an index of strings named {INDEX_NAME}, got {frame.index.inferred_type} named "
            f"{frame.index.name}; use `frame.set_index('{INDEX_NAME}')`"
        )
    if not frame.index.is_unique:
        twice = frame.index[frame.index.duplicated()].unique()
        raise IchError(f"{name_some(twice)} are in more than one row; keep one row for each {INDEX_NAME}")


def _check_any(frame: pd.DataFrame, name: str) -> None:
    """Raise IchError unless `any` is the OR of the other five."""
    labels = frame.to_numpy()
    wrong = labels[:, -1] != labels[:, :-1].max(axis=1, initial=0)
    if wrong.any():
        raise IchError(
            f"in {name}, `any` disagrees with the five other labels of {name_some(frame.index[wrong])}; it is 1 "
            "exactly if one of them is 1: get the labels again, or correct these"
        )


def _name(source: str | Path | BinaryIO) -> str:
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "the file"))


@contextmanager
def _opened(source: str | Path | BinaryIO, name: str) -> Iterator[IO[bytes]]:
    """Yield the source as a file of plain bytes; one that the caller opened stays open."""
    with ExitStack() as stack:
        if not isinstance(source, str | Path):
            if isinstance(source, io.TextIOBase):
                raise IchError(f"{name} was opened as text; open it in binary mode, 'rb'")
            yield source
            return
        suffix = Path(source).suffix.lower()
        if suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(source))
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) != 1:
                raise IchError(
                    f"{name} holds {len(members)} files, expected the label file alone; open that one and pass it"
                )
            yield stack.enter_context(archive.open(members[0]))
        elif suffix in (".gz", ".xz"):
            unpacked: Any = (gzip.open if suffix == ".gz" else lzma.open)(source)
            yield stack.enter_context(unpacked)
        else:
            yield stack.enter_context(Path(source).open("rb"))


def _read_table(source: str | Path | BinaryIO, name: str) -> pa.Table:
    """Read ID and Label as bytes: values are checked later, where the message can name the image."""
    options = pyarrow.csv.ConvertOptions(column_types={"ID": pa.binary(), "Label": pa.binary()})
    try:
        with _opened(source, name) as file:
            table = pyarrow.csv.read_csv(file, convert_options=options)
    except pa.ArrowInvalid as error:
        raise IchError(
            f"{name} is not a label file: {one_line(error)}; expected the header ID,Label and two values a line"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise IchError(f"cannot read {name}: {one_line(error)}; check the path, or get the file again") from error
    if table.column_names != ["ID", "Label"]:
        raise IchError(f"{name} has the header {','.join(table.column_names)}, expected ID,Label; pass the label file")
    if len(table) == 0:
        raise IchError(f"{name} has a header but no rows; expected six for each image: get the file again")
    return table


def _number_images(ids: pa.ChunkedArray, name: str) -> tuple[pd.Index, list[np.ndarray], list[np.ndarray]]:
    """Split `<image>_<label>` and number the images by first appearance.

    Returns:
        The images' ids; for each label, its rows (int64), ascending; for each label and row, the image's number
        (integers).
    """
    rows, stems = [], []
    for label in LABELS:
        ends = pc.ends_with(ids, pattern=f"_{label}")
        rows.append(np.flatnonzero(ends.to_numpy()))
        stems.append(pc.binary_slice(ids.filter(ends), 0, -len(label) - 1))

    if sum(map(len, rows)) < len(ids):
        known = np.zeros(len(ids), dtype=bool)
        known[np.concatenate(rows)] = True
        raise IchError(
            f"{name} has the ids {_decode_some(ids.filter(pa.array(~known)))}; expected ID_<hex>_<label> with one of "
            f"the labels {', '.join(LABELS)}: correct or remove these rows"
        )

    # In the competition's files each label lists the same images in the same order, so the numbers of one label hold
    # for all six, and images appear in its order.
    if all(stem.equals(stems[0]) for stem in stems[1:]):
        encoded = stems[0].combine_chunks().dictionary_encode()
        images, numbers = encoded.dictionary, [encoded.indices.to_numpy()] * len(LABELS)
    else:
        encoded = (
            pa.chunked_array([chunk for stem in stems for chunk in stem.chunks]).combine_chunks().dictionary_encode()
        )
        number = encoded.indices.to_numpy()
        first = np.full(len(encoded.dictionary), len(ids))
        np.minimum.at(first, number, np.concatenate(rows))
        order = np.argsort(first)
        images, rank = encoded.dictionary.take(pa.array(order)), np.argsort(order)
        numbers = np.split(rank[number], np.cumsum([len(at) for at in rows])[:-1])

    valid = pc.match_substring_regex(images, r"^ID_[0-9a-fA-F]+$")
    if not pc.all(valid).as_py():
        raise IchError(
            f"{name} has rows about the images {_decode_some(images.filter(pc.invert(valid)))}; an image is called "
            "ID_<hex>, its row ID_<hex>_<label>: correct or remove these rows"
        )
    return pd.Index(images.cast(pa.string()).to_pandas()), rows, numbers


def _read_values(table: pa.Table, name: str) -> np.ndarray:
    """Return where the label is 1: bool, shape (rows,)."""
    ones = pc.equal(table["Label"], b"1").to_numpy()
    wrong = ~(ones | pc.equal(table["Label"], b"0").to_numpy())
    if wrong.any():
        refused = table.filter(pa.array(wrong))
        rows = pc.binary_join_element_wise(refused["ID"], refused["Label"], b",")
        raise IchError(
            f"{name} has the rows {_decode_some(rows)}; a label is 0 or 1: is this a file of predictions, or damaged?"
        )
    return ones


def _decode_some(ids: pa.Array | pa.ChunkedArray) -> str:
    """Return `name_some` of bytes, which may not be text in a file of another kind."""
    return name_some([id.decode(errors="backslashreplace") for id in ids[:3].to_pylist()], total=len(ids))
