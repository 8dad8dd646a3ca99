"""Do the parts of a recipe fit? What it asks of each part is compared with what the part declares.

A network says what it cannot do and why (`BackboneSection.cannot`), data and codecs what they are. What a recipe asks for
stands in NEEDS, one line each; so a part of one's own is compared like any other, and a refusal names the field that asks,
the field that cannot, and what to give instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ditkit.averages import power_widths
from ditkit.backbones.sections.base import Ability
from ditkit.chosen import chosen, name_of
from ditkit.errors import InputError
from ditkit.lazy import loaded, torch
from ditkit.objectives import ROUTINGS, TERMS, group_of
from ditkit.sampling import SAMPLERS, respaced

if TYPE_CHECKING:
    from torch import Tensor

    from ditkit.nn.around import Around
    from ditkit.recipe import Recipe

FEW = 4
"""Tokens that a routing is tried on."""


class Need(NamedTuple):
    """Something that a recipe can ask of its network."""

    ability: Ability
    wanted: Callable[[Recipe], str]
    """The field that needs it and its value; "" where none does."""
    instead: str
    """What else to do, besides taking a network that can."""


NEEDS = (
    Need("clips", lambda r: f"data {r.data.kind} is of clips" * r.data.of_clips, "take data of images"),
    Need(
        "images",
        lambda r: f"data {r.data.kind} has single images" * (not r.data.of_clips or r.data.several_sizes),
        "take data of clips only",
    ),
    Need("text", lambda r: f"text {r.text.id}" if r.text else "", "leave the text out (`text` none)"),
    Need("no text", lambda r: "" if r.text else "text is not given", "leave that out"),
    Need(
        "levels",
        lambda r: (
            "train.freeze_inner" * r.train.freeze_inner
            or f"transport.cascade {r.transport.cascade}" * (r.transport.cascade is not None)
        ),
        "leave it out",
    ),
    Need(
        "times of parts",
        lambda r: f"transport.known_frames {r.transport.known_frames}" * bool(r.transport.known_frames),
        "give transport.known_frames 0",
    ),
    Need(
        "learned variance",
        lambda r: "transport.variance learned" * (r.transport.variance == "learned"),
        "use variance fixed",
    ),
    Need(
        "sparse blocks",
        lambda r: f"sample.guidance_path {r.sample.guidance_path}" * (r.sample.guidance_path == "dense"),
        "give sample.guidance_path whole",
    ),
    Need("packed rows", lambda r: "train.packed" * r.train.packed, "leave train.packed out"),
    Need("terms", lambda r: _comparing_blocks(r), "leave it out"),
    Need(
        "routing",
        lambda r: f"train.routing {r.train.routing}" * (name_of(r.train.routing) != "none"),
        "leave it out",
    ),
)


def refusals(recipe: Recipe) -> Iterator[str]:
    """Why the parts of a recipe do not fit, in one line each; nothing where they do."""
    for need in NEEDS:
        if (wanted := need.wanted(recipe)) and (why := recipe.backbone.cannot(need.ability)):
            yield f"{wanted}, but {why}, or {need.instead}"
    yield from _levels(recipe)
    yield from _batches(recipe)
    yield from _method(recipe)
    yield from _data(recipe)
    yield from _stages(recipe)
    yield from _terms(recipe)
    yield from _blocks(recipe)
    yield from _adapted(recipe)
    yield from _averages(recipe)
    yield from _sampling(recipe)


def _comparing_blocks(recipe: Recipe) -> str:
    """The terms for which all blocks have to work on the same tokens."""
    terms = [choice for choice in recipe.train.terms if loaded(TERMS[name_of(choice)]).alike]
    return f"train.terms {' '.join(terms)}" if terms else ""


def _levels(recipe: Recipe) -> Iterator[str]:
    """Numbers for each of the network's levels."""
    train, outer = recipe.train, len(recipe.backbone.ratios) - 1
    levels = f"{outer + 1} level{'s' * (outer > 0)}"
    for field, numbers, needed in (
        ("transport.level_weights", recipe.transport.level_weights, outer + 1),
        ("codec.level_scale", recipe.codec.level_scale, outer + 1),
        ("sample.level_guidance", recipe.sample.level_guidance, outer + 1),
        ("train.level_share", train.level_share, outer),
    ):
        if numbers and len(numbers) != needed:
            yield f"{field} has {len(numbers)} numbers, this backbone needs {needed}: it works on {levels}"
    if list(train.level_share) != sorted(train.level_share):
        yield (
            f"train.level_share {train.level_share}: a level runs on images that the lower ones run on too; "
            "give shares that do not fall"
        )


