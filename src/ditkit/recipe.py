"""A recipe: everything that decides a run, composed of the parts' own sections; JSON in and out.

Python functions in `ditkit.recipes` return recipes; every field is a flag of `ditkit train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ditkit.backbones import BackboneConfig, MatryoshkaConfig, build
from ditkit.chosen import Chosen, SomeChosen, name_of
from ditkit.codecs import Codec, CodecConfig, IdentityConfig, PyramidCodec
from ditkit.config import Section, SomeOf, read_section, write_section
from ditkit.data import DataConfig, upgraded
from ditkit.device import Compile, Precision, check_memory
from ditkit.errors import InputError
from ditkit.lazy import torch
from ditkit.objectives import ROUTINGS, TERMS
from ditkit.sampling.config import SamplingConfig
from ditkit.text import TextConfig
from ditkit.trackers import TRACKERS
from ditkit.transports import Transport

if TYPE_CHECKING:
    from ditkit.backbones import Backbone

Count = Annotated[int, Field(ge=1)]


class Training(Section):
    """Length, optimiser and records of a training. All is counted in images, so that batch sizes can be compared."""

    images: Count = 1_000_000
    """Train until this many images have been seen."""
    batch: Count = 128
    """Images per optimiser step."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """AdamW's learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    warmup_images: Annotated[int, Field(ge=0)] = 0
    """The learning rate rises linearly from 0 over this many images."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: the learning rate falls to 0 at the last image."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Clip the gradient's norm to this."""
    precision: Precision = "auto"
    """auto: bf16 autocast over float32 weights where this machine has fast bf16."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides initial weights, order, augmentation and every other draw."""
    log_images: Count = 10_000
    """A line in log.jsonl every so many images."""
    checkpoint_images: Count = 100_000
    """A checkpoint every so many images, and at the end."""
    keep: Count = 2
    """Checkpoints kept; the newest ones."""
    workers: Annotated[int, Field(ge=0, le=1_000)] | None = None
    """Processes that read images and draw noise ahead. Not given: as many as cores where images are decoded as they are
    read, up to four for a GPU, else none."""
    track: Annotated[tuple[str, ...], SomeOf(TRACKERS)] = ()
    """Also follow the run with these, one or several; they read their keys and addresses from their own variables. May
    change when a run goes on, and is sent what it missed."""


class TrainConfig(Training):
    """The training run of a diffusion transformer."""

    micro_batch: Count | None = None
    """Images per forward pass, where a whole batch does not fit in memory (gradient accumulation)."""
    tokens: Count | None = None
    """Tokens of a batch, instead of `batch` images: for images of their own sizes (data.aspect native)."""
    packed: bool = False
    """Such images of all sizes in one batch, several in a row of tokens (NaViT: Dehghani et al., 2023), instead of
    batches of one size."""
    label_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of images trained without their label and text, for classifier-free guidance."""
    ema_half_life_images: Annotated[float, Field(gt=0)] = 1_774_000
    """Half-life of the weights' moving average (DiT's decay of 0.9999 at batch 256)."""
    ema_rampup: Annotated[float, Field(gt=0)] | None = None
    """The half-life is at most this share of the images seen so far (EDM uses 0.05)."""
    compile: Compile = "auto"
    """Compile each block. auto: where a compiler works (a C++ compiler on a CPU) and the run is long enough to pay for
    it; a run that is resumed goes on as it began."""
    preview_images: Annotated[int, Field(ge=0)] = 250_000
    """A grid of samples every so many images; 0: never."""
    validate_images: Annotated[int, Field(ge=0)] = 50_000
    """The validation loss by noise level every so many images; 0: never."""
    score_images: Annotated[int, Field(ge=0)] = 0
    """Sample and score every so many images; 0: never. Costs far more than the validation loss."""
    score_samples: Annotated[int, Field(ge=4)] = 500
    """Samples to score each time, of seeds 0, 1, ..."""
    score_features: str = "classifier"
    """The network to score with, as in `ditkit eval`."""
    routing: Annotated[str, Chosen(ROUTINGS)] = "none"
    """Leave tokens out of some blocks in training (`ditkit list routings`), such as NAME:rate=0.5."""
    terms: Annotated[tuple[str, ...], SomeChosen(TERMS)] = ()
    """Add terms to the loss (`ditkit list terms`), each a name, or a name with settings: NAME:weight=0.2."""
    level_share: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Of a network on several resolutions: the share of each batch that every level but the lowest is trained on,
    highest first (mixed resolutions; Gu et al., 2024); all of it when not given."""
    stages: tuple[Count, ...] = ()
    """Of a network on several resolutions: images to train the lowest level on alone, then the lowest two, ..., before
    `images` with all (progressive training); in OUT/stages/1, 2, ..."""
    freeze_inner: bool = False
    """Train only the levels around the inner network."""
    latents: Path | None = None
    """Train from this cache of latents (`ditkit encode`, or another project's) instead of from the images."""
    texts: Path | None = None
    """The folder of the captions' embeddings, made where it is not there yet, for runs that share them; when not given
    the one beside the latents, or the run's own."""


