"""A request resolved against a model: what is decided before the first evaluation, and how it is carried out.

plan = make_plan(pipeline, {"label": [3, 7]}, seeds=[0, 1], request=SamplingRequest(steps=20))
for images in plan.images(): ...
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ditkit.conditions import (
    LabelsAndPrompts,
    check_conditioning,
    checked_labels,
    checked_prompts,
    checked_seeds,
    conditions,
)
from ditkit.device import autocast
from ditkit.errors import NotFinite
from ditkit.generation.guiding import bounded, guided
from ditkit.generation.known import check_lower, known_frames
from ditkit.generation.sizes import decoder, state_layout
from ditkit.layout import Cond, Layout
from ditkit.progress import progress_bar
from ditkit.randomness import Purpose, RowNoise
from ditkit.sampling import Known, Step, with_known
from ditkit.sampling.config import SamplingConfig, SamplingRequest
from ditkit.transports import At, Denoiser, Prediction

if TYPE_CHECKING:
    from ditkit.pipeline import Pipeline

LARGEST = 1e8
"""The largest number in a sampled state: images are about 1, and even an untrained network stays below."""


@dataclass(frozen=True)
class Plan:
    """All that decides the images of a request, one for each seed."""

    pipeline: "Pipeline"
    request: SamplingRequest
    solver: SamplingConfig
    """The recipe's, with what the request changes."""
    denoise: Denoiser
    grid: Tensor
    layout: Layout
    seeds: Sequence[int]
    labels: Tensor | None
    prompts: Sequence[str] | None
    known: Known | None
    """The parts of states that are not sampled."""
    purpose: Purpose
    """The purpose of the noise (`randomness`)."""
    decode: Callable[[Tensor], Tensor]

    @property
    def evaluations(self) -> int | None:
        """How often the network is evaluated for an image, a guided evaluation counted once; None where the solver decides."""
        return self.solver.nfe(self.grid, self.pipeline.transport)

    @property
    def batch(self) -> int:
        """Images sampled at once; one where the solver goes image by image, each with the parts that are known of it."""
        return 1 if self.known is not None and self.evaluations is None else self.request.batch

    def images(
        self,
        progress: bool = False,
        evaluated: Callable[[int], None] | None = None,
        after: Callable[[Step, Tensor], None] | None = None,
    ) -> Iterator[Tensor]:
        """A batch at a time, (B, C, H, W), on the CPU, each made when the iterator reaches it; the rest as of `states`."""
        return (self.decode(state).cpu() for state in self.states(progress, evaluated, after))

    @torch.no_grad()
    def states(
        self,
        progress: bool = False,
        evaluated: Callable[[int], None] | None = None,
        after: Callable[[Step, Tensor], None] | None = None,
    ) -> Iterator[Tensor]:
        """The states (B, *S) of the images, batch after batch.

        `evaluated` is called at every evaluation with the number of images it is for, `after` at every step with the states
        that it led to.
        """
        count, size = len(self.seeds), self.batch
        total = self.evaluations and self.evaluations * -(-count // size)
        with progress_bar(total, "sampling", "eval", shown=progress) as bar:
            for start in range(0, count, size):
                part = slice(start, start + size)
                yield self._solve(part, _watched(self.denoise, bar, evaluated), after)

    def _solve(self, part: slice, denoise: Denoiser, after: Callable[[Step, Tensor], None] | None) -> Tensor:
        """The states of these seeds."""
        seeds, device = self.seeds[part], self.pipeline.device
        noise = RowNoise(seeds, self.purpose)
        x = noise(torch.empty(len(seeds), *self.layout.shape, device=device))
        cond = conditions(
            None if self.labels is None else self.labels[part],
            None if self.prompts is None else self.prompts[part],
            self.pipeline.read,
            device,
        )
        if self.known is not None:
            kept = self.known.state(part)
            denoise = with_known(denoise, kept, self.known.parts, noise(x), self.known.time)
        with autocast(device, self.solver.precision):
            state = self.solver.run(denoise, x, self.grid, cond, noise=noise, after=after)
        if self.known is not None:  # in whose place a sampler leaves what it likes
            state = self.known.into(state, kept, self.layout)
        self._check_finite(state, seeds)
        return state

    def _check_finite(self, state: Tensor, seeds: Sequence[int]) -> None:
        """NotFinite, naming the model and the seed, for states (B, *S) that have come out as no image."""
        sizes = state.abs().flatten(1).amax(1)  # nan where one of the numbers is
        if (sizes <= LARGEST).all():
            return
        seed = seeds[(sizes <= LARGEST).tolist().index(False)]
        most = max(self.solver.level_guidance or (self.solver.guidance,))
        guided = f"a lower `guidance` than {most:g}, " if most > 1 else ""
        raise NotFinite(
            f"{self.pipeline.name}: what was sampled from seed {seed} is not finite or beyond any image; give {guided}more "
            "`steps`, another `sampler` or `precision` fp32, or take an earlier checkpoint"
        )


def make_plan(
    pipeline: "Pipeline",
    cond: LabelsAndPrompts | None,
    seeds: Sequence[int] | Tensor,
    request: SamplingRequest,
    weak: "Pipeline | None" = None,
    lower: "Pipeline | None" = None,
) -> Plan:
    """The request resolved; `weak` and `lower` are the models that it names. InputError as of `Pipeline.generate`."""
    check_conditioning(cond := cond or {})
    seeds = checked_seeds(seeds)
    solver, recipe = pipeline.recipe.sample.override(request), pipeline.recipe
    decode = decoder(pipeline, request)
    layout = state_layout(pipeline, request)
    grid = solver.times(pipeline.transport, layout)
    labels = checked_labels(cond, pipeline.classes, len(seeds), recipe.data.names or ())
    prompts = checked_prompts(cond, recipe.text is not None, len(seeds))
    denoise = pipeline.transport.denoiser(pipeline.network_in(solver.precision), layout, solver.around)
    denoise = guided(pipeline, request, solver, denoise, weak, layout)
    denoise = bounded(pipeline, solver, denoise)
    check_lower(pipeline, lower, request.lower_noise)
    known = known_frames(pipeline, request, layout, len(seeds))
    if lower is not None:
        parts = [False] + [True] * (layout.parts - 1)
        known = Known(
            parts, partial(_made_by, pipeline, lower, cond, seeds, solver.precision), request.lower_noise
        )
    # Other noise than that of the model below, which begins with the same seeds.
    purpose: Purpose = "sample" if lower is None else "cascade"
    return Plan(
        pipeline=pipeline,
        request=request,
        solver=solver,
        denoise=denoise,
        grid=grid,
        layout=layout,
        seeds=seeds,
        labels=labels,
        prompts=prompts,
        known=known,
        purpose=purpose,
        decode=decode,
    )


def _made_by(
    pipeline: "Pipeline",
    lower: "Pipeline",
    cond: LabelsAndPrompts,
    seeds: Sequence[int],
    precision: str,
    part: slice,
) -> Tensor:
    """States whose lower levels that model made, of the same seeds and conditions."""
    own = {key: value[part] for key, value in cond.items() if key != "label" or lower.classes}
    request = SamplingRequest.of({"batch": len(seeds[part]), "precision": precision})
    state = torch.cat(list(make_plan(lower, own, seeds[part], request).states()))
    channels = pipeline.codec.channels - state.shape[1]
    return torch.cat([state.new_zeros(len(state), channels, *state.shape[2:]), state], dim=1)


def _watched(denoise: Denoiser, bar: tqdm, evaluated: Callable[[int], None] | None) -> Denoiser:
    """The same denoiser, moving the progress bar at each evaluation and reporting it."""

    def predict(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
        bar.update()
        if evaluated:
            evaluated(len(x_t))
        return denoise(x_t, t, cond, at)

    return replace(denoise, predict=predict)
