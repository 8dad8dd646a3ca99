"""How a training runs: the section of a recipe that says how long, how fast, on how many processes and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ditkit.averages import AVERAGES
from ditkit.chosen import Chosen, SomeChosen
from ditkit.config import Section, SomeOf
from ditkit.device import Compile, Precision
from ditkit.objectives import ROUTINGS, TERMS
from ditkit.optimizers import OPTIMIZERS
from ditkit.optimizers.schedules import SCHEDULES
from ditkit.trackers import TRACKERS

Count = Annotated[int, Field(ge=1)]


class Training(Section):
    """Length, optimiser and records of a training. All is counted in images, so that batch sizes can be compared."""

    images: Count = 1_000_000
    """Train until this many images have been seen."""
    batch: Count = 128
    """Images per optimiser step."""
    optimizer: Annotated[str, Chosen(OPTIMIZERS)] = "adamw"
    """What takes the steps (`ditkit list optimizers`); others than adamw keep less beside each weight, muon learns more in each
    step."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """The learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, as AdamW's."""
    warmup_images: Annotated[int, Field(ge=0)] = 0
    """The learning rate rises linearly from 0 over this many images."""
    schedule: Annotated[str, Chosen(SCHEDULES)] = "constant"
    """How the learning rate goes (`ditkit list schedules`). cosine: it falls to 0 at the last image; wsd: it stays, and falls over
    the last fifth, or wsd:share=0.1. A run that shall go on with more `images` does so from a checkpoint of before the fall."""
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
    """Such images of all sizes in one batch, their tokens in one sequence (NaViT: Dehghani et al., 2023), instead of
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
