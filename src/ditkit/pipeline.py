"""Pipeline: a backbone, its transport and its codec, loaded, sampled from and saved together.

    pipe = load("runs/digits")
    images = pipe.generate({"label": [3, 7]}, seeds=[0, 1])      # uint8 (2, C, H, W); clips (2, C, F, H, W)
    fields = pipe.generate(seeds=[0, 1], numbers=True)           # float32, in the data's own range

A snapshot is a folder with model.safetensors (the moving average) and recipe.json. A run's folder is
loaded from its newest intact checkpoint. Some tiny trained snapshots come with the package, by name.
Official DiT, SiT and U-DiT files and diffusers' folders are read too (`ditkit.interop`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, get_args

import torch
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    TypeAdapter,
    ValidationError,
    with_config,
)
from pydantic_core.core_schema import no_info_plain_validator_function
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm
from typing_extensions import TypedDict, Unpack

from ditkit.backbones import Backbone, compile_blocks, compiles
from ditkit.checks import whole_number
from ditkit.codecs import Codec, PyramidCodec
from ditkit.codecs.identity import to_bounds
from ditkit.conditions import (
    Asked,
    Read,
    asked_labels,
    asked_prompts,
    asked_seeds,
    check_asked,
    conditions,
    in_place_of_unknown,
    unknown,
)
from ditkit.config import refusal
from ditkit.device import Compile, DeviceName, Precision, autocast, pick_device
from ditkit.errors import InputError, NotFinite, no_such
from ditkit.files import first_line, save_tensors, tensors_hash
from ditkit.hub import model_card, publish
from ditkit.interop import Kind
from ditkit.layout import Layout
from ditkit.progress import progress_bar
from ditkit.randomness import RowNoise
from ditkit.recipe import Recipe
from ditkit.records import write_whole
from ditkit.sampling import Given, autoguidance, cfg, held, threshold
from ditkit.snapshots import read_model
from ditkit.transports import Denoiser, Transport

PIXELS = (0.0, 255.0)  # the range of 8-bit data
LARGEST = (
    1e8  # of a sampled state's numbers: images are about 1, what even an untrained network makes stays below
)


def _model(value: object) -> object:
    """A model, or where it is."""
    if value is None or isinstance(value, Pipeline | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f"give a run or a snapshot, not a {type(value).__name__}")


Positive = Annotated[int, Field(ge=1)]


@with_config(ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
class Sampling(TypedDict, total=False):
    """How to sample; what is not given is as in the recipe."""

    sampler: str | None
    steps: int | None
    guidance: float | None
    """Classifier-free guidance scale; 1 is off, others cost twice the evaluations' rows, in one call."""
    interval: tuple[float, float] | None
    """Times between which guidance is on."""
    guidance_channels: int | None
    """Guide only so many of the first channels; all when not given."""
    level_guidance: tuple[float, ...] | None
    """Of a pyramid: a guidance scale for each level, highest first, instead of `guidance`."""
    threshold: str | None
    """Bound the estimate of clean pixels (`SamplingConfig.threshold`)."""
    size: tuple[Positive, Positive] | None
    """Height and width in pixels, where the network takes others than those it was trained on; the data's when not
    given."""
    frames: Positive | None
    """Of a model of clips: how many; the data's when not given."""
    start: Tensor | None
    """Of a model of clips trained so (`transport.known_frames`): the first frames, kept as they are, uint8
    (N or 1, C, H, W) or (N or 1, C, F', H, W)."""
    end: Tensor | None
    """Likewise the last frames."""
    levels: str | None
    """Of a pyramid: which level's images, "0" the highest (as when not given), or "all", side by side."""
    numbers: bool
    """Numbers, float32 in the range of the data (of pixels 0 to 255), not rounded, instead of uint8: False when not
    given."""
    lower: Annotated[
        "Pipeline | str | None", GetPydanticSchema(lambda *_: no_info_plain_validator_function(_model))
    ]
    """For a model of a cascade (`transport.cascade`): the one that makes its lower levels, or its run or snapshot."""
    lower_noise: Annotated[float, Field(ge=0, le=1)]
    """Time of the noise that is put on what it makes: 0 (none) when not given."""
    weak: Annotated[
        str | None, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
    ]
    """A worse run or snapshot of the same kind to guide away from (autoguidance), instead of from "no class"."""
    grid: str | None
    """This and what follows as in `ditkit.sampling.config.SolverChoices`."""
    respacing: str | None
    eta: float | None
    tolerance: float | None
    diffusion: str | None
    diffusion_norm: float | None
    last_step: str | None
    last_step_size: float | None
    batch: Positive
    """Images sampled at once: 64 when not given."""
    precision: Precision
    """"fp32" when not given; bf16 can be faster, and images then depend a little on the batch."""
    progress: bool
    """Show a progress bar."""
    negative: str | None
    """A prompt to guide away from, instead of from "no text"."""
    evaluated: Callable[[int], None] | None
    """Called at each evaluation with the number of images it is for: what an adaptive solver takes."""


