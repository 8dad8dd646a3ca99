"""Foreign checkpoints: the reference's numbers from files on disk, exact round trips, and refusals.

`reference` is the released network written from its description, under its names; diffusers' is
diffusers itself, on tiny random weights.
"""

import json
import logging
import math
import os
import pickle
import zipfile
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU
from official import LABELS, tiny_official, wave
from safetensors.torch import load_file, save_file

import ditkit
from ditkit.cli import main
from ditkit.errors import InputError
from ditkit.interop.official import read_official
from ditkit.nn.embeddings import sincos_positions
from ditkit.sampling import SAMPLERS
from ditkit.tensors import Placeholder, read_state, read_tensors


class Evil:
    """Runs a command when an ordinary unpickler meets it."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def training_file(path, state, **arguments):
    """A checkpoint as the released training scripts write it; `model` is not what should be read."""
    other = {name: value + 1 for name, value in state.items()}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    args = Namespace(global_seed=0, data_path="/data", **arguments)
    torch.save({"model": other, "ema": state, "opt": optimizer.state_dict(), "args": args}, path)
    return path


def random_state(width=36, depth=3, patch=4, channels=4, side=16, classes=7, outputs=8):
    """A released state dict of any size, filled at random."""
    shapes = {
        "x_embedder.proj": (width, channels, patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (4 * width, width),
            f"blocks.{i}.mlp.fc2": (width, 4 * width),
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
        }
    shapes |= {
        "final_layer.linear": (patch * patch * outputs, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    generator = torch.Generator().manual_seed(0)
    state = {"pos_embed": sincos_positions(side // patch, side // patch, width)[None]}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = 0.2 * torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)
    state["y_embedder.embedding_table.weight"] = torch.randn(classes + 1, width, generator=generator)
    return state


def reference(state, heads, x, time, labels):
    """The released forward pass: (B, C, H, W), what the code feeds as its time, labels."""

    def linear(name, h):
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(h, shift, scale):
        return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    weight = state["x_embedder.proj.weight"]
    width, _, patch, _ = weight.shape
    h = F.conv2d(x, weight, state["x_embedder.proj.bias"], stride=patch)
    rows, columns = h.shape[2:]
    h = h.flatten(2).transpose(1, 2) + state["pos_embed"]
    angles = time.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    embedded = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    c = linear("t_embedder.mlp.2", F.silu(embedded)) + state["y_embedder.embedding_table.weight"][labels]
    depth = sum(name.endswith("attn.qkv.weight") for name in state)
    for i in range(depth):
        m = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6, dim=1)
        qkv = linear(f"blocks.{i}.attn.qkv", norm(h, m[0], m[1])).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv)
        weights = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        h = h + m[2][:, None] * linear(f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(h, m[3], m[4])), approximate="tanh")
        h = h + m[5][:, None] * linear(f"blocks.{i}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1)
    out = linear("final_layer.linear", norm(h, shift, scale))
    out = out.reshape(len(x), rows, columns, patch, patch, -1)
    return torch.einsum("bhwpqc->bchpwq", out).reshape(len(x), -1, rows * patch, columns * patch)


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def index(*indices):
    return (torch.tensor(indices, dtype=torch.float64) + 1) / 1000


def close(value, expected, rel=1e-5):
    assert value == pytest.approx(expected, rel=rel, abs=1e-6)


# --- numbers of the released code, from files on disk -----------------------------------------------


@torch.no_grad()
def test_goldens_of_a_dit_file(tmp_path):
    file = training_file(tmp_path / "0400000.pt", tiny_official(), model="DiT-XL/2")
    pipe = ditkit.load(file, CPU, heads=4)
    out = pipe.backbone(wave(), index(3, 250), LABELS)
    close(out.double().sum().item(), 59.30689)
    close(out.double().square().sum().item(), 41.12365)
    close(out[0, 0, 0, :4].tolist(), [0.1954983, 0.0071218, 0.1484265, -0.0265457])
    grid = torch.cat([index(*range(999, -1, -111)), torch.zeros(1, dtype=torch.float64)])
    x = SAMPLERS["ddim"].run(pipe.transport.denoiser(pipe.backbone), wave(), grid, LABELS)
    close(x.double().sum().item(), -4643.160)


@torch.no_grad()
def test_goldens_of_a_sit_file(tmp_path):
    file = training_file(tmp_path / "0400000.pt", tiny_official(), model="SiT-XL/2", path_type="Linear")
    pipe = ditkit.load(file, CPU, heads=4)
    denoise = pipe.transport.denoiser(pipe.backbone)
    out = -denoise(wave(), 1 - torch.tensor([0.3, 0.8], dtype=torch.float64), LABELS).velocity
    close(out.double().sum().item(), 28.50145)
    close(out.double().square().sum().item(), 40.94308)
    close(out[0, 0, 0, :4].tolist(), [0.204871, 0.006569, 0.156389, -0.027973], rel=5e-5)
    grid = torch.linspace(1, 0, 11, dtype=torch.float64)
    close(SAMPLERS["euler"].run(denoise, wave(), grid, LABELS).double().sum().item(), 32.331529)


SIZES = [
    {},
    {"width": 384, "depth": 1, "patch": 2, "side": 8, "classes": 1000},
    {"width": 36, "patch": 2, "channels": 3, "outputs": 3, "side": 8, "classes": 1},
]


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_any_size_equals_the_reference(tmp_path, size, suffix):
    state = random_state(**size)
    heads = None if size.get("width") == 384 else 3
    t, labels = index(0, 417, 999), torch.tensor([0, 1, 0])
    for kind in ("DiT", "SiT"):
        file = tmp_path / f"{kind}-bare{suffix}"
        save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
        pipe = ditkit.load(str(file), CPU, heads=heads)
        side = pipe.codec.layout(pipe.recipe.data.size, pipe.recipe.data.size).shape
        assert pipe.classes == size.get("classes", 7)
        x = torch.randn(3, *side, generator=torch.Generator().manual_seed(1))
        if kind == "DiT":
            expected = reference(state, heads or 6, x, 1000 * t - 1, labels)
            assert error(pipe.backbone(x, t, {"label": labels}), expected) < 1e-5
        else:
            expected = -reference(state, heads or 6, x, 1 - t, labels)[:, : side[0]]
            found = pipe.transport.denoiser(pipe.backbone)(x, t, {"label": labels})
            assert error(found.velocity, expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("path", "predict", "loss_weight"),
    [("GVP", "score", None), ("VP", "noise", "velocity"), ("Linear", "score", "likelihood")],
)
def test_a_sit_is_what_its_training_arguments_say(tmp_path, path, predict, loss_weight):
    """Score and noise do not change with the direction of time."""
    state = random_state(outputs=4)
    training = {"path_type": path, "prediction": predict, "loss_weight": loss_weight}
    pipe = ditkit.load(training_file(tmp_path / "SiT.pt", state, **training), CPU, heads=3)
    expected = ditkit.transport(path.lower(), predict=predict, loss=loss_weight or "output")
    assert pipe.transport == expected
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([0.3, 0.7], dtype=torch.float64)
    found = pipe.transport.denoiser(pipe.backbone)(x, t, {"label": torch.tensor([6, 7])})
    expected = reference(state, 3, x, 1 - t, torch.tensor([6, 7]))
    assert error(found.eps if predict == "noise" else found.score, expected) < 1e-5


def test_a_velocity_is_not_weighted_whatever_the_arguments_say(tmp_path):
    file = training_file(tmp_path / "SiT.pt", random_state(outputs=4), loss_weight="velocity")
    assert ditkit.load(file, CPU, heads=3).transport == ditkit.transport("linear")


def test_parts_and_recipe(tmp_path):
    """The autoencoder is not fetched before it is used."""
    torch.save(random_state(), tmp_path / "DiT.pt")
    pipe = ditkit.load(tmp_path / "DiT.pt", CPU, heads=3)
    assert pipe.codec.layout(128, 128).shape == (4, 16, 16)
    assert (pipe.recipe.codec.kind, pipe.recipe.data.size, pipe.recipe.data.classes) == ("vae", 128, 7)
    assert pipe.transport == ditkit.transport("ddpm", predict="noise", variance="learned")
    assert not pipe.backbone.training
    torch.save(random_state(), tmp_path / "SiT.pt")
    assert ditkit.load(tmp_path / "SiT.pt", CPU, heads=3).transport == ditkit.transport("linear")


def test_pixels_are_generated(tmp_path):
    torch.save(random_state(**SIZES[2]), tmp_path / "SiT.pt")
    images = ditkit.load(tmp_path / "SiT.pt", CPU, heads=3).generate({"label": [0]}, seeds=[0], steps=1)
    assert images.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drift", [0.0, 5e-5])
def test_files_in_half_precision_are_read(tmp_path, dtype, drift):
    """Their fixed positions are rounded, those of a moving average a little further on."""
    state = random_state()
    state["pos_embed"] = state["pos_embed"] + drift
    halved = {name: value.to(dtype) for name, value in state.items()}
    torch.save(halved, tmp_path / "DiT.pt")
    found = read_official(tmp_path / "DiT.pt", heads=3)
    assert torch.equal(found.weights["patches.proj.weight"], halved["x_embedder.proj.weight"].float())


def test_a_file_without_positions_has_those_of_its_images(tmp_path):
    state = random_state()
    whole = read_official(saved(state, tmp_path / "DiT.pt"), heads=3)
    side = whole.recipe.data.size
    del state["pos_embed"]
    torch.save({"ema": state, "args": {"image_size": side}}, tmp_path / "DiT-bare.pt")
    bare = read_official(tmp_path / "DiT-bare.pt", heads=3)
    assert all(torch.equal(value, bare.weights[name]) for name, value in whole.weights.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"ema_model": state, "model": {name: value + 1 for name, value in state.items()}},
        lambda state: {"model_ema": state},
        lambda state: (
            {f"ema_model.{name}": value for name, value in state.items()}
            | {f"model.{name}": value + 1 for name, value in state.items()}
        ),
        lambda state: {"state_dict": {f"model.module.{name}": value for name, value in state.items()}},
        lambda state: {
            name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v for name, v in state.items()
        },
        lambda state: {f"_fsdp_wrapped_module._orig_mod.{name}": value for name, value in state.items()},
    ],
)
def test_wrappers_are_taken_off_wherever_they_stand(tmp_path, wrap):
    state = random_state()
    expected = read_official(saved(state, tmp_path / "DiT.pt"), heads=3).weights
    found = read_official(saved(wrap(state), tmp_path / "DiT-wrapped.pt"), heads=3).weights
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def saved(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_prefixes(tmp_path, prefix):
    state = random_state()
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "DiT.pt")
    ours = ditkit.load(tmp_path / "DiT.pt", CPU, heads=3).backbone.state_dict()
    assert ours["patches.proj.weight"].equal(state["x_embedder.proj.weight"])


# --- round trips -----------------------------------------------------------------------------------


def same(a, b):
    return list(a) == list(b) and all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize(("kind", "outputs"), [("DiT", 8), ("DiT", 4), ("SiT", 8)])
def test_official_there_and_back(tmp_path, capsys, kind, outputs):
    """Bit for bit, in the official order; a SiT's unused half comes back as zeros."""
    state = {name: value.clone() for name, value in random_state(outputs=outputs).items()}
    if kind == "SiT":
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            state[name].unflatten(0, (-1, outputs))[:, 4:] = 0
    state = {name: state[name] for name in _ordered(state)}
    torch.save(state, tmp_path / f"{kind}-x.pt")
    for source, out in ((f"{kind}-x.pt", "snapshot"), ("snapshot", "back")):
        to = "official" if out == "back" else "snapshot"
        flags = ["--heads", "3"] if out == "snapshot" else []
        assert (
            main(["convert", str(tmp_path / source), "--out", str(tmp_path / out), "--to", to, *flags]) == 0
        )
    assert f"{kind}-x.pt" in capsys.readouterr().out
    assert same(torch.load(tmp_path / "back" / f"{kind}-x.pt", weights_only=True), state)
    first = ditkit.load(tmp_path / f"{kind}-x.pt", CPU, heads=3)
    again = ditkit.load(tmp_path / "snapshot", CPU)
    assert same(first.backbone.state_dict(), again.backbone.state_dict())
    assert again.recipe == first.recipe


