"""Images and clips to train on and to score against: kinds of source, one loader.

`DATA["digits"].open()` gives a source, `batches(source, config, ...)` its training batches,
`load_all(config, "test")` every image of a part. Where images have several sizes, `plan_for(source, config, ...)`
says which make a batch, and `load_size(config, "test", (28, 12), ...)` gives all of one size. To add a kind: a section with a `kind` literal and
`open`, and a line in `DATA`.
"""

from typing import TYPE_CHECKING, Annotated

from ditkit.config import KindOf
from ditkit.data.arrays import Digits, FashionMNIST
from ditkit.data.batch import Batch, Share
from ditkit.data.buckets import Bucket, Plan, plan_for, shard
from ditkit.data.clipart import Clipart
from ditkit.data.clips import Clips
from ditkit.data.emoji import EmojiData
from ditkit.data.encoded import Encoded, EncodedSection
from ditkit.data.folder import Folder
from ditkit.data.hub import Hub
from ditkit.data.memory import Arrays
from ditkit.data.moving import MovingDigits
from ditkit.data.numeric import ArrayFiles
from ditkit.data.shards import Webdataset
from ditkit.data.sources import (
    DataSection,
    Draw,
    Source,
    Split,
    differing,
    upgraded,
)
from ditkit.data.transforms import center_crop, native_size, prepare, prepare_native, to_array, to_mode
from ditkit.data.video import VideoFolder
from ditkit.lazy import exported

if TYPE_CHECKING:
    from ditkit.data.loader import (
        Stream,
        batches,
        in_order,
        load_all,
        load_size,
        spread,
        workers_named,
    )
else:
    __getattr__ = exported(__name__)

DATA: dict[str, DataSection] = {
    "digits": Digits(),
    "fashion-mnist": FashionMNIST(),
    "emoji": EmojiData(),
    "clipart": Clipart(),
    "folder": Folder(),
    "hub": Hub(),
    "webdataset": Webdataset(),
    "arrays": ArrayFiles(),
    "moving-digits": MovingDigits(),
    "video": VideoFolder(),
}
"""By name. One of one's own is one more, a section whose `open` gives the images (`ditkit.register`)."""

DataConfig = Annotated[DataSection, KindOf(DATA)]

__all__ = [
    "DATA",
    "ArrayFiles",
    "Arrays",
    "Batch",
    "Bucket",
    "Clipart",
    "Clips",
    "DataConfig",
    "DataSection",
    "Digits",
    "Draw",
    "EmojiData",
    "Encoded",
    "EncodedSection",
    "FashionMNIST",
    "Folder",
    "Hub",
    "MovingDigits",
    "Plan",
    "Share",
    "Source",
    "Split",
    "Stream",
    "VideoFolder",
    "Webdataset",
    "batches",
    "center_crop",
    "differing",
    "in_order",
    "load_all",
    "load_size",
    "native_size",
    "plan_for",
    "prepare",
    "prepare_native",
    "shard",
    "spread",
    "to_array",
    "to_mode",
    "upgraded",
    "workers_named",
]