def _batches(recipe: Recipe) -> Iterator[str]:
    """How batches are made."""
    train = recipe.train
    if train.micro_batch and train.micro_batch > train.batch:
        yield f"train.micro_batch {train.micro_batch} is larger than train.batch {train.batch}"
    if recipe.data.several_sizes and train.tokens is None:
        yield (
            "train.tokens is needed for data of several sizes (data.aspect native, single_frames, pictures), whose "
            "batches are of so many tokens"
        )
    if train.micro_batch and train.micro_batch % (group := group_of(train.terms)):
        yield (
            f"train.micro_batch {train.micro_batch} is no multiple of the {group} images that train.terms {' '.join(train.terms)} "
            f"compare; give {group}, or leave it out"
        )
    if train.packed and (train.tokens is None or train.micro_batch):
        yield "train.packed is for train.tokens, without train.micro_batch; give `train.tokens`, or leave the other out"
    if train.packed and recipe.transport.known_frames and recipe.data.shape[0] > 1:
        yield (
            "train.packed and transport.known_frames: in packed rows all frames of a clip have one time; give "
            "transport.known_frames 0, or leave train.packed out"
        )
    if train.packed and train.terms:
        yield "train.terms compare tokens of images of one size; leave train.packed or the terms out"


def _method(recipe: Recipe) -> Iterator[str]:
    """States that the transport's method cannot learn from."""
    method, learning = recipe.transport.method, recipe.transport.learning
    if len(recipe.backbone.ratios) > 1 and not learning.levels:
        yield (
            f"transport.method {method} learns from states of one level, but backbone.kind {recipe.backbone.kind} works on "
            "several; take another method or backbone"
        )
    if recipe.train.packed and not learning.packed:
        yield (
            f"train.packed, but transport.method {method} learns from states of one size; take another method, or leave "
            "train.packed out"
        )
    if recipe.train.checkpoint_blocks and learning.forward_mode:
        yield (
            f"train.checkpoint_blocks {recipe.train.checkpoint_blocks}, but transport.method {method} differentiates the network in "
            "forward mode, in which blocks cannot be computed again; give 0"
        )


def _data(recipe: Recipe) -> Iterator[str]:
    """What the data and the states that the codec makes of them must be."""
    data, train, kind = recipe.data, recipe.train, recipe.data.kind
    if data.aspect == "native" and train.score_images:
        yield "data.aspect native: train.score_images is of images of one size; leave it out"
    if recipe.transport.known_frames and not data.of_clips:
        yield f"transport.known_frames is for data of clips, not {kind}; leave it out"
    if recipe.text and data.captioned is False:
        yield (
            f"text {recipe.text.id}, but data {kind} has no captions; take data that has some (`data` DIR with "
            "`data.caption_column`), or leave the text out (`text` none)"
        )
    if train.latents and data.of_clips:
        yield f"train.latents: a cache is of images, data {kind} is of clips; leave it out"
    if train.latents and not recipe.codec.cached:
        yield (
            f"train.latents: the codec is {recipe.codec.kind}, which has no latents; give `codec` vae, or leave the cache out"
        )
    if recipe.sample.threshold and not recipe.codec.pixels:
        yield (
            f"sample.threshold {recipe.sample.threshold} bounds pixels; states of codec {recipe.codec.kind} are latents, leave it "
            "out"
        )
    if train.score_images and recipe.transport.cascade is not None:
        yield (
            "train.score_images: another model makes the lower levels of this one of a cascade (transport.cascade); give 0, and "
            "score samples afterwards"
        )