def _ordered(state):
    """The official order: the label table after the time, before the blocks."""
    names = [name for name in state if not name.startswith("y_")]
    at = names.index("blocks.0.attn.qkv.weight")
    return [*names[:at], "y_embedder.embedding_table.weight", *names[at:]]


def test_what_has_no_official_form(tmp_path, capsys):
    """digits is a linear path on DiT's clock, which SiT's code cannot read; digits-dit is a DiT."""
    for to in ("official", "diffusers"):
        assert main(["convert", "digits", "--out", str(tmp_path / to), "--to", to]) == 2
        assert "reads the time 1000 t + -1, path linear" in capsys.readouterr().err
        assert not (tmp_path / to).exists()
    assert main(["convert", "digits-dit", "--out", str(tmp_path), "--to", "official"]) == 0
    back = ditkit.load(tmp_path / "DiT-digits-dit.pt", CPU, heads=3)
    assert same(back.backbone.state_dict(), ditkit.load("digits-dit", CPU).backbone.state_dict())


# --- diffusers --------------------------------------------------------------------------------------

CONFIG = {
    "num_attention_heads": 3, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8, "num_layers": 3,
    "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def shared(model):
    """The same embeddings in every block, as conversions have them."""
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model.eval()


@pytest.fixture(scope="module")
def theirs(diffusers):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return shared(diffusers.DiTTransformer2DModel(**CONFIG))


def outputs(pipe, model):
    """Of both on the same input, (ours, theirs), first and last index and the row for "unknown" included."""
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    indices, labels = torch.tensor([0, 250, 617, 999]), torch.tensor([0, 6, 7, 3])
    with torch.no_grad():
        ours = pipe.backbone(x, index(*indices.tolist()), {"label": labels})
        return ours, model(x, timestep=indices, class_labels=labels).sample


@pytest.mark.parametrize("layout", ["network", "pipeline"])
def test_a_folder_of_diffusers_there_and_back(tmp_path, diffusers, theirs, layout, caplog):
    folder = tmp_path / "dit"
    theirs.save_pretrained(folder / "transformer" if layout == "pipeline" else folder)
    pipe = ditkit.load(folder, CPU)
    assert error(*outputs(pipe, theirs)) < 1e-5
    assert (pipe.classes, pipe.recipe.data.size, pipe.recipe.codec.kind) == (7, 64, "vae")
    assert pipe.transport == ditkit.transport("ddpm", predict="noise", variance="learned")
    for source, out, to in (("dit", "snapshot", "snapshot"), ("snapshot", "back", "diffusers")):
        assert main(["convert", str(tmp_path / source), "--out", str(tmp_path / out), "--to", to]) == 0
    assert not caplog.records
    back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "back", low_cpu_mem_usage=False)
    assert same(back.state_dict(), theirs.state_dict())
    assert error(*outputs(ditkit.load(tmp_path / "snapshot", CPU), back.eval())) < 2e-6


