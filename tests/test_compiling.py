"""Compiling: on, off, and auto, which compiles where that works and pays, stays with it, and stops no run."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import accumulate

import pytest
import torch
from conftest import CPU, SMALL

from ditkit.backbones import DiTConfig, backbone, build, compile_blocks, compiles
from ditkit.backbones.compiling import ENOUGH
from ditkit.checkpoint import checkpoints
from ditkit.cli import main
from ditkit.data import Batch, Folder
from ditkit.device import _compiling_fails, no_compiler
from ditkit.errors import InputError
from ditkit.pipeline import load
from ditkit.recipe import Recipe, TrainConfig
from ditkit.recipes import RECIPES, recipe
from ditkit.snapshots import SNAPSHOTS
from ditkit.studies import STUDIES
from ditkit.studies.cells import alike
from ditkit.text import TextConfig
from ditkit.training import train
from ditkit.training.draws import with_draws
from ditkit.training.footprint import planned_reader
from ditkit.training.step import backward

TINY = backbone("DiT-S/2", width=24, depth=2, heads=2)


@pytest.fixture
def compiler(monkeypatch):
    """A machine whose compiler works; nothing is compiled to find that out."""
    monkeypatch.setattr("ditkit.backbones.compiling.no_compiler", lambda device: None)
    monkeypatch.setattr("ditkit.backbones.compiling.check_compiler", lambda device, instead: None)


@pytest.fixture
def compiled(monkeypatch, compiler):
    """The networks whose blocks a training would have compiled."""
    found = []
    monkeypatch.setattr("ditkit.training.loop.compile_blocks", found.append)
    return found


def quiet(chosen, out):
    return train(chosen, out, device=CPU, progress=False)


def state_of(out):
    return json.loads((checkpoints(out / "checkpoints")[-1] / "state.json").read_text())


# --- what is chosen --------------------------------------------------------------------------------


def test_files_with_true_and_false_are_read():
    assert [TrainConfig(compile=value).compile for value in (True, False, "auto")] == ["on", "off", "auto"]
    old = recipe("fashion-sit").model_dump(mode="json")
    old["train"]["compile"] = True
    assert Recipe.checked(old, "old").train.compile == "on"
    with pytest.raises(InputError, match="compile"):
        Recipe.checked(recipe("digits").model_dump() | {"train": {"compile": 1}}, "new")


@pytest.mark.parametrize("name", sorted(folder.name for folder in SNAPSHOTS.glob("*")))
def test_bundled_snapshots_say_it_as_before(name):
    stored = json.loads((SNAPSHOTS / name / "recipe.json").read_text())["train"]["compile"]
    read = Recipe.read(SNAPSHOTS / name / "recipe.json").train.compile
    assert read == {True: "on", False: "off"}.get(stored, stored)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_leave_it_open(name):
    assert recipe(name).train.compile == "auto"


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("digits", False), ("fashion-sit", True), ("anysize-fashion", True), ("moving-digits", True),
     ("emoji-t2i", True), ("emoji-matryoshka", True)],
)  # fmt: skip
def test_whether_a_recipe_is_compiled(name, chosen, compiler, caplog):
    """Trained as the recipe says."""
    trained = recipe(name)
    net, tokens = trained.build_backbone(), 3 * trained.tokens(trained.data.shape)
    with caplog.at_level("INFO"):
        assert compiles("auto", net, CPU, trained.train.images, tokens, "`train.compile`") is chosen
    (line,) = caplog.messages
    answer, left, pays = re.fullmatch(
        r"`train.compile` auto: (on|off), ([\d,]+) images are left, it pays from ([\d,]+) images", line
    ).groups()
    assert (answer == "on") is chosen
    assert (float(left.replace(",", "")) >= float(pays.replace(",", ""))) is chosen


def test_more_kinds_of_blocks_take_longer_to_pay(compiler):
    """A network that is one kind of block pays sooner than a U of as many parameters of many kinds."""
    one, many = TINY, backbone("UNet", width=8)
    pays = {}
    for name, net in (("one", one), ("many", many)):
        parameters = sum(p.numel() for block in net.repeated for p in block.parameters())
        pays[name] = [
            compiles("auto", net, CPU, share * ENOUGH["cpu"], 1 / parameters, "--compile")
            for share in (0.99, 1.01, 2)
        ]
    assert pays == {"one": [False, True, True], "many": [False, False, False]}


def test_on_and_off_do_not_count(compiler):
    assert compiles("on", TINY, CPU, 0, 1, "--compile")
    assert not compiles("off", TINY, CPU, math.inf, 1, "--compile")


def test_auto_goes_on_as_the_run_began(compiler):
    assert compiles("auto", TINY, CPU, 0, 1, "`train.compile`", before=True)
    assert not compiles("auto", TINY, CPU, math.inf, 1, "`train.compile`", before=False)


def test_sampling_counts_images_evaluations_and_guidance(run):
    pipe = load(run, CPU)
    tokens = 16
    assert pipe.tokens(sampler="euler", steps=3, guidance=1) == 3 * tokens
    assert pipe.tokens(sampler="heun", steps=3, guidance=2) == 2 * 6 * tokens
    assert pipe.tokens(sampler="dopri5", guidance=1) > 0


# --- machines without a compiler -------------------------------------------------------------------


def test_auto_without_a_compiler_goes_on(small, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(ENOUGH, "cpu", 0)
    with caplog.at_level("INFO"):
        quiet(small, tmp_path)
    assert [line for line in caplog.messages if "compile" in line] == [
        "`train.compile` auto: off, there is no C++ compiler g++"
    ]
    assert state_of(tmp_path)["compiled"] is False


def test_auto_with_a_compiler_that_fails_goes_on(small, tmp_path, monkeypatch, caplog):
    """A broken compiler, or no headers of Python: compiling a line fails."""

    def broken(function):
        raise RuntimeError("C++ compile error\nPython.h: No such file")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("torch.compile", broken)
    monkeypatch.setitem(ENOUGH, "cpu", 0)
    _compiling_fails.cache_clear()
    with caplog.at_level("INFO"):
        quiet(small, tmp_path)
    _compiling_fails.cache_clear()
    (line,) = [line for line in caplog.messages if "compile" in line]
    assert line == "`train.compile` auto: off, it fails (RuntimeError: C++ compile error)"


def test_the_compiler_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert no_compiler(CPU) == "there is no C++ compiler no-such-compiler"


@pytest.mark.parametrize(
    ("arguments", "on", "instead"),
    [
        (["train", "digits"], ["--train.compile", "on"], ["--train.compile", "off"]),
        (["train", "digits"], ["--train.compile"], ["--train.compile", "off"]),
        (["sample", "digits", "--n", "1"], ["--compile", "on"], ["--compile", "off"]),
        (["eval", "digits"], ["--compile"], ["--compile", "off"]),
        (["compare", "digits"], ["--compile", "on"], ["--compile", "off"]),
        (["likelihood", "digits"], ["--compile", "on"], ["--compile", "off"]),
        (["study", "scaling"], ["--compile", "on"], ["--compile", "off"]),
        (["bench", "--small"], ["--compile"], ["--no-compile"]),
    ],
)
def test_on_without_a_compiler_names_a_flag_of_the_verb(
    arguments, on, instead, monkeypatch, capsys, tmp_path
):
    """And the verb understands it: the next thing wrong is another."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, *on, *["--device", "cpu"] * ("bench" not in arguments)]) == 2
    message = capsys.readouterr().err
    assert "install g++, or name another in CXX" in message
    assert re.search(r"or give (.*)$", message.strip())[1].split() == instead
    assert main([*arguments, *instead, "--no-such-flag"]) == 2
    assert "no-such-flag" in capsys.readouterr().err.partition("(see ")[0]


