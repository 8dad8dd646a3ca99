"""U-DiT in use: its form for training and the one it samples in, transports, samplers, a run, released files."""

from argparse import Namespace

import pytest
import torch
from conftest import CPU
from torch._dynamo.testing import CompileCounter
from udit import SMALL, error, inputs, randomised, small_pipe, small_recipe

import ditkit
from ditkit.backbones import compile_blocks
from ditkit.cli import main
from ditkit.errors import InputError
from ditkit.interop.udit import udit_to_official, udit_to_ours
from ditkit.nn.depthwise_mlp import ReparameterisedMlp
from ditkit.pipeline import Pipeline
from ditkit.sampling import SAMPLERS
from ditkit.transports import PATHS, PREDICTIONS

# Its two forms


@torch.no_grad()
def test_fusing_is_a_copy_in_every_mode():
    """Nothing random is drawn, no mode changes weights, what is fused lives by itself."""
    net = randomised()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    arguments, drawn = inputs(), torch.get_rng_state()
    out = net(*arguments)
    fused = net.eval().fused()
    assert torch.get_rng_state().equal(drawn)
    assert not fused.training
    assert net.train().fused().training
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert net(*arguments).equal(out)
    for parameter in net.parameters():
        parameter.zero_()
    assert error(fused(*arguments), out) < 1e-5
    assert all(p.requires_grad for p in fused.parameters())
    assert not any(p.requires_grad for p in randomised().requires_grad_(False).fused().parameters())


def test_fusing_is_exact_under_autocast():
    net = randomised()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net.fused().state_dict()
    assert all(value.equal(rounded[name]) for name, value in net.fused().state_dict().items())


@pytest.mark.parametrize("ffn", ["depthwise", "basic"])
def test_nothing_to_fuse(ffn):
    net = randomised(ffn=ffn)
    assert net.fused() is net
    assert randomised("DiT", depth=1, width=8).fused().__class__.__name__ == "DiT"


def test_mixing_up_the_forms_is_one_line():
    net, plain = randomised(), randomised(ffn="depthwise")
    fused = net.fused()
    plain.load_state_dict(fused.state_dict())  # the fused form is that of ffn depthwise
    for target, source, message in (
        (net, fused, r"these weights are fused .*; load what it was fused from"),
        (fused, net, r"form for training and this network is fused .*call its fused\(\)"),
        (plain, net, "ffn reparameterised"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            target.load_state_dict(source.state_dict())
        assert "\n" not in str(caught.value)


def test_a_snapshot_holds_the_form_for_training(tmp_path):
    pipe = small_pipe()
    images = pipe.generate({"label": [1, 2]}, seeds=[0, 1])
    again = ditkit.load(pipe.save(tmp_path / "snapshot"), CPU)
    trained = again.backbone.state_dict()
    assert "blocks.0.mlp.depthwise.three.weight" in trained
    assert all(value.equal(trained[name]) for name, value in pipe.backbone.state_dict().items())
    assert again.generate({"label": [1, 2]}, seeds=[0, 1]).equal(images)
    fused = Pipeline(pipe.recipe, pipe.network, pipe.codec, CPU)
    fused.save(tmp_path / "fused")
    with pytest.raises(InputError, match="these weights are fused"):
        ditkit.load(tmp_path / "fused", CPU)


def test_a_pipeline_samples_fused_and_follows_its_weights(monkeypatch):
    """Fused once while the weights stay, and again when training has moved the average."""
    pipe, made = small_pipe(), []
    fuse = type(pipe.backbone).fused
    monkeypatch.setattr(type(pipe.backbone), "fused", lambda net: made.append(1) or fuse(net))
    monkeypatch.setattr(
        type(pipe.backbone.blocks[0].mlp), "forward", None
    )  # the form for training is not run
    first = pipe.generate({"label": [1]}, seeds=[0])
    assert pipe.generate({"label": [1]}, seeds=[0]).equal(first)
    assert made == [1]
    with torch.no_grad():
        torch._foreach_lerp_(
            list(pipe.backbone.parameters()), [p + 1 for p in pipe.backbone.parameters()], 0.1
        )
    assert not pipe.generate({"label": [1]}, seeds=[0]).equal(first)
    assert made == [1, 1]


def test_what_is_sampled_with_is_compiled(monkeypatch):
    pipe, compiled = small_pipe(), []
    monkeypatch.setattr("ditkit.backbones.compiling.check_compiler", lambda device, instead: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compiled.append(module))
    pipe.compile()
    assert compiled == list(pipe.network.blocks)
    assert not set(compiled) & set(pipe.backbone.blocks)


def test_a_kind_of_block_is_compiled_once_for_its_size(monkeypatch):
    """Not once per block; and blocks of four kinds do not exhaust the compiler's patience."""
    torch._dynamo.reset()
    net, counter = randomised(depth=(1, 1, 1, 1, 1)), CompileCounter()
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **how: compile_module(module, backend=counter, **how)
    )
    expected = [net(*inputs(n)).detach() for n in (2, 3, 4)]
    compile_blocks(net)
    for n, out in zip((2, 3, 4), expected, strict=True):
        assert error(net(*inputs(n)).detach(), out) < 1e-5
        assert counter.frame_count == 4 * (n - 1)
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_blocks_compute_the_same():
    """In earnest: values and gradients of every kind of block."""

    def run():
        net.zero_grad()
        out = net(*inputs())
        out.square().mean().backward()
        return out.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])

    net = randomised(depth=(1, 1, 1, 1, 1))
    eager = run()
    compile_blocks(net)
    for found, expected in zip(run(), eager, strict=True):
        assert error(found, expected) < 1e-4


