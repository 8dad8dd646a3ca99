"""A recipe: everything that decides a run, composed of the parts' own sections; JSON in and out.

Python functions in `ditkit.recipes` return recipes; every field is a flag of `ditkit train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ditkit.averages import AVERAGES
from ditkit.backbones import BackboneConfig, MatryoshkaConfig, build
from ditkit.chosen import Chosen, SomeChosen
from ditkit.codecs import Codec, CodecConfig, IdentityConfig, PyramidCodec
from ditkit.config import Section, SomeOf, read_section, renamed, write_section
from ditkit.data import DataConfig, upgraded
from ditkit.device import Compile, Precision
from ditkit.errors import InputError
from ditkit.fitting import refusals
from ditkit.lazy import torch
from ditkit.objectives import ROUTINGS, TERMS
from ditkit.optimizers import OPTIMIZERS
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
    optimizer: Annotated[str, Chosen(OPTIMIZERS)] = "adamw"
    """What takes the steps (`ditkit list optimizers`); others than adamw keep less beside each weight."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """The learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, as AdamW's."""
    warmup_images: Annotated[int, Field(ge=0)] = 0
    """The learning rate rises linearly from 0 over this many images."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: the learning rate falls to 0 at the last image."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Clip the gradient's norm to this."""
    precision: Precision = "auto"
    """auto: bf16 autocast over float32 weights where this machine has fast bf16; tf32: on a CUDA GPU, of the same range as fp32
    and coarser."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides initial weights, order, augmentation and every other draw."""
    log_images: Count = 10_000
    """A line in log.jsonl every so many images."""
    checkpoint_images: Count = 100_000
    """A checkpoint every so many images, and at the end."""
    keep: Count = 2
    """Checkpoints kept; the newest ones."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Save and end after so many minutes, with exit status 75, for queues that start the same command again."""
    workers: Annotated[int, Field(ge=0, le=1_000)] | None = None
    """Processes that read images and draw noise ahead. By default as many as cores where images are decoded as they are
    read, up to four for a GPU, else none."""
    track: Annotated[tuple[str, ...], SomeOf(TRACKERS)] = ()
    """Also follow the run with these, one or several; they read their keys and addresses from their own variables. May
    change when a run is resumed; a new tracker is sent what it missed."""


class TrainConfig(Training):
    """The training run of a diffusion transformer."""

    micro_batch: Count | None = None
    """Images per forward pass, where a whole batch does not fit in memory (gradient accumulation)."""
    on_divergence: Literal["stop", "rewind"] = "stop"
    """When most steps are not finite: stop. rewind: then, and when the loss has risen to three times its lowest, go back to
    the last good checkpoint with half the learning rate, up to six times."""
    parallel: Literal["auto", "none", "ddp", "fsdp", "hsdp"] = "auto"
    """How the processes that torchrun starts share the training. ddp: each keeps the whole state; fsdp: each keeps a shard
    of it; hsdp: groups of processes share one, and are copies of each other. auto: ddp where the state fits, else fsdp."""
    shard_size: Count | None = None
    """Processes of a group in hsdp; by default those of one machine."""
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
    averages: Annotated[tuple[str, ...], SomeChosen(AVERAGES, alike=True)] = ()
    """Keep further averages of the weights (`ditkit list averages`), such as half_life:images=500_000 or power:width=0.05;
    `ditkit average` makes models of them."""
    snapshot_images: Annotated[int, Field(ge=0)] = 0
    """Write the power averages into OUT/averages every so many images, and at the end, in 16 bits; 0: never. From them
    `ditkit average` makes averages of any width."""
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
    """For a network on several resolutions, the share of each batch that every level but the lowest is trained on,
    highest first (mixed resolutions; Gu et al., 2024); by default all of it."""
    stages: tuple[Count, ...] = ()
    """For a network on several resolutions, images to train the lowest level on alone, then the lowest two, ..., before
    `images` with all (progressive training); in OUT/stages/1, 2, ..."""
    freeze_inner: bool = False
    """Train only the levels around the inner network."""
    freeze: tuple[str, ...] = ()
    """Do not train the parameters of these names; * stands for any text, as in 'blocks.0.*'."""
    unfreeze: tuple[str, ...] = ()
    """Train these all the same, such as 'label.*', where `freeze` or `lora` freezes them."""
    lora: Annotated[int, Field(ge=0)] = 0
    """Train additions of this rank to layers of the blocks (LoRA: Hu et al., 2021) and freeze all else; 0: none. It needs a
    trained network to begin with (`init`)."""
    lora_on: Annotated[tuple[str, ...], Field(min_length=1)] = ("attention", "mlp")
    """The parts of blocks whose linear layers get them, such as attention, mlp or modulation."""
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    """Additions are multiplied by this through their rank; by default by 1."""
    checkpoint_blocks: Annotated[int, Field(ge=0)] = 0
    """Compute the inside of every so many-th block again in the backward pass instead of keeping it (1: of all): less
    memory, more time; 0: of none. May change when a run is resumed."""
    latents: Path | None = None
    """Train from this cache of latents (`ditkit encode`, or another project's) instead of from the images."""
    texts: Path | None = None
    """The folder of the captions' embeddings, made where it is not there yet, for runs that share them; by default
    the one beside the latents, or the run's own."""

    @property
    def lora_scale(self) -> float:
        """The number by which additions are multiplied."""
        return 1.0 if self.lora_alpha is None else self.lora_alpha / max(self.lora, 1)


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
