"""Pipeline: a backbone, its transport and its codec, loaded, sampled from and saved together.

    pipe = load("runs/digits")
    images = pipe.generate({"label": [3, 7]}, seeds=[0, 1])      # uint8 (2, C, H, W); clips (2, C, F, H, W)
    fields = pipe.generate(seeds=[0, 1], numbers=True)           # float32, in the data's own range

A snapshot is a folder with model.safetensors (the moving average) and recipe.json. A run's folder is
loaded from its newest intact checkpoint. Some tiny trained snapshots come with the package, by name.
Official DiT, SiT and U-DiT files and diffusers' folders are read too (`ditkit.interop`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor

from ditkit.backbones import Backbone, compile_blocks, compiles, sampled
from ditkit.checks import whole_number
from ditkit.codecs import Codec
from ditkit.conditions import LabelsAndPrompts, Read
from ditkit.device import Compile, DeviceName, Precision, pick_device, uses_bf16
from ditkit.errors import InputError, no_such
from ditkit.files import first_line, save_tensors, tensors_hash
from ditkit.generation import Plan, make_plan, state_layout
from ditkit.hub import model_card, publish
from ditkit.interop import Imported, Kind
from ditkit.recipe import Recipe
from ditkit.records import write_whole
from ditkit.sampling.config import SamplingRequest
from ditkit.snapshots import read_model
from ditkit.transports import Transport


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
    """Prompts to their embeddings; the recipe's encoder, loaded when first needed, by default."""
    path: str = ""
    """What it was loaded from."""
    _compiled: bool = field(default=False, init=False, repr=False, compare=False)
    _sampled: dict[bool, tuple[list, Backbone]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def transport(self) -> Transport:
        return self.recipe.transport

    @property
    def name(self) -> str:
        """What messages call it: where it was loaded from, or its recipe."""
        return self.path or self.recipe.name

    @property
    def classes(self) -> int:
        """The number of classes that the network is conditioned on; 0 without."""
        return self.backbone.classes

    @property
    def read(self) -> Read | None:
        """Prompts to their embeddings; None for a model that takes no text. InputError as of `TextConfig.build`."""
        if self.texts is None and self.recipe.text is not None:
            self.texts = self.recipe.text.build(self.device).encode
        return self.texts

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Pooled embeddings (N, E) of captions by the model's text encoder, on the CPU. InputError without one."""
        if (read := self.read) is None:
            raise InputError("this model takes no text and has no encoder of it")
        return read(captions).pooled.cpu()

    @property
    def network(self) -> Backbone:
        """What is sampled with in float32."""
        return self.network_in("fp32")

    def network_in(self, precision: Precision) -> Backbone:
        """What is sampled with: `backbone.fused()`, for bf16 with weights in bf16; compiled where `compile` said so.

        Made again when the backbone's weights have changed; `backbone` itself, the form that is trained and saved, where there
        is nothing to make.
        """
        bf16 = uses_bf16(self.device, precision)
        weights = [(parameter.data_ptr(), parameter._version) for parameter in self.backbone.parameters()]
        if bf16 not in self._sampled or self._sampled[bf16][0] != weights:
            made = sampled(self.backbone, bf16)
            if self._compiled:
                compile_blocks(made)
            self._sampled[bf16] = weights, made
        return self._sampled[bf16][1]

    def generate(
        self,
        cond: LabelsAndPrompts | None = None,
        *,
        seeds: Sequence[int] | Tensor,
        request: SamplingRequest | None = None,
        progress: bool = False,
        **values: Any,
    ) -> Tensor:
        """Images uint8 (N, C, H, W), or clips (N, C, F, H, W), one per seed; with `numbers` float32 in the data's own range.

        `cond` has as many labels, "label", and prompts, "text", as the model takes. How to sample is a `SamplingRequest`, or
        the fields of one by their names, or both; what neither says is as in the recipe.

        Image k depends on seeds[k] and its condition only: in float32, whatever the batch, pixels
        agree within 1.

        Raises:
            InputError: unknown sampler, steps or label out of range, guidance of an unconditional model, labels
                or prompts that are missing or that the model does not take, a size that it does not take.
            NotFinite, which is an InputError: images that come out as no finite numbers.
        """
        plan = self.plan(cond, seeds=seeds, request=request, **values)
        return torch.cat(list(plan.images(progress)))

    def stream(
        self,
        cond: LabelsAndPrompts | None = None,
        *,
        seeds: Sequence[int] | Tensor,
        request: SamplingRequest | None = None,
        progress: bool = False,
        **values: Any,
    ) -> Iterator[Tensor]:
        """The images of `generate` a batch at a time, (B, C, H, W), each made when the iterator reaches it.
        Wrong arguments raise at once."""
        return self.plan(cond, seeds=seeds, request=request, **values).images(progress)

    def plan(
        self,
        cond: LabelsAndPrompts | None = None,
        *,
        seeds: Sequence[int] | Tensor,
        request: SamplingRequest | None = None,
        **values: Any,
    ) -> Plan:
        """All that `generate` decides before it evaluates the network: times, guidance, batches. InputError as of `generate`."""
        request = requested(request, values)
        weak, lower = (
            load(model, self.device) if isinstance(model, str) else model
            for model in (request.weak, request.lower)
        )
        return make_plan(self, cond, seeds, request, weak, lower)

    def tokens(self, request: SamplingRequest | None = None, **values: Any) -> int:
        """That the network works on to sample an image, all evaluations together, guided ones twice, or as many as dense blocks
        make of it. A solver that chooses its own steps is taken to need a hundred. InputError as of `generate`."""
        request = requested(request, values)
        solver, layout = self.recipe.sample.override(request), state_layout(self, request)
        evaluations = solver.nfe(solver.times(self.transport, layout), self.transport) or 100
        guided = any(scale != 1 for scale in solver.level_guidance or (solver.guidance,))
        backbone = self.recipe.backbone
        further = guided * (backbone.dense_share if solver.guidance_path == "dense" else 1)
        return round(evaluations * (1 + further) * backbone.tokens(layout.shape[1:]))

    def compile(self, choice: Compile = "on", images: int = 0, tokens: int = 1) -> bool:
        """Compile the network's blocks: the first image waits for it, many images are faster. With auto only where that works and
        pays for so many images of so many `tokens`. Whether they are compiled; InputError where it is to be on and cannot be."""
        chosen = compiles(choice, self.network, self.device, images, tokens, "`compile`")
        if chosen and not self._compiled:
            self._compiled = True
            self._sampled.clear()
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


def requested(request: SamplingRequest | None, values: Mapping[str, Any]) -> SamplingRequest:
    """A request, or the fields of one, or one with fields changed. InputError for what is none."""
    if request is None:
        return SamplingRequest.of(values)
    if not isinstance(request, SamplingRequest):
        raise InputError(f"request: {request!r:.80} is none; give a ditkit.SamplingRequest")
    return request.but(**values) if values else request


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
    return assembled(read_model(Path(path), kind, heads), where, str(path))


def assembled(found: Imported, device: torch.device, path: str) -> Pipeline:
    """A pipeline of weights that were read from `path`. InputError where they do not fit their recipe."""
    net = found.recipe.build_backbone()
    try:
        net.load_state_dict(found.weights)
    except RuntimeError as error:
        _, *wrong = str(error).splitlines()
        if not wrong:  # not what it says of names and shapes
            raise
        reason = wrong[0].strip()
        raise InputError(f"{path}: the weights do not fit recipe.json ({reason})") from None
    net = net.to(device).eval().requires_grad_(False)
    record = {"origin": path, **found.record}
    return Pipeline(found.recipe, net, found.recipe.build_codec(device), device, record, path=path)
