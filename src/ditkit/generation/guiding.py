"""The guidance of a request, and what can be wrong with it."""

from functools import partial
from typing import TYPE_CHECKING

from ditkit.conditions import in_place_of_unknown, unknown
from ditkit.errors import InputError
from ditkit.generation.sizes import size_name
from ditkit.layout import Cond, Layout
from ditkit.nn.sparse import PATH
from ditkit.sampling import autoguidance, cfg, threshold
from ditkit.sampling.config import SamplingConfig, SamplingRequest
from ditkit.sampling.guidance import without_condition
from ditkit.transports import Denoiser

if TYPE_CHECKING:
    from ditkit.pipeline import Pipeline


def guided(
    pipeline: "Pipeline",
    request: SamplingRequest,
    solver: SamplingConfig,
    denoise: Denoiser,
    weak: "Pipeline | None",
    layout: Layout,
) -> Denoiser:
    """The denoiser with the guidance of the request."""
    recipe, scales, dense = pipeline.recipe, solver.level_guidance, solver.guidance_path == "dense"
    conditional = pipeline.classes or recipe.text
    if not conditional and request.guidance not in (None, 1) and not weak and not dense:
        raise InputError(
            f"`guidance` {request.guidance}: this model was trained without classes and cannot be guided"
        )
    if request.negative is not None and (recipe.text is None or weak or solver.guidance == 1):
        raise InputError(
            f"`negative` {request.negative!r}: it is what guidance leads away from, for a model that takes a text, with "
            "`guidance` other than 1 and without `weak`"
        )
    if scales and (weak or len(scales) != len(recipe.backbone.ratios)):
        raise InputError(
            f"`level_guidance` has {len(scales)} scales for {len(recipe.backbone.ratios)} levels; give one for "
            "each, without `weak`"
        )
    if dense and (why := recipe.backbone.cannot("sparse blocks")):
        raise InputError(f"`guidance_path` dense, but {why}, or give `guidance_path` whole")
    if dense and weak:
        raise InputError(
            "`guidance_path` dense and `weak` both say what guidance leads away from; leave one out"
        )
    if weak:
        if solver.guidance_channels:
            raise InputError(
                f"`guidance_channels` {solver.guidance_channels} is not for `weak`; leave one out"
            )
        _check_weak(pipeline, weak)
        worse = weak.transport.denoiser(weak.network_in(solver.precision), layout, solver.around)
        return autoguidance(denoise, worse, solver.guidance, solver.interval)
    if not conditional and not dense:
        return denoise
    instead = in_place_of_unknown(recipe.text, pipeline.read, request.negative)

    def null(cond: Cond) -> Cond:
        return unknown(pipeline.backbone, cond, instead)

    if dense:
        network = partial(pipeline.network_in(solver.precision), left=PATH)
        worse = pipeline.transport.denoiser(network, layout, solver.around)
        return autoguidance(denoise, without_condition(worse, null), solver.guidance, solver.interval)
    return cfg(denoise, null, scales or solver.guidance, solver.interval, solver.guidance_channels)


def _check_weak(pipeline: "Pipeline", weak: "Pipeline") -> None:
    """InputError when the weaker model is not of this one's kind."""
    theirs, ours = (
        f"path {p.transport.path}, {size_name(p.recipe.data.shape[-2:])} pixels, {p.recipe.data.channels} channels, "
        f"levels {':'.join(map(str, p.recipe.backbone.ratios))}, "
        f"codec {p.recipe.codec.kind}, {p.classes} classes, text {p.recipe.text.id if p.recipe.text else 'none'}"
        for p in (weak, pipeline)
    )
    if theirs != ours:
        raise InputError(f"`weak` {weak.name}: {theirs}; a weak model needs {ours}")


def bounded(pipeline: "Pipeline", solver: SamplingConfig, denoise: Denoiser) -> Denoiser:
    """The denoiser with its estimate of clean pixels kept in bounds, where the settings say so."""
    if not solver.threshold:
        return denoise
    if not pipeline.recipe.codec.pixels:
        raise InputError(
            f"`threshold` {solver.threshold} bounds pixels; this model's states are latents, leave it out"
        )
    return threshold(denoise, solver.threshold)
