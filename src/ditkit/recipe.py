"""A recipe: everything that decides a run, composed of the parts' own sections; JSON in and out.

Python functions in `ditkit.recipes` return recipes; every field is a flag of `ditkit train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from ditkit.backbones import BackboneConfig, MatryoshkaConfig, build
from ditkit.codecs import Codec, CodecConfig, IdentityConfig, PyramidCodec
from ditkit.config import Section, read_section, renamed, write_section
from ditkit.data import DataConfig, upgraded
from ditkit.errors import InputError
from ditkit.fitting import refusals
from ditkit.lazy import torch
from ditkit.sampling.config import SamplingConfig
from ditkit.text import TextConfig
from ditkit.train_config import Count, TrainConfig, Training
from ditkit.transports import Transport

if TYPE_CHECKING:
    from ditkit.backbones import Backbone

__all__ = ["Count", "Recipe", "TrainConfig", "Training"]


class Recipe(Section):
    """What is trained on what, how, and how it is sampled."""

    name: str
    """Also the default name of the run's folder."""
    data: DataConfig
    codec: CodecConfig = IdentityConfig()
    text: TextConfig | None = None
    """The encoder of captions, for a network that takes a text."""
    backbone: BackboneConfig
    transport: Transport = Transport()
    train: TrainConfig = TrainConfig()
    sample: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        for refusal in refusals(self):
            raise ValueError(refusal)
        for _ in self.stages:  # which are recipes, and refused likewise
            pass
        return self

    def build_codec(self, device: torch.device | str = "cpu") -> Codec:
        return self.nested(self.codec.build(self.data.channels, device))

    def nested(self, codec: Codec) -> Codec:
        """The codec of the network's states: this one, or of pyramids of its states for a network that works on
        several resolutions."""
        ratios, scales = self.backbone.ratios, self.codec.level_scale
        if ratios == (1,) and not scales:
            return codec
        return PyramidCodec(codec, ratios, scales, self.backbone.frame_ratios)

    def build_backbone(self) -> Backbone:
        """The network for this data, codec and transport, freshly initialised from train.seed.

        Raises InputError when the state does not divide into patches, width into heads, the number
        of classes is not known yet (a folder that has not been counted), or this machine's memory is smaller than the
        network.
        """
        if self.data.classes is None:
            raise InputError(
                "`data.classes` is not known before the data is opened; give a number (0: unlabelled)"
            )
        if not (self.data.channels and all(self.data.shape)):
            raise InputError(
                "`data.size` and `data.channels` are not known before the arrays are opened; `data.path` names them"
            )
        codec = self.build_codec()
        channels, *size = codec.layout(*self.data.shape).shape
        outputs = 2 * channels if self.transport.variance == "learned" else channels
        text_dim = self.text.dim if self.text else 0
        scalars = self.transport.learning.scalars
        make = partial(build, self.backbone, channels, self.data.classes, outputs, text_dim, scalars)
        from ditkit import first_values  # which imports torch

        net = first_values.build(make, self.train.seed, "`backbone.width` or `backbone.depth`")
        net.check_size(*size)
        return net

    @property
    def multiple(self) -> int:
        """Pixels of which the sides of images are multiples."""
        return max(self.backbone.patch_sizes[-2:]) * getattr(self.codec.resolved(), "downsampling", 1)

    def tokens(self, size: Sequence[int]) -> int:
        """The number of tokens of an image, (H, W) in pixels, or clip, (F, H, W). InputError where it has none."""
        return self.backbone.tokens(self.build_codec().layout(*size).shape[1:])

    def replace(self, **sections) -> Recipe:
        """A copy with other sections, or with other fields of them as dicts."""
        merged = self.model_dump(include=set(Recipe.model_fields))
        for name, value in sections.items():
            merged[name] = merged[name] | value if isinstance(value, dict) else value
        return Recipe.checked(merged, self.name)

    def draft(self, **sections: Any) -> Recipe:
        """As `replace`, but the parts are not compared: more of them will be replaced, and all compared then."""
        found = {
            name: getattr(self, name).replaced(value, self.name) if isinstance(value, dict) else value
            for name, value in sections.items()
        }
        return self.model_copy(update=found)

    def with_data(self, data: DataConfig) -> Recipe:
        """The recipe with other data; settings of clips are dropped with data of images, and stages, which are of
        smaller images, with arrays, which are not resized."""
        return self.replace(**self.for_data(data))

    def for_data(self, data: DataConfig) -> dict[str, Any]:
        """The sections that other data changes."""
        return {
            "data": data,
            "transport": {} if data.of_clips else {"known_frames": 0.0},
            "train": {} if data.resizes else {"stages": ()},
        }

    def with_backbone(self, backbone: BackboneConfig) -> Recipe:
        """The recipe with another backbone; settings of levels are dropped where it has not as many."""
        return self.replace(**self.for_backbone(backbone))

    def for_backbone(self, backbone: BackboneConfig) -> dict[str, Any]:
        """The sections that another backbone changes."""
        if len(backbone.ratios) == len(self.backbone.ratios):
            return {"backbone": backbone}
        several = len(backbone.ratios) > 1
        return {
            "backbone": backbone,
            "codec": {"level_scale": ()},
            "transport": {"level_weights": (), "cascade": None} | ({"known_frames": 0.0} if several else {}),
            "train": {"level_share": (), "stages": (), "freeze_inner": False},
            "sample": {"level_guidance": None},
        }

    def for_codec(self, codec: CodecConfig) -> dict[str, Any]:
        """The sections that another codec changes: what bounds pixels is left behind where states are none."""
        return {"codec": codec} | ({} if codec.pixels else {"sample": {"threshold": None}})

    def lowest(self, count: int) -> Recipe:
        """The recipe of the lowest `count` levels of the backbone alone, on images of their size."""
        whole = self.backbone
        if not isinstance(whole, MatryoshkaConfig):
            return self
        backbone, guidance = whole.lowest(count), self.sample.level_guidance
        several = count > 1
        length = [n * backbone.frame_ratios[0] // whole.frame_ratios[0] for n in self.data.shape[:-2]]
        frames = {"frames": length[0]} if length else {}
        return self.replace(
            backbone=backbone,
            data=self.data.scaled(backbone.ratios[0], whole.ratios[0]) | frames,
            codec={"level_scale": self.codec.level_scale[-count:]},
            transport={
                "level_weights": self.transport.level_weights[-count:],
                "cascade": self.transport.cascade if several else None,
            },
            train={
                "level_share": self.train.level_share[len(whole.ratios) - count :],
                "stages": self.train.stages[: count - 1],
                "freeze_inner": several and self.train.freeze_inner,
                "freeze": (),  # by names in the whole network
                "unfreeze": (),
                "lora": 0,
            },
            sample={"level_guidance": guidance and guidance[-count:]},
        )

    @property
    def stages(self) -> list[Recipe]:
        """The recipes of the stages before the last, which is this one itself."""
        return [
            self.lowest(count).replace(
                name=f"{self.name}-stage-{count}", train={"images": images, "stages": ()}
            )
            for count, images in enumerate(self.train.stages, start=1)
        ]

    def write(self, path: Path) -> None:
        write_section(self, path)

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        found = dict(values)
        if isinstance(data := values.get("data"), dict):
            found["data"] = upgraded(data)
        if isinstance(transport := values.get("transport"), dict):
            found["transport"] = Transport.upgraded(transport)
        if isinstance(backbone := values.get("backbone"), dict):
            found["backbone"] = renamed("backbone", backbone)
            if isinstance(inner := backbone.get("inner"), dict):
                found["backbone"]["inner"] = renamed("backbone", inner)
        return found

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """InputError when the file is missing or is not a recipe of this version."""
        return read_section(cls, path)