class Recipe(Section):
    """What is trained on what, how, and how it is sampled."""

    name: str
    """Also the default name of the run's folder."""
    data: DataConfig
    codec: CodecConfig = IdentityConfig()
    text: TextConfig | None = None
    """The encoder of captions, for a network that is told them; --text NAME takes one."""
    backbone: BackboneConfig
    transport: Transport = Transport()
    train: TrainConfig = TrainConfig()
    sample: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if self.train.micro_batch and self.train.micro_batch > self.train.batch:
            raise ValueError(
                f"train.micro_batch {self.train.micro_batch} is larger than train.batch {self.train.batch}"
            )
        outer = len(self.backbone.ratios) - 1
        for field, given, needed in (
            ("transport.level_weights", self.transport.level_weights, outer + 1),
            ("codec.level_scale", self.codec.level_scale, outer + 1),
            ("sample.level_guidance", self.sample.level_guidance, outer + 1),
            ("train.level_share", self.train.level_share, outer),
        ):
            if given and len(given) != needed:
                raise ValueError(
                    f"{field} has {len(given)} numbers, this backbone needs {needed}: it works on {outer + 1} level"
                    f"{'s' * (outer > 0)}"
                )
        if list(self.train.level_share) != sorted(self.train.level_share):
            raise ValueError(
                f"train.level_share {self.train.level_share}: a level runs on images that the lower ones run on too; "
                "give shares that do not fall"
            )
        if len(self.train.stages) > outer:
            raise ValueError(
                f"train.stages has {len(self.train.stages)} stages before the last for {outer + 1} level"
                f"{'s' * (outer > 0)}; at most {outer}"
            )
        if self.data.several_sizes and self.train.tokens is None:
            raise ValueError(
                "train.tokens is needed for data of several sizes (data.aspect native, single_frames, pictures), whose "
                "batches are of so many tokens"
            )
        if self.train.packed and (self.train.tokens is None or self.train.micro_batch or outer):
            raise ValueError(
                "train.packed is for train.tokens and a backbone of one resolution, without train.micro_batch"
            )
        if self.train.packed and self.transport.known_frames and self.data.shape[0] > 1:
            raise ValueError(
                "train.packed and transport.known_frames: in packed rows all frames of a clip have one time; give "
                "transport.known_frames 0, or leave train.packed out"
            )
        extras = [
            *self.train.terms,
            *(() if name_of(self.train.routing) == "none" else (self.train.routing,)),
        ]
        if extras and not self.backbone.uniform:
            raise ValueError(
                f"train.terms and train.routing ({' '.join(extras)}) are for a DiT, whose blocks all work on the same tokens, "
                f"not for {self.backbone.kind}; leave them out"
            )
        if self.train.terms and self.train.packed:
            raise ValueError(
                "train.terms compare tokens of images of one size; leave train.packed or the terms out"
            )
        if self.data.aspect == "native" and (self.train.score_images or self.train.latents):
            raise ValueError(
                "data.aspect native: train.score_images and train.latents are of images of one size; leave them out"
            )
        if self.transport.known_frames and (len(self.data.shape) == 2 or outer):
            raise ValueError(
                "transport.known_frames is for data of clips and a backbone of one level; leave it out"
            )
        if self.train.stages and self.backbone.frame_ratios[0] > 1:
            raise ValueError(
                "train.stages: of levels of more frames the lower ones are no clips of the data; train all, or leave the "
                "levels' frames at 1"
            )
        if self.train.stages and not self.data.resizes:
            raise ValueError(
                "train.stages: data arrays is not resized, so lower levels have no data of their size; train all levels at "
                "once"
            )
        if self.train.stages and self.train.latents:
            raise ValueError("train.stages and train.latents: a cache is of one resolution; leave one out")
        if outer and not self.transport.learning.levels:
            raise ValueError(
                f"transport.method {self.transport.method} is for a backbone of one level; take another method or backbone"
            )
        if outer == 0 and (self.train.freeze_inner or self.transport.cascade is not None):
            raise ValueError(
                "train.freeze_inner and transport.cascade are for a backbone of several levels; leave them out"
            )
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
                "--data.classes is not known before the data is opened; give a number (0: unlabelled)"
            )
        if not (self.data.channels and all(self.data.shape)):
            raise InputError(
                "--data.size and --data.channels are not known before the arrays are opened; --data.path names them"
            )
        codec = self.build_codec()
        channels, *size = codec.layout(*self.data.shape).shape
        outputs = 2 * channels if self.transport.variance == "learned" else channels
        text_dim = self.text.dim if self.text else 0
        scalars = self.transport.learning.scalars
        make = partial(build, self.backbone, channels, self.data.classes, outputs, text_dim, scalars)
        if torch.get_default_device().type != "meta":
            with torch.device("meta"):
                check_memory(make(), "--backbone.width or --backbone.depth")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            net = make()
        net.check_size(*size)
        return net

    @property
    def multiple(self) -> int:
        """Pixels of which the sides of images are multiples."""
        return max(self.backbone.patch_sizes[-2:]) * getattr(self.codec.resolved(), "downsampling", 1)

    def tokens(self, size: Sequence[int]) -> int:
        """Of an image of that size in pixels, (H, W), or clip, (F, H, W). InputError where it has none."""
        return self.backbone.tokens(self.build_codec().layout(*size).shape[1:])

    def replace(self, **sections) -> Recipe:
        """A copy with other sections, or with other fields of them given as dicts."""
        merged = self.model_dump()
        for name, value in sections.items():
            merged[name] = merged[name] | value if isinstance(value, dict) else value
        return Recipe.checked(merged, self.name)

    def with_data(self, data: DataConfig) -> Recipe:
        """The recipe with other data; what is said of clips is left behind with data of images, and stages, which are of
        smaller images, with arrays, which are not resized."""
        clips = len(data.shape) == 3
        return self.replace(
            data=data,
            transport={} if clips else {"known_frames": 0.0},
            train={} if data.resizes else {"stages": ()},
        )

    def with_backbone(self, backbone: BackboneConfig) -> Recipe:
        """The recipe with another backbone; what is said of levels is left behind where it has not as many."""
        if len(backbone.ratios) == len(self.backbone.ratios):
            return self.replace(backbone=backbone)
        return self.replace(
            backbone=backbone,
            codec={"level_scale": ()},
            transport={"level_weights": (), "cascade": None}
            | ({"known_frames": 0.0} if len(backbone.ratios) > 1 else {}),
            train={"level_share": (), "stages": (), "freeze_inner": False},
            sample={"level_guidance": None},
        )

    def lowest(self, count: int) -> Recipe:
        """Of a backbone of several levels: the recipe of the lowest `count` of them alone, on images of their size."""
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
        return found

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """InputError when the file is missing or is not a recipe of this version."""
        return read_section(cls, path)
