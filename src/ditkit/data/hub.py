"""Images from a data set of the Hugging Face Hub, or a local folder of parquet files, by `datasets`.

Images are fetched undecoded and decoded here, so that broken ones can be counted.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ditkit.data.captions import only_texts
from ditkit.data.encoded import Encoded, EncodedSection
from ditkit.data.sources import Split
from ditkit.errors import InputError

if TYPE_CHECKING:  # a second to import
    from datasets import Dataset


def column_of_kind(table: "Dataset", kind: str) -> str | None:
    """The first column whose feature class has this name ("Image", "ClassLabel"), or None."""
    found = (name for name, feature in table.features.items() if type(feature).__name__ == kind)
    return next(found, None)


def read_column(table: "Dataset", column: str) -> list[Any]:
    """A column's plain values."""
    return table.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()


def read_texts(table: "Dataset", column: str, where: str) -> list[str | None]:
    """The captions in a column of text, None for an empty cell; InputError as of `only_texts`."""
    values = enumerate(read_column(table, column))
    return only_texts(((f"row {row}", value) for row, value in values), where, column)


def read_labels(table: "Dataset", column: str, where: str) -> tuple[list[int], tuple[str, ...]]:
    """(labels, class names) from a column of class labels, or of any values that sort.

    Plain values are numbered in sorted order. InputError when a row has no label.
    """
    values = read_column(table, column)
    names = getattr(table.features[column], "names", None)
    known = range(len(names)) if names else sorted({value for value in values if value is not None})
    number = {value: label for label, value in enumerate(known)}
    for row, value in enumerate(values):
        if value not in number:
            raise InputError(f"{where}: row {row} of column {column!r} has no label ({value})")
    return [number[value] for value in values], tuple(names or map(str, known))


class Rows:
    """The undecoded images of one column of a table, by row."""

    def __init__(self, table: "Dataset", column: str, where: str):
        import datasets

        self.where = where
        self._column = column
        self._table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> bytes:
        cell = self._table[index][self._column]
        if cell is None:
            raise ValueError("the cell is empty")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    def title(self, index: int) -> str:
        return f"row {index}"

    def fingerprint(self) -> str:
        return f"{self._table._fingerprint} {self._column}"


class Hub(EncodedSection):
    """A data set of the Hugging Face Hub with a column of images, or a local folder of parquet files."""

    kind: Literal["hub"] = "hub"
    id: str | None = None
    """Name on the Hub, such as uoft-cs/cifar10, or a local folder of parquet files."""
    subset: str | None = None
    """Configuration, for data sets that come in several."""
    split: str = "train"
    """Split to train on; slices such as train[:5000] are allowed."""
    test_split: str = "test"
    """Split to score against; with `data.held_out` a share of `split` instead."""
    image_column: str | None = None
    """Column of the images. None: the first that holds images."""
    label_column: str | None = None
    """Column of the classes. None: the first of class labels; unlabelled when there is none."""
    caption_column: str | None = None
    """Column of the captions. None: no captions."""

    def open(self, split: Split = "train") -> Encoded:
        """The images of one split; InputError when it, the Hub or a column is not there."""
        table = self._load(split)
        where = str(self.id)
        image = self.image_column or column_of_kind(table, "Image")
        label = self.label_column or column_of_kind(table, "ClassLabel")
        columns = {"image": image, "label": label, "caption": self.caption_column}
        for what, column in columns.items():
            if column is not None and column not in table.features:
                raise InputError(
                    f"{where}: no column {column!r}; `data.{what}_column` is one of: {', '.join(table.features)}"
                )
        if image is None:
            raise InputError(
                f"{where}: no image column; `data.image_column` is one of: {', '.join(table.features)}"
            )
        labels, names = read_labels(table, label, where) if label else (None, ())
        self.check_classes(names, where)
        captions = read_texts(table, self.caption_column, where) if self.caption_column else None
        return Encoded(Rows(table, image, where), labels, names, self, captions, split)

    def _load(self, split: Split) -> "Dataset":
        if self.id is None:
            raise InputError(
                "which data set? `data.id` NAME is one of the Hub's, or a folder of parquet files"
            )
        from datasets import load_dataset  # a second to import

        part = self.split if split == "train" or self.held_out else self.test_split
        try:
            return load_dataset(self.id, self.subset, split=part)
        except ValueError as error:  # an unknown split or subset
            reason = str(error).splitlines()[0]
            if split == "test" and reason.startswith("Unknown split"):
                raise InputError(
                    f"{self.id} has no held-out part: no split {part!r}; `data.test_split` NAME names another"
                ) from error
            raise InputError(f"{self.id}: {reason}; see `data.split` and `data.subset`") from error
        except (OSError, RuntimeError) as error:  # also what "not found" and "no connection" are kinds of
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self.id} cannot be fetched ({reason}); `data.id` DIR reads a local folder of parquet files"
            ) from error