def _stages(recipe: Recipe) -> Iterator[str]:
    """Progressive training."""
    train, count = recipe.train, len(recipe.backbone.ratios)
    if not train.stages:
        return
    if len(train.stages) > count - 1:
        yield (
            f"train.stages has {len(train.stages)} stages before the last for {count} level{'s' * (count > 1)}; at most "
            f"{count - 1}"
        )
    if wrong := [side for side in recipe.data.shape[-2:] if side % recipe.backbone.ratios[0]]:
        yield (
            f"train.stages: data.size {wrong[0]} has no levels of 1/{recipe.backbone.ratios[0]}; give a multiple of that"
        )
    if recipe.backbone.frame_ratios[0] > 1:
        yield (
            "train.stages: of levels of more frames the lower ones are no clips of the data; train all, or leave the "
            "levels' frames at 1"
        )
    if not recipe.data.resizes:
        yield (
            f"train.stages: data {recipe.data.kind} is not resized, so lower levels have no data of their size; train all levels "
            "at once"
        )
    if train.latents:
        yield "train.stages and train.latents: a cache is of one resolution; leave one out"


def _terms(recipe: Recipe) -> Iterator[str]:
    """Terms that say that they are none for the recipe."""
    for choice in recipe.train.terms:
        if why := loaded(TERMS[name_of(choice)]).cannot(recipe):
            yield f"train.terms {choice}, but {why}"


def _blocks(recipe: Recipe) -> Iterator[str]:
    """Numbers of blocks in a routing's settings."""
    if name_of(recipe.train.routing) == "none" or not recipe.backbone.uniform:
        return
    try:
        routing = chosen(ROUTINGS, recipe.train.routing)(torch.zeros(1, FEW), recipe.backbone.depth)  # type: ignore[attr-defined]
    except InputError as error:
        yield str(error)
        return
    whole = recipe.backbone.whole_blocks
    for k in whole:
        if _leaves_out(routing, k):
            yield (
                f"train.routing {recipe.train.routing} leaves tokens out of block {k}, whose values backbone.value_residual mixes "
                f"into later ones; let it begin at block {whole.stop} or later, or give `backbone.value_residual` False"
            )


def _leaves_out(routing: Around, k: int) -> bool:
    """Whether block k gets fewer tokens than there are."""
    from ditkit.nn.around import Tokens

    counts = []

    def run(h: Tensor, at: Tokens) -> Tensor:
        counts.append(h.shape[1])
        return h

    routing(k, run, torch.zeros(1, FEW, 1), Tokens(torch.zeros(1, 1), own=FEW))
    return counts != [FEW]


def _adapted(recipe: Recipe) -> Iterator[str]:
    """Which parameters are trained."""
    train = recipe.train
    if train.lora and name_of(train.optimizer) == "muon":
        yield (
            f"train.optimizer {train.optimizer} is for the matrices of the blocks, which train.lora {train.lora} freezes; give adamw"
        )
    if train.lora and train.freeze:
        yield (
            f"train.lora {train.lora} freezes all that it does not add; leave train.freeze out, and name what else is trained in "
            "train.unfreeze"
        )
    if train.unfreeze and not (train.lora or train.freeze):
        yield f"train.unfreeze {' '.join(train.unfreeze)}, but nothing is frozen; give train.freeze or train.lora"
    if train.lora_alpha is not None and not train.lora:
        yield f"train.lora_alpha {train.lora_alpha:g} is for train.lora; give a rank, or leave it out"
    for field, value in (("lora", train.lora), ("freeze", train.freeze)):
        if value and train.stages:
            yield (
                f"train.{field} and train.stages: earlier stages have other networks; train the stages first, and begin with them "
                "(`init`)"
            )


def _averages(recipe: Recipe) -> Iterator[str]:
    """What is written of averages."""
    train = recipe.train
    if train.snapshot_images and not power_widths(train.averages):
        yield (
            f"train.snapshot_images {train.snapshot_images} writes power averages, and train.averages has none; add "
            "power:width=0.05 and power:width=0.1, or leave it out"
        )


def _sampling(recipe: Recipe) -> Iterator[str]:
    """Times that the path does not have."""
    transport, sample = recipe.transport, recipe.sample
    knots, high = transport.knots, transport.interval("ode")[1]
    if sample.respacing and not knots:
        yield (
            f"sample.respacing {sample.respacing}: transport.path {transport.path} has no knots; give sample.steps instead"
        )
    elif knots and SAMPLERS[sample.sampler].use == "jump" and not sample.grid:
        try:
            respaced(sample.respacing or str(sample.steps), knots)
        except InputError as error:
            yield f"sample.{'respacing' if sample.respacing else 'steps'}, transport.path {transport.path}: {error}"
    if sample.last_step_size is not None and sample.last_step_size >= high:
        yield f"sample.last_step_size {sample.last_step_size} must be less than {high}, where the grid begins"