def test_the_released_clock_is_another(tmp_path, diffusers, theirs, caplog):
    """At index 0 the frequencies do not matter; elsewhere they do, and writing says so."""
    theirs.save_pretrained(tmp_path / "dit")
    pipe = ditkit.load(tmp_path / "dit", CPU, kind="DiT")
    ours, expected = outputs(pipe, theirs)
    assert error(ours[:1], expected[:1]) < 1e-5
    assert error(ours[1:], expected[1:]) > 1e-3
    main(
        ["convert", str(tmp_path / "dit"), "--kind", "DiT", "--out", str(tmp_path / "x"), "--to", "diffusers"]
    )
    assert "10000^(-i/127)" in caplog.text
    caplog.clear()
    main(["convert", str(tmp_path / "dit"), "--out", str(tmp_path / "y"), "--to", "official"])
    assert "diffusers' clock" in caplog.text


def test_an_official_file_as_a_folder_of_diffusers(tmp_path, diffusers):
    """The network is the same but for the clock, whose index 0 is one."""
    torch.save(random_state(side=8, patch=2, width=36), tmp_path / "DiT.pt")
    pipe = ditkit.load(tmp_path / "DiT.pt", CPU, heads=3)
    assert (
        main(
            [
                "convert",
                str(tmp_path / "DiT.pt"),
                "--heads",
                "3",
                "--out",
                str(tmp_path / "x"),
                "--to",
                "diffusers",
            ]
        )
        == 0
    )
    model = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "x", low_cpu_mem_usage=False).eval()
    ours, theirs = outputs(pipe, model)
    assert error(ours[:1], theirs[:1]) < 1e-5


