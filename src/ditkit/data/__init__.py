"""Images to train on and to score against: kinds of source, one loader.

`DATA["digits"].open()` gives a source, `batches(source, config, ...)` its training batches,
`load_all(config, "test")` every image of a part. To add a kind: a section with a `kind` literal and
`open`, a place in `DataConfig`, a line in `DATA`.
"""

from typing import Annotated

from pydantic import Field

from ditkit.data.arrays import Digits, FashionMNIST
from ditkit.data.emoji import EmojiData
from ditkit.data.folder import Folder
from ditkit.data.hub import Hub
from ditkit.data.loader import Batch, Stream, batches, in_order, load_all, spread
from ditkit.data.shards import Webdataset
from ditkit.data.sources import Arrays, DataSection, Encoded, Source, Split
from ditkit.data.transforms import center_crop, prepare, to_array, to_mode

DataConfig = Annotated[
    Digits | FashionMNIST | EmojiData | Folder | Hub | Webdataset, Field(discriminator="kind")
]

DATA: dict[str, Digits | FashionMNIST | EmojiData | Folder | Hub | Webdataset] = {
    "digits": Digits(),
    "fashion-mnist": FashionMNIST(),
    "emoji": EmojiData(),
    "folder": Folder(),
    "hub": Hub(),
    "webdataset": Webdataset(),
}

__all__ = [
    "DATA",
    "Arrays",
    "Batch",
    "DataConfig",
    "DataSection",
    "Digits",
    "EmojiData",
    "Encoded",
    "FashionMNIST",
    "Folder",
    "Hub",
    "Source",
    "Split",
    "Stream",
    "Webdataset",
    "batches",
    "center_crop",
    "in_order",
    "load_all",
    "prepare",
    "spread",
    "to_array",
    "to_mode",
]