@pytest.mark.slow
def test_a_compiler_that_does_not_compile(tmp_path):
    """The same in a process of its own, with a real program that fails as compilers do."""
    compiler = tmp_path / "broken"
    compiler.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec g++ --version\necho 'no headers' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    code = "import torch; from ditkit.device import no_compiler; print(no_compiler(torch.device('cpu')))"
    environment = {"CXX": str(compiler), "PATH": "/usr/bin:/bin", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("it fails (")
    assert len(done.stdout.splitlines()) == 1


# --- runs ------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_as_it_began(small, tmp_path, monkeypatch, compiled):
    """Whatever the length that is left, unless a flag says otherwise."""
    half, whole = small.replace(train={"images": 160}), small
    for enough, expected in ((0, True), (math.inf, False)):
        out = tmp_path / str(expected)
        monkeypatch.setitem(ENOUGH, "cpu", enough)
        quiet(half, out)
        monkeypatch.setitem(ENOUGH, "cpu", 0 if enough else math.inf)
        quiet(whole, out)
        assert [len(compiled), state_of(out)["compiled"]] == [2 * expected, expected]
        compiled.clear()
    quiet(whole.replace(train={"images": 480, "compile": "on"}), tmp_path / "False")
    assert [len(compiled), state_of(tmp_path / "False")["compiled"]] == [1, True]


@pytest.mark.parametrize("before", [True, False])
def test_a_run_of_version_0_1_goes_on_as_it_began(before, small, tmp_path, monkeypatch, compiled):
    """Its recipe records whether it was compiled, its checkpoints do not."""
    quiet(small.replace(train={"images": 160, "compile": before}), tmp_path)
    stored = json.loads((tmp_path / "recipe.json").read_text())
    stored["train"]["compile"] = before
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    (newest,) = checkpoints(tmp_path / "checkpoints")
    state = json.loads((newest / "state.json").read_text())
    del state["compiled"], state["checksum"]
    (newest / "state.json").write_text(json.dumps(state))
    monkeypatch.setitem(ENOUGH, "cpu", math.inf if before else 0)
    compiled.clear()
    quiet(small, tmp_path)
    assert [len(compiled), state_of(tmp_path)["compiled"]] == [before, before]


def test_cells_of_a_study_are_compiled_alike():
    for study in STUDIES.values():
        for name, cell in alike(study.cells(), compiled=True).items():
            others = [other.recipe for other in (cell.inner, cell.lower) if other]
            for chosen in (cell.recipe, *others):
                as_it_is = chosen.backbone.kind == "UNet" or name.startswith("paper-")  # eager by definition
                assert chosen.train.compile == ("off" if as_it_is else "on"), name


@pytest.mark.slow
def test_compiled_likelihoods_are_the_same(small, tmp_path):
    quiet(small.replace(**SMALL), tmp_path / "run")
    bits = []
    for choice in ("off", "on"):
        out = tmp_path / choice
        flags = ["--n", "4", "--steps", "3", "--splits", "test", "--compile", choice, "--out", str(out)]
        assert main(["likelihood", str(tmp_path / "run"), *flags]) == 0
        record = json.loads((out / "likelihood.json").read_text())
        bits.append(record["bits_per_dimension"]["test"]["mean"])
    assert bits[0] == pytest.approx(bits[1], rel=1e-4)


def test_auto_goes_on_where_the_compiler_fails_on_a_block(monkeypatch):
    import torch._inductor.compile_fx as inductor

    def fail(*_, **__):
        raise RuntimeError("no code for this")

    monkeypatch.setattr(inductor, "compile_fx", fail)
    monkeypatch.setattr("ditkit.backbones.compiling.no_compiler", lambda device: None)
    net = build(DiTConfig(width=24, depth=2, heads=2), 1, 10, 1).eval()
    x, t, cond = torch.randn(2, 1, 8, 8), torch.rand(2), {"label": torch.tensor([1, 2])}
    expected = net(x, t, cond)
    with torch._dynamo.config.patch(suppress_errors=False):  # and back to what it is afterwards
        assert compiles("auto", net, CPU, 1e30, 1, "--compile")
        compile_blocks(net)
        torch.testing.assert_close(net(x, t, cond), expected)
    torch._dynamo.reset()


# --- how often -------------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch):
    """Networks' blocks are traced as for the compiler, whose work is left out; a line for every graph that it would get."""
    found = []

    def count(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend=count))
    yield found
    torch._dynamo.reset()