def test_the_older_class_name_the_autoencoder_and_torch_files(tmp_path, theirs):
    folder = tmp_path / "DiT-x"
    theirs.save_pretrained(folder / "transformer")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "Transformer2DModel"}))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text('{"scaling_factor": 0.5}')
    pipe = ditkit.load(folder, CPU)
    assert error(*outputs(pipe, theirs)) < 1e-5
    assert (pipe.recipe.codec.id, pipe.recipe.codec.scale) == (str(folder / "vae"), 0.5)
    assert pipe.recipe.name == "DiT-x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn": "gelu"}, "activation_fn"),
        ({"norm_eps": 1e-3}, "norm_eps"),
        ({"num_embeds_ada_norm": 9}, r"embedding_table.weight \(8, 36\) instead of \(10, 36\)"),
        ({"num_layers": 2}, "not expected: transformer_blocks.2.*and 13 more"),
        ({"num_layers": 4}, "missing: transformer_blocks.3.norm1.linear.weight.* and 13 more"),
        ({"out_channels": 5}, "5 output channels for 4"),
        ({"_class_name": "UNet2DModel"}, "nor a network of diffusers'"),
    ],
)
def test_folders_that_are_refused(tmp_path, theirs, changes, message):
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    one_line(message, tmp_path)


def test_embeddings_of_blocks_and_schedulers_that_are_refused(tmp_path, theirs):
    theirs.save_pretrained(tmp_path / "transformer")
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text('{"prediction_type": "v_prediction"}')
    one_line("prediction_type", tmp_path)
    file.write_text('{"prediction_type": "epsilon", "beta_end": 0.02}')
    one_line("`heads` 3", tmp_path, heads=3)
    one_line("SiT", tmp_path, kind="SiT")
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["transformer_blocks.2.norm1.emb.timestep_embedder.linear_2.bias"][5] += 1e-6
    save_file(state, weights, {"format": "pt"})
    one_line(r"transformer_blocks.2.norm1.emb.timestep_embedder.linear_2.bias differs", tmp_path)
    weights.unlink()
    one_line("neither diffusion_pytorch_model.safetensors nor", tmp_path)