# In the library

CHOICES = [(path, predict) for path in PATHS for predict in PREDICTIONS]


@pytest.mark.parametrize(("path", "predict"), CHOICES)
def test_every_transport_trains_it(path, predict):
    transport = ditkit.transport(path, predict=predict)
    net = randomised()
    x0, t, cond = inputs(3)
    terms = transport.losses(
        net, x0, cond, t=transport.times(t.double().clamp(0.1, 0.9)), eps=torch.randn_like(x0)
    )
    terms["loss"].sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert net.blocks[0].mlp.depthwise.five.weight.grad.abs().max() > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_samples_it(sampler):
    """Guided, with image k depending on seed k only."""
    pipe = small_pipe()
    choices = {"tolerance": 0.5} if SAMPLERS[sampler].adaptive else {"steps": 3}
    how = {"sampler": sampler, "guidance": 1.5, **choices}
    together = pipe.generate({"label": [1, 2]}, seeds=[4, 5], **how)
    alone = pipe.generate({"label": [2]}, seeds=[5], **how)
    assert together.shape == (2, 1, 8, 8)
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert together.float().std() > 1


def test_a_run_resumes_from_the_form_for_training(tmp_path):
    """The command line trains it, says its form in the checkpoint, resumes and samples."""
    flags = [
        "digits", "--backbone", "U-DiT", "--backbone.width", "8", "--backbone.depth", *"11111",
        "--train.batch", "16", "--train.preview-images", "10000", "--train.validate-images", "0",
        "--sample.steps", "1", "--train.checkpoint-images", "32", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(["train", *flags, "--train.images", "32"]) == 0
    assert main(["train", *flags, "--train.images", "64"]) == 0
    pipe = ditkit.load(tmp_path / "run", CPU)
    assert pipe.record["images"] == 64
    assert isinstance(pipe.backbone.blocks[0].mlp, ReparameterisedMlp)
    assert pipe.generate({"label": [3]}, seeds=[0]).shape == (1, 1, 8, 8)


# Files of the released code's


def official(**fields):
    """A small network's weights under the released names."""
    net = randomised(**({"learned_variance": True, "channels": 4} | fields))
    return net, udit_to_official(net.state_dict(), SMALL["depth"])


def one_line(message, path, **choices):
    with pytest.raises(InputError, match=message) as caught:
        ditkit.load(path, CPU, **choices)
    assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("form", ["bare", "module.", "training"])
def test_any_size_is_read(tmp_path, form):
    """Everything is in the weights, whatever the file is called; the average is what counts."""
    net, state = official()
    content = {
        "bare": state,
        "module.": {f"module.{name}": value for name, value in state.items()},
        "training": {
            "model": {name: value + 1 for name, value in state.items()},
            "ema": state,
            "opt": {},
            "args": Namespace(image_size=512, model="U-DiT-custom"),
        },
    }[form]
    torch.save(content, tmp_path / "0400000.pt")
    pipe = ditkit.load(tmp_path / "0400000.pt", CPU)
    assert pipe.backbone(*inputs(channels=4)).equal(net(*inputs(channels=4)))
    size = 512 if form == "training" else 256
    assert (pipe.classes, pipe.recipe.codec.kind, pipe.recipe.data.size) == (10, "vae", size)
    config = pipe.recipe.backbone
    assert {name: getattr(config, name) for name in SMALL} == SMALL
    assert pipe.transport.variance == "learned"


def test_pixels_fixed_variance_and_a_wider_mlp_are_read_from_shapes(tmp_path):
    net, state = official(channels=3, learned_variance=False, classes=1, mlp_ratio=3.0)
    torch.save(state, tmp_path / "x.pt")
    pipe = ditkit.load(tmp_path / "x.pt", CPU)
    assert (pipe.classes, pipe.recipe.data.channels, pipe.recipe.codec.kind) == (1, 3, "identity")
    assert (pipe.recipe.backbone.mlp_ratio, pipe.transport.variance) == (3.0, "fixed")
    assert all(value.equal(net.state_dict()[name]) for name, value in pipe.backbone.state_dict().items())


def test_there_and_back(tmp_path):
    """Bit for bit, in the official order, by way of a snapshot."""
    _, state = official()
    torch.save(state, tmp_path / "U-DiT-x.pt")
    for source, out, to in (("U-DiT-x.pt", "snapshot", "snapshot"), ("snapshot", "back", "official")):
        assert main(["convert", str(tmp_path / source), "--out", str(tmp_path / out), "--to", to]) == 0
    back = torch.load(tmp_path / "back" / "U-DiT-x.pt", weights_only=True)
    assert list(back) == list(state)
    assert all(value.equal(state[name]) for name, value in back.items())
    assert {name: value.shape for name, value in udit_to_ours(back).items()} == {
        name: value.shape
        for name, value in ditkit.load(tmp_path / "snapshot", CPU).backbone.state_dict().items()
    }


@pytest.mark.parametrize(
    ("change", "choices", "message"),
    [
        (lambda s: s.pop("latent.1.mlp2.dwconv.1.bias"), {}, "missing: latent.1.mlp2.dwconv.1.bias$"),
        (lambda s: s.update({"latent.1.extra": torch.ones(1)}), {}, "not expected: latent.1.extra$"),
        (
            lambda s: s.update({"output.bias": torch.ones(3)}),
            {},
            r"of another shape: output.bias \(3,\) instead of \(16,\)",
        ),
        (lambda s: s.pop("encoder_level_1.0.attn1.logit_scale"), {}, "attn1.logit_scale missing"),
        (
            lambda s: s.update({"encoder_level_1.0.mlp1.project_in.weight": torch.ones(16, 8, 1, 1)}),
            {},
            "weights are fused",
        ),
        (
            lambda s: s.update({"final_layer.out_proj.weight": torch.ones(5, 16, 3, 3)}),
            {},
            "5 output channels for 4",
        ),
        (
            lambda s: s.update({"y_embedder_1.embedding_table.weight": torch.ones(1, 8)}),
            {},
            "table of 1 rows",
        ),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(8)}), {}, "x_embedder.proj.weight is"),
        (lambda s: None, {"kind": "DiT"}, "a U-DiT, whose weights say all; leave out `kind`"),
        (lambda s: None, {"heads": 2}, "leave out `kind` and `heads`"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("decoder_level_1")],
            {},
            "missing: decoder_level_1.0.attn1.logit_scale",
        ),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, choices, message):
    _, state = official()
    change(state)
    torch.save(state, tmp_path / "x.pt")
    one_line(message, tmp_path / "x.pt", **choices)


@pytest.mark.parametrize(
    ("fields", "sections", "message"),
    [
        ({"cosine": False}, {}, "backbone.cosine is False; the released U-DiT's is True"),
        ({"ffn": "basic"}, {}, "backbone.ffn is basic; .* reparameterised"),
        ({"time_scale": 1.0}, {}, "backbone.time_scale is 1.0"),
        ({}, {"transport": {"path": "linear", "predict": "velocity", "variance": "fixed"}}, "ddpm and noise"),
        ({}, {"data": {"kind": "folder", "size": 8, "channels": 1, "classes": 0}}, "have classes"),
    ],
)
def test_what_has_no_official_form(tmp_path, capsys, fields, sections, message):
    transport = {"path": "ddpm", "predict": "noise", "variance": "learned"}
    chosen = small_recipe(**fields).replace(**{"transport": transport} | sections)
    pipe = Pipeline(chosen, chosen.build_backbone(), chosen.build_codec(), CPU)
    pipe.save(tmp_path / "snapshot")
    assert (
        main(["convert", str(tmp_path / "snapshot"), "--out", str(tmp_path / "x"), "--to", "official"]) == 2
    )
    err = capsys.readouterr().err
    assert message.split(".*")[0] in err
    assert not (tmp_path / "x").exists()