def compiled_net(chosen):
    net = chosen.build_backbone().train()
    compile_blocks(net)
    return net


def of_size(chosen, count, size, first=0):
    images = torch.zeros(count, chosen.data.channels, *size, dtype=torch.uint8)
    return Batch(images, torch.zeros(count, dtype=torch.long), torch.arange(first, first + count))


SIZES = [(4, (8, 8)), (3, (8, 12)), (2, (12, 12)), (3, (12, 8)), (5, (8, 4)), (1, (16, 16)), (3, (16, 16))]


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_buckets_are_compiled_for_any_size(graphs, positions, precision):
    """For the first size, for any other, and for a batch of one image."""
    chosen = recipe("anysize-fashion").replace(
        data={"classes": 10},
        backbone=SMALL["backbone"] | {"positions": positions},
        train={"tokens": 64, "precision": precision},
    )
    net, codec = compiled_net(chosen), chosen.build_codec()
    for _ in range(2):
        for count, size in SIZES:
            batch = with_draws(chosen, codec, of_size(chosen, count, size))
            backward(chosen, net, codec, batch, CPU)
    assert len(graphs) == 3


@torch.library.custom_op("ditkit_tests::by_run", mutates_args=())
def by_run(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: torch.Tensor, keys: torch.Tensor, longest: int
) -> torch.Tensor:
    """Stands for flash attention that reads runs; what it gives is not looked at."""
    return q.clone()