# --- what is refused ---------------------------------------------------------------------------------


def one_line(message, path, **choices):
    with pytest.raises(InputError, match=message) as caught:
        ditkit.load(path, CPU, **choices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_that_do_not_fit_are_listed(tmp_path):
    state = random_state()
    del state["blocks.1.attn.proj.bias"], state["blocks.2.mlp.fc2.weight"]
    state |= {"blocks.0.attn.q_norm.weight": torch.ones(12), "t_embedder.mlp.0.bias": torch.ones(5)}
    torch.save(state, tmp_path / "DiT.pt")
    text = one_line("these weights do not fit", tmp_path / "DiT.pt")
    assert "missing: blocks.1.attn.proj.bias, blocks.2.mlp.fc2.weight;" in text
    assert "not expected: blocks.0.attn.q_norm.weight;" in text
    assert "of another shape: t_embedder.mlp.0.bias (5,) instead of (36,)" in text


@pytest.mark.parametrize(
    ("name", "content", "choices", "message"),
    [
        ("x.pt", random_state(), {"heads": 3}, "DiT or SiT.*`kind`"),
        ("DiT-to-SiT.pt", random_state(), {"heads": 3}, "DiT or SiT.*`kind`"),
        ("DiT.pt", random_state(), {}, "width 36.*`heads`"),
        ("DiT.pt", random_state(), {"heads": 5}, "36 is not divisible by 5 heads"),
        ("DiT.pt", random_state(), {"heads": 3, "kind": "UViT"}, "UViT.*DiT, SiT"),
        ("x.pt", {"conv1.weight": torch.ones(3)}, {}, "x_embedder.*missing; it holds conv1.weight"),
        ("DiT.pt", {}, {}, "it holds nothing"),
        ("DiT.pt", [torch.ones(3)], {}, "holds a list, not named tensors"),
        ("DiT.pt", torch.nn.Linear(2, 2), {}, "placeholder of torch.nn.modules.linear.Linear"),
        ("DiT.pt", random_state() | {"blocks.0.x": 3}, {"heads": 3}, "blocks.0.x is a int, not a tensor"),
        ("DiT.pt", random_state(outputs=5), {"heads": 3}, "5 output channels for 4"),
        ("DiT.pt", random_state(classes=0), {"heads": 3}, "label table of 1 rows"),
        ("DiT.pt", random_state() | {"pos_embed": torch.zeros(1, 16, 36)}, {"heads": 3}, "sin-cos table"),
        ("DiT.pt", random_state() | {"pos_embed": torch.zeros(1, 15, 36)}, {"heads": 3}, r"pos_embed \(1, 15"),
        ("DiT.pt", random_state() | {"x_embedder.proj.weight": torch.ones(3)}, {}, r"x_embedder.proj.weight is"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path, name, content, choices, message):
    torch.save(content, tmp_path / name)
    one_line(message, tmp_path / name, **choices)


def test_flags_for_foreign_files_only(tmp_path):
    one_line("recipe.json says both", "digits", kind="SiT")
    one_line("no run or snapshot there", tmp_path / "nothing.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["args", "ema", "top"])
def test_code_in_a_file_does_not_run(tmp_path, caplog, place, legacy):
    """Beside the weights it is named and left; among them, or instead of them, the file is refused."""
    mark, file = tmp_path / "ran", tmp_path / "DiT.pt"
    evil, state = Evil(mark), random_state()
    content = {
        "args": {"ema": state, "args": evil},
        "ema": {"ema": state | {"pos_embed": evil}},
        "top": evil,
    }[place]
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    if place == "args":
        with caplog.at_level(logging.WARNING):
            assert ditkit.load(file, CPU, heads=3).classes == 7
    else:
        one_line(f"placeholder of {os.system.__module__}.system", file, heads=3)
    assert f"{os.system.__module__}.system" in caplog.text
    assert not mark.exists()
    pickle.loads(pickle.dumps(evil))  # an ordinary unpickler does run it
    assert mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_truncated_files(tmp_path, suffix, share):
    """.bin here is torch's older format. Nothing is written for such a file."""
    state, file = random_state(), tmp_path / f"DiT{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=suffix == ".pt")
    assert ditkit.load(file, CPU, heads=3).classes == 7
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    one_line("cut short, damaged", file, heads=3)
    out = tmp_path / "out"
    assert main(["convert", str(file), "--out", str(out)]) == 2
    assert not out.exists()


@pytest.mark.parametrize("number", [b"r\x00\x00\x00\x80", b"p2000000000\n"])
def test_a_pickle_that_numbers_more_than_it_has_takes_no_memory(tmp_path, number):
    """An unpickler makes a table of so many places."""
    (tmp_path / "DiT.pt").write_bytes(b"\x80\x02N" + number + b".")
    one_line("numbers more values than it has", tmp_path / "DiT.pt")


def test_a_bare_pickle_and_text_are_refused(tmp_path):
    for content in (pickle.dumps(Evil(tmp_path / "ran")), b"hello", b""):
        (tmp_path / "DiT.pt").write_bytes(content)
        one_line("cut short, damaged", tmp_path / "DiT.pt")
    assert not (tmp_path / "ran").exists()


# --- the reader ---------------------------------------------------------------------------------------

KINDS = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)


@pytest.mark.parametrize("legacy", [False, True])
def test_reading_equals_torch(tmp_path, legacy):
    """Every type, shared storages, strides, offsets, empty and zero-dimensional tensors, parameters."""
    base = torch.arange(24.0)
    content = {str(dtype): torch.arange(5).to(dtype) for dtype in KINDS} | {
        "a": base.view(4, 6).T,
        "b": base[5:9],
        "c": torch.empty(0, 3),
        "d": torch.tensor(2.5),
        "e": {"f": [torch.nn.Parameter(torch.ones(2)), 3, "text", None, (1.5, True)]},
    }
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    found = read_tensors(tmp_path / "x.pt")
    assert list(found) == list(content)
    for name, value in content.items():
        if name != "e":
            assert found[name].dtype == value.dtype
            assert found[name].equal(value)
            assert found[name].stride() == value.stride()
    parameter, *rest = found["e"]["f"]
    assert parameter.equal(torch.ones(2))
    assert rest == content["e"]["f"][1:]


def test_placeholders_keep_plain_state_and_their_origin(tmp_path):
    torch.save({"args": Namespace(lr=1e-4, inner=Namespace(x=1)), "dtype": torch.float32}, tmp_path / "x.pt")
    found = read_tensors(tmp_path / "x.pt")
    assert isinstance(found["args"], Placeholder)
    assert found["args"].origin == "argparse.Namespace"
    assert found["args"].state["lr"] == 1e-4
    assert found["args"].state["inner"].state == {"x": 1}


def rewritten(source, target, change):
    """A torch file with its pickle changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)
    return target


@pytest.mark.parametrize(
    "changes",
    [
        {b"K\x07\x85": b"K\x09\x85"},  # a larger tensor than its storage
        {b"K\x07\x85": b"K\x09\x85", b"K\x01\x85": b"K\x00\x85"},  # the same by repetition
        {b"K\x01\x85": b"K\x02\x85"},  # a stride beyond it
        {b"QK\x00": b"QK\x01"},  # an offset beyond it
        {b"K\x07t": b"K\x09t"},  # a storage longer than its file
        {b"FloatStorage": b"FlotaStorage"},
        {b"X\x07\x00\x00\x00storage": b"X\x07\x00\x00\x00martian"},
    ],
)
def test_tensors_stay_inside_their_bytes(tmp_path, changes):
    torch.save({"x": torch.ones(7)}, tmp_path / "a.pt")
    rewritten(tmp_path / "a.pt", tmp_path / "same.pt", lambda data: data)
    assert read_tensors(tmp_path / "same.pt")["x"].equal(torch.ones(7))

    def change(data):
        for old, new in changes.items():
            assert data.count(old) == 1
            data = data.replace(old, new)
        return data

    with pytest.raises(InputError, match="damaged"):
        read_tensors(rewritten(tmp_path / "a.pt", tmp_path / "b.pt", change))


@pytest.mark.parametrize("name", ["data.pkl", "byteorder", "version", "data/0"])
def test_compressed_members_are_refused_before_they_are_unpacked(tmp_path, name):
    """torch compresses nothing: a pickle of a few bytes could be of hours."""
    torch.save({"x": torch.ones(7)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for entry in old.infolist():
            data, how = old.read(entry), zipfile.ZIP_STORED
            if entry.filename.endswith(f"/{name}"):
                data, how = data + bytes(1 << 24), zipfile.ZIP_DEFLATED
            new.writestr(entry.filename, data, how)
    with pytest.raises(InputError, match=rf"/{name} is compressed"):
        read_tensors(tmp_path / "b.pt")


def test_a_state_is_named_tensors_and_nothing_else(tmp_path):
    file = tmp_path / "a.pt"
    for content in (
        [torch.ones(2)],
        {1: torch.ones(2)},
        {"x": torch.ones(2), "y": Namespace(x=1)},
        torch.ones(2),
    ):
        torch.save(content, file)
        with pytest.raises(InputError, match="holds other things than named tensors"):
            read_state(file)


@pytest.mark.parametrize("length", [1, 6, 8, -1, 2**40])
def test_a_storage_of_the_older_format_is_as_long_as_it_says(tmp_path, length):
    file = tmp_path / "a.pt"
    torch.save({"x": torch.ones(7)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    assert whole[-36:-28] == (7).to_bytes(8, "little")
    file.write_bytes(whole[:-36] + length.to_bytes(8, "little", signed=True) + whole[-28:])
    with pytest.raises(InputError, match="damaged"):
        read_tensors(file)