@cache
def _sampling() -> TypeAdapter[Sampling]:
    return TypeAdapter(Sampling)


def checked(how: Sampling) -> Sampling:
    """The same with every value of its type. InputError naming one that there is not, with the nearest, or that cannot be."""
    for name in how:
        if name not in Sampling.__annotations__:
            raise no_such("how to sample", name, Sampling.__annotations__)
    try:
        return _sampling().validate_python(how)
    except ValidationError as error:
        raise refusal(error, "") from None


@dataclass
class Pipeline:
    """A trained network with what it needs to make images."""

    recipe: Recipe
    backbone: Backbone
    codec: Codec
    device: torch.device
    record: dict = field(default_factory=dict)
    """Where the weights come from: images seen, minutes, file."""
    texts: Read | None = None
    """Prompts to their embeddings; the recipe's encoder, loaded when first needed, where none is given."""
    path: str = ""
    """What it was loaded from."""
    _fused: tuple[list, Backbone] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def transport(self) -> Transport:
        return self.recipe.transport

    @property
    def name(self) -> str:
        """What messages call it: where it was loaded from, or its recipe."""
        return self.path or self.recipe.name

    @property
    def classes(self) -> int:
        """What the network is told apart; 0 when it is told no class."""
        return self.backbone.classes

    @property
    def read(self) -> Read | None:
        """Prompts to their embeddings; None for a model that is told no text. InputError as of `TextConfig.build`."""
        if self.texts is None and self.recipe.text is not None:
            self.texts = self.recipe.text.build(self.device).encode
        return self.texts

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Pooled embeddings (N, E) of captions by the model's text encoder, on the CPU. InputError without one."""
        if (read := self.read) is None:
            raise InputError("this model is told no text and has no encoder of it")
        return read(captions).pooled.cpu()

    @property
    def network(self) -> Backbone:
        """What is sampled with: `backbone.fused()`, made again when the backbone's weights have changed.

        `backbone` itself, the form that is trained and saved, where there is nothing to fuse.
        """
        weights = [(parameter.data_ptr(), parameter._version) for parameter in self.backbone.parameters()]
        if self._fused is None or self._fused[0] != weights:
            self._fused = weights, self.backbone.fused()
        return self._fused[1]

    def generate(
        self,
        cond: Asked | None = None,
        *,
        seeds: Sequence[int] | Tensor,
        **how: Unpack[Sampling],
    ) -> Tensor:
        """Images uint8 (N, C, H, W), or clips (N, C, F, H, W), one per seed, with `numbers` float32 in the data's own range.
        `cond` has as many labels, "label", and prompts, "text", as the model is told.

        Image k depends on seeds[k] and its condition only: in float32, whatever the batch, pixels
        agree within 1.

        Raises:
            InputError: unknown sampler, steps or label out of range, guidance of an unconditional model, labels
                or prompts that are missing or that the model is not told, a size that it does not take.
            NotFinite, which is an InputError: images that come out as no finite numbers.
        """
        return torch.cat(list(self.stream(cond, seeds=seeds, **how)))

    def stream(
        self,
        cond: Asked | None = None,
        *,
        seeds: Sequence[int] | Tensor,
        **how: Unpack[Sampling],
    ) -> Iterator[Tensor]:
        """The images of `generate` a batch at a time, (B, C, H, W), each made when it is asked for.
        What is wrong with the arguments is said at once."""
        how = checked(how)
        decode = self._decoder(how.get("levels"), how.get("numbers", False))
        states = self._states(cond, seeds=seeds, **how)
        return (decode(state).cpu() for state in states)

    def _states(
        self,
        cond: Asked | None = None,
        *,
        seeds: Sequence[int] | Tensor,
        **how: Unpack[Sampling],
    ) -> Iterator[Tensor]:
        """What `stream` decodes."""
        check_asked(cond := cond or {})
        seeds = asked_seeds(seeds)
        chosen, guidance = self.recipe.sample.override(how), how.get("guidance")
        batch, precision = how.get("batch", 64), how.get("precision", "fp32")
        layout = self._layout(how.get("size"), how.get("frames"))
        grid = chosen.times(self.transport, layout)
        labels = asked_labels(cond, self.classes, len(seeds), self.recipe.data.names or ())
        prompts = asked_prompts(cond, self.recipe.text is not None, len(seeds))
        weak, negative = how.get("weak"), how.get("negative")
        told = self.classes or self.recipe.text
        if not told and guidance not in (None, 1) and not weak:
            raise InputError(
                f"--guidance {guidance}: this model was trained without classes and cannot be guided"
            )
        if negative is not None and (self.recipe.text is None or weak or chosen.guidance == 1):
            raise InputError(
                f"--negative {negative!r}: it is what guidance leads away from, for a model that is told a text, with "
                "--guidance other than 1 and without --weak"
            )
        scales = chosen.level_guidance
        if scales and (weak or len(scales) != len(self.recipe.backbone.ratios)):
            raise InputError(
                f"--level-guidance has {len(scales)} scales for {len(self.recipe.backbone.ratios)} levels; give one for "
                "each, without --weak"
            )
        read = self.read
        denoise = self.transport.denoiser(self.network, layout)
        if weak:
            if chosen.guidance_channels:
                raise InputError(
                    f"--guidance-channels {chosen.guidance_channels} is not for --weak; leave one out"
                )
            weaker = self._weak(weak, layout)
            denoise = autoguidance(denoise, weaker, chosen.guidance, chosen.interval)
        elif told:
            instead = in_place_of_unknown(self.recipe.text, read, negative)
            denoise = cfg(
                denoise,
                lambda cond: unknown(self.backbone, cond, instead),
                scales or chosen.guidance,
                chosen.interval,
                chosen.guidance_channels,
            )
        if chosen.threshold:
            if self.recipe.codec.kind != "identity":
                raise InputError(
                    f"--threshold {chosen.threshold} bounds pixels; this model's states are latents, leave it out"
                )
            denoise = threshold(denoise, chosen.threshold)
        lower = self._lower(how.get("lower"), how.get("lower_noise", 0.0))
        given = self._given_frames(how.get("start"), how.get("end"), layout, len(seeds))
        if lower is not None:
            parts = [False] + [True] * (layout.parts - 1)
            make = partial(self._made_by, lower, cond, seeds, precision)
            given = Given(parts, make, how.get("lower_noise", 0.0))
        nfe, evaluated = chosen.nfe(grid, self.transport), how.get("evaluated")
        if given is not None and nfe is None:  # solved image by image, each with what is given for it
            batch = 1
        total = None if nfe is None else nfe * -(-len(seeds) // batch)

        @torch.no_grad()
        def made() -> Iterator[Tensor]:
            with progress_bar(total, "sampling", "eval", shown=how.get("progress", False)) as bar:
                for start in range(0, len(seeds), batch):
                    part = slice(start, start + batch)
                    # Other noise than that of the model below, which begins with the same seeds.
                    noise = RowNoise(seeds[part], "sample" if lower is None else "cascade")
                    x = noise(torch.empty(len(seeds[part]), *layout.shape, device=self.device))
                    part_cond = conditions(
                        None if labels is None else labels[part],
                        None if prompts is None else prompts[part],
                        read,
                        self.device,
                    )
                    asked = _watched(denoise, bar, evaluated)
                    if given is not None:
                        kept = given.state(part)
                        asked = held(asked, kept, given.parts, noise(x), given.time)
                    with autocast(self.device, precision):
                        state = chosen.run(asked, x, grid, part_cond, noise=noise)
                    if given is not None:  # in whose place a sampler leaves what it likes
                        state = given.into(state, kept, layout)
                    self._check_finite(state, seeds[part], scales or (chosen.guidance,))
                    yield state

        return made()

    def _check_finite(self, state: Tensor, seeds: Sequence[int], scales: Sequence[float]) -> None:
        """NotFinite, naming the model and the seed, for states (B, *S) that have come out as no image."""
        sizes = state.abs().flatten(1).amax(1)  # nan where one of the numbers is
        if (sizes <= LARGEST).all():
            return
        seed = seeds[(sizes <= LARGEST).tolist().index(False)]
        guided = f"a lower --guidance than {max(scales):g}, " if max(scales) > 1 else ""
        raise NotFinite(
            f"{self.name}: what was sampled from seed {seed} is not finite or beyond any image; give {guided}more --steps, "
            "another --sampler or --precision fp32, or take an earlier checkpoint"
        )

    def _decoder(self, levels: str | None, numbers: bool) -> Callable[[Tensor], Tensor]:
        """States to images of these levels, uint8 or numbers. InputError for levels that the model does not have."""
        if numbers:
            values, bounds = self._read(levels, True), self.recipe.data.bounds or PIXELS
            return lambda state: to_bounds(values(state), bounds)
        return self._read(levels, False)

    def _read(self, levels: str | None, numbers: bool) -> Callable[[Tensor], Tensor]:
        """The codec's way back, for these levels."""
        if levels is None:
            return self.codec.values if numbers else self.codec.decode
        codec, count = self.codec, len(self.recipe.backbone.ratios)
        if not isinstance(codec, PyramidCodec) or levels not in ("all", *map(str, range(count))):
            raise InputError(
                f"--levels {levels}: this model has {count} level{'s' * (count > 1)}"
                + (f"; give 0 to {count - 1}, the highest first, or all" if count > 1 else "; leave it out")
            )
        if levels == "all":
            return partial(codec.side_by_side, numbers=numbers)
        return partial(codec.values if numbers else codec.decode, level=int(levels))

    def _layout(self, size: tuple[int, int] | None, frames: int | None) -> Layout:
        """Of states of that size. InputError where the network does not take it."""
        length, own = self.recipe.data.shape[:-2], self.recipe.data.shape[-2:]
        if frames is not None and not length:
            raise InputError(f"--frames {frames}: this model makes images; leave it out")
        multiple = self.recipe.multiple
        if size and (size[0] % multiple or size[1] % multiple or not all(size)):
            raise InputError(
                f"--size {size[0]}x{size[1]}: this model takes sides that are multiples of {multiple} pixels"
            )
        length = length if frames is None else (frames,)
        layout = self.codec.layout(*length, *(size or own))
        self.backbone.check_size(*layout.shape[1:])
        return layout

    def _given_frames(
        self, start: Tensor | None, end: Tensor | None, layout: Layout, count: int
    ) -> Given | None:
        """The frames at both ends of clips, encoded. InputError for a model that was not trained to go on from some, frames
        of another size or number of clips, or none left to sample."""
        if start is None and end is None:
            return None
        if not self.transport.known_frames:
            raise InputError(
                "--image, --extend: this model was not trained to go on from frames (transport.known_frames 0)"
            )
        zeros = torch.zeros(count, *layout.shape, device=self.device)
        parts = [False] * layout.parts
        for frames, last in ((start, False), (end, True)):
            if frames is None:
                continue
            if frames.ndim not in (4, 5) or frames.shape[1] != self.recipe.data.channels:
                raise InputError(
                    f"{'end' if last else 'start'}: frames of shape {tuple(frames.shape)}; give (N or 1, C, H, W) or (N or 1, "
                    f"C, F, H, W) with C = {self.recipe.data.channels}"
                )
            clip = frames[:, :, None] if frames.ndim == 4 else frames
            state = self.codec.encode(clip.to(self.device))
            own = state.shape[2]
            if len(state) not in (1, count) or state.shape[3:] != zeros.shape[3:] or own >= layout.parts:
                raise InputError(
                    f"frames that are kept: {len(state)} clips of {own} frames, in states of "
                    f"{'x'.join(map(str, state.shape[3:]))}, for {count} clips of {layout.parts}, "
                    f"{'x'.join(map(str, zeros.shape[3:]))}; give one or {count}, fewer frames, of one size"
                )
            place = slice(layout.parts - own, None) if last else slice(own)
            zeros[:, :, place] = state
            parts[place] = [True] * own
        if all(parts):
            raise InputError(f"all {layout.parts} frames are given; keep fewer")
        return Given(parts, zeros.__getitem__)

    def _lower(self, lower: "Pipeline | str | None", noise: float) -> "Pipeline | None":
        """The model of the lower levels, checked: present exactly for a model that is given them."""
        most = self.transport.cascade
        if (lower is not None) != (most is not None):
            raise InputError(
                "--lower: this model makes all its levels itself; leave it out"
                if lower is not None
                else "--lower: this model learned its highest level only; give a model of the lower ones"
            )
        if most is not None and noise > most:
            raise InputError(
                f"--lower-noise {noise}: this model was trained with times up to {most}; give at most that"
            )
        lower = load(lower, self.device) if isinstance(lower, str) else lower
        if lower is not None:
            theirs, ours = lower.recipe.data.shape[-2:], self.recipe.data.shape[-2:]
            high, low = self.recipe.backbone.ratios[:2]
            needed = tuple(side * low // high for side in ours)
            if theirs != needed or lower.recipe.backbone.ratios != self.recipe.backbone.ratios[1:]:
                raise InputError(
                    f"--lower: a model of {_size(theirs)} pixels in {len(lower.recipe.backbone.ratios)} levels; this one needs "
                    f"{_size(needed)} in {len(self.recipe.backbone.ratios) - 1}"
                )
            if self.recipe.codec.level_scale[1:] != lower.recipe.codec.level_scale:
                raise InputError(
                    f"--lower: its --codec.level-scale is {lower.recipe.codec.level_scale}, this model's lower levels have "
                    f"{self.recipe.codec.level_scale[1:]}; they must be the same"
                )
        return lower

    def _made_by(
        self, lower: "Pipeline", cond: Asked, seeds: Sequence[int], precision: Precision, part: slice
    ) -> Tensor:
        """States whose lower levels that model made, of the same seeds and conditions."""
        told = {key: value[part] for key, value in cond.items() if key != "label" or lower.classes}
        made = lower._states(told, seeds=seeds[part], batch=len(seeds[part]), precision=precision)
        state = torch.cat(list(made))
        channels = self.codec.channels - state.shape[1]
        return torch.cat([state.new_zeros(len(state), channels, *state.shape[2:]), state], dim=1)

    def _weak(self, path: str, layout: Layout) -> Denoiser:
        """The denoiser of a weaker model; InputError when it is not of this one's kind."""
        other = load(path, self.device)
        theirs, ours = (
            f"path {p.transport.path}, {_size(p.recipe.data.shape[-2:])} pixels, {p.recipe.data.channels} channels, "
            f"levels {':'.join(map(str, p.recipe.backbone.ratios))}, "
            f"codec {p.recipe.codec.kind}, {p.classes} classes, text {p.recipe.text.id if p.recipe.text else 'none'}"
            for p in (other, self)
        )
        if theirs != ours:
            raise InputError(f"--weak {path}: {theirs}; a weak model needs {ours}")
        return other.transport.denoiser(other.network, layout)

    def tokens(self, **how: Unpack[Sampling]) -> int:
        """That the network works on to sample an image, all evaluations together, guided ones twice. A solver that
        chooses its own steps is taken to need a hundred. InputError as of `generate`."""
        how = checked(how)
        chosen = self.recipe.sample.override(how)
        layout = self._layout(how.get("size"), how.get("frames"))
        evaluations = chosen.nfe(chosen.times(self.transport, layout), self.transport) or 100
        guided = any(scale != 1 for scale in chosen.level_guidance or (chosen.guidance,))
        return evaluations * (1 + guided) * self.recipe.backbone.tokens(layout.shape[1:])

    def compile(self, choice: Compile = "on", tokens: int = 0) -> bool:
        """Compile the network's blocks: the first image waits for it, many images are faster. With auto only where that
        works and pays for so many tokens. Whether they are compiled; InputError where it is to be on and cannot be."""
        chosen = compiles(choice, self.network, self.device, tokens, "--compile")
        if chosen:
            compile_blocks(self.network)
        return chosen

    def save(
        self, folder: str | Path, dtype: torch.dtype = torch.float32, reports: Sequence[Mapping] = ()
    ) -> Path:
        """Write a snapshot: model.safetensors (in `dtype`), recipe.json, vae/ where the autoencoder is a local folder,
        and README.md, a model card with the scores of `reports` (contents of report.json)."""
        folder = Path(folder)
        tensors = {name: value.to(dtype).contiguous() for name, value in self.backbone.state_dict().items()}
        metadata = {"record": json.dumps(self.record), "sha256": tensors_hash(tensors)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(folder / "model.safetensors", tensors, metadata)
            self.codec.save(folder / "vae")
            write_whole(folder / "README.md", model_card(self.recipe, self.record, reports).encode())
            self.recipe.write(folder / "recipe.json")  # last: it makes the folder a snapshot
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{folder}: the snapshot cannot be written ({first_line(error)}); make room"
            ) from None
        return folder

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights, for whatever is kept of what they made."""
        return tensors_hash(self.backbone.state_dict())

    def push_to_hub(self, model: str, *, private: bool = False, reports: Sequence[Mapping] = ()) -> str:
        """Publish as OWNER/NAME on the Hugging Face Hub; the address. InputError as of `hub.publish`."""
        with TemporaryDirectory(prefix="ditkit-") as folder:
            return publish(self.save(folder, reports=reports), model, private)


def _size(shape: Sequence[int]) -> str:
    """16, or of images that are not square 16x24."""
    return str(shape[0]) if len(set(shape)) == 1 else "x".join(map(str, shape))


def _watched(denoise: Denoiser, bar: tqdm, evaluated: Callable[[int], None] | None) -> Denoiser:
    """The same denoiser, moving the progress bar at each evaluation and telling of it."""

    def predict(x_t, t, cond, at):
        bar.update()
        if evaluated:
            evaluated(len(x_t))
        return denoise(x_t, t, cond, at)

    return replace(denoise, predict=predict)


def load(
    path: str | Path,
    device: DeviceName | torch.device = "auto",
    *,
    kind: Kind | None = None,
    heads: int | None = None,
) -> Pipeline:
    """A pipeline from a run's folder, a snapshot's folder, the name of a bundled snapshot, an official DiT,
    SiT or U-DiT file (.pt or .safetensors), a folder of diffusers' `DiTTransformer2DModel`, or the id OWNER/NAME of a
    model on the Hugging Face Hub.

    Args:
        kind: "DiT" or "SiT", for an official file whose name does not say so; "DiT" for a folder of
            diffusers' reads the released network's clock instead of diffusers'.
        heads: attention heads, for an official file of none of the released widths.

    Raises InputError: nothing there, a damaged file, or weights that do not fit the recipe.
    """
    where = pick_device(device)
    if not isinstance(path, str | Path):
        raise InputError(f"path: {path!r:.80} is none; give a run, a snapshot, a file or the id of a model")
    if kind is not None and kind not in get_args(Kind):
        raise no_such("kind", kind, get_args(Kind))
    if heads is not None:
        whole_number(heads, "heads", least=1)
    found = read_model(Path(path), kind, heads)
    net = found.recipe.build_backbone()
    try:
        net.load_state_dict(found.weights)
    except RuntimeError as error:
        _, *wrong = str(error).splitlines()
        if not wrong:  # not what it says of names and shapes
            raise
        reason = wrong[0].strip()
        raise InputError(f"{path}: the weights do not fit recipe.json ({reason})") from None
    net = net.to(where).eval().requires_grad_(False)
    record = {"origin": str(path), **found.record}
    return Pipeline(found.recipe, net, found.recipe.build_codec(where), where, record, path=str(path))