by_run.register_fake(lambda q, k, v, runs, keys, longest: torch.empty_like(q))
by_run.register_autograd(
    lambda context, gradient: (gradient, *map(torch.zeros_like, context.saved_tensors), None, None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[1:3]),
)


@pytest.mark.parametrize("text", ["none", "cross_attention", "in_context"])
@pytest.mark.parametrize("runs", [False, True])
def test_packed_rows_are_compiled_for_any_mixture(graphs, monkeypatch, runs, text):
    """However many images there are, of whatever length, also where attention reads runs: two graphs for each kind of part."""
    if runs:
        attend = lambda q, k, v, begins, keys, longest, _, scale=None: by_run(q, k, v, begins, keys, longest)  # noqa: E731
        monkeypatch.setattr("ditkit.kernels.attention.varlen_attn", attend)
        monkeypatch.setattr("ditkit.kernels.attention.HALVES", (torch.float32,))
        monkeypatch.setattr("ditkit.kernels.attention.reads_runs", lambda device: True)
    chosen = recipe("anysize-fashion").replace(
        data={"classes": 10},
        backbone={"width": 16, "depth": 2, "heads": 2, "positions": "rotary"},
        train={"tokens": 64, "packed": True, "precision": "fp32"},
    )
    if text != "none":
        chosen = chosen.replace(
            data=Folder(size=28, channels=1, classes=10, aspect="native", caption_column="txt"),
            text=TextConfig(length=4, dim=8),
            backbone={"text": text},
        )
    net, codec = compiled_net(chosen), chosen.build_codec()
    for mixture in (
        [(4, (8, 8)), (3, (8, 12))],
        [(2, (12, 12)), (3, (8, 12))],
        [(5, (8, 8)), (2, (16, 12)), (1, (12, 8))],
        [(7, (8, 4)), (2, (8, 12))],
    ):
        total = sum(count for count, _ in mixture)
        firsts = accumulate((count for count, _ in mixture), initial=0)
        groups = [
            replace(of_size(chosen, count, size, first), label=None)
            for (count, size), first in zip(mixture, firsts, strict=False)
        ]
        index, label = torch.arange(total), torch.zeros(total, dtype=torch.long)
        batch = Batch(None, label, index, ("",) * total, groups=tuple(groups))
        backward(chosen, net, codec, with_draws(chosen, codec, batch), CPU, planned_reader(chosen))
    assert len(graphs) == 2 + 2 * (text == "cross_attention")
