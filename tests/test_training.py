"""The loop: it learns, it resumes bit for bit, and it survives what goes wrong."""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU
from safetensors.torch import load_file
from tqdm import tqdm

import ditkit.checkpoint
from ditkit.backbones import BACKBONES
from ditkit.checkpoint import checkpoints, load_newest
from ditkit.errors import InputError, NotFinite
from ditkit.processes import ALONE
from ditkit.recipe import Recipe, TrainConfig
from ditkit.recipes import RECIPES, recipe
from ditkit.training import monitor, train
from ditkit.training.diverging import Diverged
from ditkit.training.draws import draws_of, with_draws
from ditkit.training.ema import Ema
from ditkit.training.hooks import Lines
from ditkit.training.log import Log, read_log
from ditkit.training.schedule import learning_rate
from ditkit.training.skipped import Skipped
from ditkit.training.step import accumulate, backward

TAKEN = torch.tensor(True)
REPORTS = Path(__file__).parent.parent / "docs" / "reports"


def quiet(recipe, out, **options):
    return train(recipe, out, device=CPU, progress=False, **options)


def tensors(checkpoint):
    return {
        f"{name}/{key}": value
        for name in ("model", "ema", "optimizer")
        for key, value in load_file(checkpoint / f"{name}.safetensors").items()
    }


def assert_equal(a, b):
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stop_and_resume_is_bit_for_bit_the_same(small, tmp_path, precision):
    small = small.replace(train={"precision": precision, "schedule": "constant"})
    whole = quiet(small, tmp_path / "whole")
    quiet(small.replace(train={"images": 160}), tmp_path / "parts")
    resumed = quiet(small, tmp_path / "parts")
    assert_equal(whole, resumed)
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    losses = [{row["images"]: row["loss"] for row in rows} for rows in logs]
    assert all(losses[0][images] == losses[1][images] for images in (64, 128, 256, 320))


def test_a_killed_run_resumes_from_its_last_checkpoint(small, tmp_path, monkeypatch):
    """Killed between checkpoints: what was logged after the last one is done and written again."""
    whole = quiet(small, tmp_path / "whole")
    steps = 0

    def killed(*arguments, **named):
        nonlocal steps
        steps += 1
        if steps == 8:  # 224 images seen, the checkpoint is at 160
            raise KeyboardInterrupt
        return accumulate(*arguments, **named)

    monkeypatch.setattr("ditkit.training.parallel.accumulate", killed)
    with pytest.raises(KeyboardInterrupt):
        quiet(small, tmp_path / "killed")
    monkeypatch.undo()
    assert_equal(whole, quiet(small, tmp_path / "killed"))
    images = [row["images"] for row in read_log(tmp_path / "killed" / "log.jsonl")]
    assert images == [64, 128, 192, 256, 320]


def test_a_finished_run_has_nothing_to_do(run):
    stored = Recipe.read(run / "recipe.json")
    before = checkpoints(run / "checkpoints")[-1]
    assert quiet(stored, run) == before


def test_gradient_accumulation_is_the_same_batch(small, tmp_path):
    base = small.replace(train={"precision": "fp32", "images": 96})
    whole = tensors(quiet(base, tmp_path / "whole"))
    parts = tensors(quiet(base.replace(train={"micro_batch": 12}), tmp_path / "parts"))
    for name, value in whole.items():
        if name.startswith("model"):
            torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "transport",
    [
        {"path": "linear", "predict": "velocity"},
        {"path": "ddpm", "predict": "noise", "variance": "learned"},
    ],
)
def test_overfits_one_batch(transport):
    """32 images, the same draws every step: the loss falls to a fraction."""
    base = recipe("digits").replace(transport=transport, train={"precision": "fp32", "lr": 2e-3})
    net, codec = base.build_backbone(), base.build_codec()
    from ditkit.data import Batch

    images, labels = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8), torch.arange(32) % 10
    batch = with_draws(base, codec, Batch(images, labels, torch.arange(32)))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(150):
        losses.append(float(backward(base, net, codec, batch, CPU)["mse"]))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize(
    "transport",
    [
        {"path": "linear", "predict": "velocity"},
        {"path": "ddpm", "predict": "noise", "variance": "learned"},
        {"path": "gvp", "predict": "score"},
    ],
)
def test_loss_and_gradient_read_nothing_from_the_device(transport):
    """On a device that has no numbers to read."""
    from ditkit.data import Batch

    base = recipe("digits").replace(transport=transport, train={"micro_batch": 3, "precision": "fp32"})
    meta = torch.device("meta")
    with meta:
        net = base.build_backbone()
    codec = base.build_codec()
    batch = Batch(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8), torch.arange(8))
    terms = backward(base, net, codec, with_draws(base, codec, batch), meta)
    assert {"loss", "mse"} <= terms.keys()
    assert all(value.is_meta for value in terms.values())
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_draws_depend_on_seed_and_number_only():
    base = recipe("digits").replace(train={"seed": 3})
    codec = base.build_codec()
    codec.random = True
    draws = draws_of(base, codec, [(4, 4)])
    a, b = draws([5, 9, 2], (4, 4)), draws([9], (4, 4))
    assert all(torch.equal(values[1], b[name][0]) for name, values in a.items())
    other = draws_of(base.replace(train={"seed": 4}), codec, [(4, 4)])([9], (4, 4))
    assert not any(torch.equal(values, other[name]) for name, values in b.items())
    assert not torch.equal(a["noise"], a["posterior"])
    assert {name: values.shape[1:] for name, values in a.items() if values.dtype == torch.float64} == {
        "time": (),
        "drop": (),
    }
    nothing = draws([], (4, 4))
    assert {name: values.shape for name, values in nothing.items()} == {
        name: (0, *values.shape[1:]) for name, values in a.items()
    }


def test_labels_are_dropped_once_per_image_at_the_stated_rate(small):
    """Of 2,000 images about a tenth reach the network with the null label, and the same ones again."""
    from ditkit.data import Batch

    base = small.replace(train={"precision": "fp32"})
    net, codec = base.build_backbone(), base.build_codec()
    seen = []
    forward = net.forward
    net.forward = lambda x, t, cond: seen.append(cond["label"]) or forward(x, t, cond)
    images = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    batch = with_draws(base, codec, Batch(images, torch.full((2000,), 3), torch.arange(2000)))
    for _ in range(2):
        backward(base, net, codec, batch, CPU)
    assert set(seen[0].tolist()) == {3, 10}
    assert 0.08 < (seen[0] == 10).float().mean() < 0.12
    assert torch.equal(seen[0], seen[1])


def test_learning_rate():
    config = TrainConfig(lr=1.0, images=1000, batch=100, warmup_images=200)
    assert learning_rate(config, 0) == pytest.approx(1 / 3)
    assert learning_rate(config, 200) == 1
    cosine = config.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 500) == pytest.approx(0.5)
    assert learning_rate(cosine, 1000) == pytest.approx(0)


def test_wsd_stays_and_falls_over_the_last_share():
    """To 0 at the last image, linearly or as 1 - sqrt; with more images it falls later, from a run's own checkpoint on."""
    rates = {
        form: [
            learning_rate(
                TrainConfig(images=1000, batch=10, lr=2.0, schedule=f"wsd:share=0.4,form={form}"), seen
            )
            for seen in (0, 599, 600, 700, 1000, 1001)
        ]
        for form in ("linear", "1-sqrt")
    }
    assert rates["linear"] == pytest.approx([2, 2, 2, 1.5, 0, 0])
    assert rates["1-sqrt"] == pytest.approx([2, 2, 2, 1, 0, 0])
    longer = TrainConfig(images=2000, batch=10, lr=2.0, schedule="wsd")
    assert learning_rate(longer, 1000) == learning_rate(longer, 1500) == 2 > learning_rate(longer, 1700)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("wsd:share=0", "share: Input should be greater than 0"),
        ("wsd:form=cosine", "form: Input should be 'linear' or '1-sqrt'"),
        ("cosin", "unknown 'cosin'; did you mean cosine?"),
    ],
)
def test_schedules_with_wrong_settings_are_refused_in_one_line(schedule, message):
    with pytest.raises(InputError) as caught:
        TrainConfig.checked({"schedule": schedule}, "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ema_halves_in_its_half_life():
    net = torch.nn.Linear(1, 1, bias=False)  # any module will do
    torch.nn.init.zeros_(net.weight)
    ema = Ema(net, half_life=100, rampup=None)
    torch.nn.init.ones_(net.weight)
    for step in range(10):
        ema.update(10, 10 * (step + 1), TAKEN)
    assert ema.net.weight.item() == pytest.approx(0.5)


def test_ema_rampup_forgets_the_start():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    ema = Ema(net, half_life=1e9, rampup=0.05)
    torch.nn.init.ones_(net.weight)
    ema.update(10, 10, TAKEN)
    assert ema.net.weight.item() == pytest.approx(1 - 0.5**20)


def test_another_recipe_is_refused(small, tmp_path):
    quiet(small.replace(train={"images": 32}), tmp_path / "run")
    with pytest.raises(InputError, match=r"train\.lr 0\.006, not 0\.5.*`out`"):
        quiet(small.replace(train={"lr": 0.5}), tmp_path / "run")
    with pytest.raises(InputError, match=r"backbone\.width 24, not 48"):
        quiet(small.replace(backbone={"width": 48}), tmp_path / "run")


def test_a_run_that_never_began_does_not_hold_its_folder(small, tmp_path, monkeypatch):
    """What stopped it may have asked for other flags: an encoder that is not there, a rate that is not finite."""

    def unreachable(*_, **named):
        raise InputError("not there; give another")

    monkeypatch.setattr("ditkit.training.parallel.accumulate", unreachable)
    with pytest.raises(InputError, match="not there"):
        quiet(small.replace(train={"images": 32}), tmp_path / "run")
    monkeypatch.undo()
    quiet(small.replace(train={"images": 32, "lr": 0.5}), tmp_path / "run")
    assert Recipe.read(tmp_path / "run" / "recipe.json").train.lr == 0.5
    with pytest.raises(InputError, match=r"train\.lr 0\.5, not 0\.006"):
        quiet(small.replace(train={"images": 32}), tmp_path / "run")


def test_a_folder_of_something_else_is_refused(small, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        quiet(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_checkpoint_cut_short_is_passed_over_with_a_warning(small, tmp_path, caplog):
    last = quiet(small, tmp_path / "run")
    file = last / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        state, _ = load_newest(tmp_path / "run" / "checkpoints", ("model", "ema"))
    assert state["images"] == 160
    assert "damaged" in caplog.text
    assert "ema.safetensors" in caplog.text
    (last.parent / "000000000160" / "state.json").write_text("{")
    with pytest.raises(InputError, match="none of the 2 checkpoints is intact"):
        load_newest(tmp_path / "run" / "checkpoints", ("model", "ema"))


def test_a_full_disk_leaves_the_last_good_checkpoint(small, tmp_path, monkeypatch):
    def full(file, tensors):
        if "320" in str(file) and "optimizer" in str(file):
            raise OSError(28, "No space left on device")
        return save(file, tensors)

    save = ditkit.checkpoint.save_tensors
    monkeypatch.setattr(ditkit.checkpoint, "save_tensors", full)
    with pytest.raises(InputError, match=r"No space left.*last good one is 000000000160.*same command"):
        quiet(small, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000000160"]
    monkeypatch.undo()
    assert quiet(small, tmp_path / "run").name == "000000000320"


def test_non_finite_steps_are_skipped_and_counted(small, tmp_path, monkeypatch):
    """One poisoned batch: the step is left out; only poisoned batches: an error with the remedies."""
    steps = 0

    def poisoned(*arguments, **named):
        nonlocal steps
        steps += 1
        terms = accumulate(*arguments, **named)
        if steps == 3:
            next(iter(arguments[0].parameters())).grad.fill_(math.nan)
        return terms

    monkeypatch.setattr("ditkit.training.parallel.accumulate", poisoned)
    last = quiet(small, tmp_path / "run")
    assert json.loads((last / "state.json").read_text())["skipped"] == 1
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["skipped"] == 1
    assert all(bool(value.isfinite().all()) for value in tensors(last).values())

    def always(*arguments, **named):
        terms = accumulate(*arguments, **named)
        next(iter(arguments[0].parameters())).grad.fill_(math.inf)
        return terms

    monkeypatch.setattr("ditkit.training.parallel.accumulate", always)
    with pytest.raises(InputError, match=r"`train\.lr`"):
        quiet(small.replace(train={"batch": 4}), tmp_path / "hopeless")


def poison(monkeypatch, chosen):
    """Gradients that are not finite in the steps chosen, 0, 1, ..."""
    steps = iter(range(10**6))

    def poisoned(*arguments, **named):
        terms = accumulate(*arguments, **named)
        if next(steps) in chosen:
            next(iter(arguments[0].parameters())).grad.fill_(math.nan)
        return terms

    monkeypatch.setattr("ditkit.training.parallel.accumulate", poisoned)


def test_a_run_most_of_whose_steps_were_skipped_ends_with_an_error(small, tmp_path, monkeypatch):
    """Too short for many in a row; and it is not taken for finished when it is started again."""
    poison(monkeypatch, range(1, 100))
    for _ in range(2):
        with pytest.raises(NotFinite, match=r"in [59] of the last (5|10) steps.*`train\.lr`"):
            quiet(small, tmp_path / "run")
        assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["000000000160"]


def test_a_run_says_how_many_steps_were_skipped(small, tmp_path, monkeypatch, caplog):
    poison(monkeypatch, (2, 5, 6))
    quiet(small.replace(train={"images": 256}), tmp_path / "run")
    assert "3 steps were skipped because the gradient was not finite" in caplog.text


def test_half_of_the_last_steps_end_a_run():
    """In a row or not, once somebody asks."""
    for step in (0, 1):  # 49 in a row, or spread: it goes on
        skipped = Skipped()
        for _ in range(49):
            skipped.add(~TAKEN)
            for _ in range(step):
                skipped.add(TAKEN)
        skipped.judge()
        assert skipped.count == 49
        skipped.add(~TAKEN)
        with pytest.raises(NotFinite, match="in 50 of the last"):
            skipped.judge()
    rare = Skipped()
    for n in range(1000):
        rare.add(TAKEN if n % 3 else ~TAKEN)
    rare.judge()
    rare.end(Path("run"))
    assert rare.count == 334


def test_init_takes_what_fits_and_names_the_rest(run, small, tmp_path, caplog):
    """Another patch and another number of channels: inner layers are taken, patches start fresh."""
    wider = small.replace(backbone={"patch": 4}, train={"images": 32, "lr": 1e-12})
    with caplog.at_level(logging.INFO):
        last = quiet(wider, tmp_path / "run", init=run)
    assert "patches.proj.weight" in caplog.text
    assert "final.linear.weight" in caplog.text
    origin = load_file(checkpoints(run / "checkpoints")[-1] / "ema.safetensors")
    started = load_file(last / "model.safetensors")
    torch.testing.assert_close(
        started["blocks.0.attention.qkv.weight"], origin["blocks.0.attention.qkv.weight"]
    )
    assert started["patches.proj.weight"].shape != origin["patches.proj.weight"].shape


def test_a_loss_that_rises_for_good_is_reported_once_also_after_resuming(small, tmp_path, caplog):
    config = small.replace(train={"log_images": 1, "images": 100}).train

    def lines(images, *losses, ends=False):
        written = Lines(
            tmp_path, config, None, ends, Log(tmp_path / "log.jsonl", images, 0.0), tqdm(disable=True)
        )
        state = SimpleNamespace(taken=TAKEN, skipped=Skipped(), processes=ALONE)
        state.optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
        for k, loss in enumerate(losses, start=1):
            state.terms = {"loss": torch.tensor(loss)}
            written(state, images + k - 1, images + k)

    lines(0, math.nan, 0.2, 0.5, math.nan)
    assert not caplog.text
    lines(4, 0.59)
    assert not caplog.text
    lines(5, 0.61, 0.9)
    (record,) = caplog.records
    assert "after 6 images the loss is 0.61; it was 0.2 after 2" in record.message
    assert "`train.lr`" in record.message
    with pytest.raises(Diverged, match=r"0\.61; it was 0\.2") as caught:
        lines(5, 0.61, ends=True)
    assert caught.value.images == 2


@pytest.mark.parametrize("log", sorted(REPORTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_no_kept_log_has_risen(log, tmp_path):
    rows = [row for row in read_log(log) if "loss" in row]
    again = Log(tmp_path / "log.jsonl", 0, 0.0)
    for row in rows:
        again.add({"loss": torch.tensor(row["loss"])}, TAKEN)
        again.write(row["images"])
    assert again.risen is None


def test_a_run_leaves_pictures_and_a_log(run):
    assert (run / "loss.png").stat().st_size > 10_000
    assert [path.name for path in (run / "previews").iterdir()] == ["000000000640.png"]
    rows = read_log(run / "log.jsonl")
    assert [row["images"] for row in rows] == list(range(64, 641, 64))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"minutes", "grad_norm", "lr", "images_per_second", "skipped"} <= rows[0].keys()


@pytest.mark.slow
def test_compiled_blocks_train_alike(small, tmp_path):
    base = small.replace(train={"precision": "fp32"})
    eager = tensors(quiet(base, tmp_path / "eager"))
    compiled = tensors(quiet(base.replace(train={"compile": True}), tmp_path / "compiled"))
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        if name.startswith("ema"):
            torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_round_trips(name):
    chosen = recipe(name)
    assert Recipe.model_validate_json(chosen.model_dump_json()) == chosen
    with torch.device("meta"):
        net = chosen.build_backbone()
    x = torch.empty(2, *chosen.build_codec().layout(*chosen.data.shape).shape, device="meta")
    t, label = torch.empty(2, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    cond = {"label": label}
    if chosen.text:
        text = torch.empty(2, 5, chosen.text.dim, device="meta")
        words = torch.ones(2, 5, dtype=torch.bool, device="meta")
        cond |= {"text": text, "text_mask": words, "text_pooled": text[:, 0]}
    channels = 2 * x.shape[1] if chosen.transport.variance == "learned" else x.shape[1]
    assert net(x, t, cond).shape == (2, channels, *x.shape[2:])


def test_paper_recipes_have_the_papers_settings():
    dit, sit = recipe("imagenet256-dit-xl2"), recipe("imagenet256-sit-xl2")
    for chosen in (dit, sit):
        assert chosen.train.lr == 1e-4
        assert chosen.train.batch == 256
        assert chosen.train.weight_decay == 0
        assert chosen.train.label_dropout == 0.1
        assert 0.5 ** (256 / chosen.train.ema_half_life_images) == pytest.approx(0.9999, abs=1e-7)
        assert chosen.codec.resolved().scale == 0.18215
        assert chosen.data.flip
    assert dit.backbone == BACKBONES["DiT-XL/2"]
    assert (dit.transport.path, dit.transport.predict, dit.transport.variance) == ("ddpm", "noise", "learned")
    assert (sit.transport.path, sit.transport.predict) == ("linear", "velocity")
    assert sit.backbone == BACKBONES["SiT-XL/2"]


def test_nothing_is_read_between_what_is_due(small, tmp_path, monkeypatch):
    """A step reads no log and lists no folder: runs have millions of steps."""
    reads = []
    read_log = monitor.read_log
    monkeypatch.setattr(monitor, "read_log", lambda path: reads.append(path.name) or read_log(path))
    never = {"preview_images": 0, "validate_images": 0, "score_images": 0}
    train(small.replace(train=never), tmp_path / "run", device=CPU, progress=False)
    assert reads == []


def at_image(monkeypatch, chosen, change):
    """`change(objective)` after the gradient of every step that has one of these images."""

    def changed(*arguments, **named):
        terms = accumulate(*arguments, **named)
        if chosen & set(arguments[1].index.tolist()):
            change(arguments[0])
        return terms

    monkeypatch.setattr("ditkit.training.parallel.accumulate", changed)


def break_block(objective):
    """A weight that is no number, as a step of a rate far too high leaves it."""
    with torch.no_grad():
        objective.net.blocks[0].attention.qkv.weight[0, 0] = math.nan


def test_where_numbers_stop_being_finite_is_said(small, tmp_path, monkeypatch, caplog):
    """The first part of the network, and the images of the step."""
    at_image(monkeypatch, {100}, break_block)
    with pytest.raises(
        InputError, match=r"first output .* is that of net\.blocks\.0\.attention\.qkv.* of images \d+"
    ):
        quiet(small.replace(train={"images": 2000, "batch": 4}), tmp_path / "run")
    assert "the last 6 steps were skipped" in caplog.text


def test_a_run_that_diverges_goes_back(small, tmp_path, monkeypatch, caplog):
    """To the last good checkpoint, with half the rate; resumed it is what it is in one sitting."""
    fields = {"batch": 4, "images": 800, "checkpoint_images": 80, "on_divergence": "rewind", "log_images": 40}
    chosen = small.replace(train=fields | {"schedule": "constant", "warmup_images": 0})
    for name, sittings in (("whole", (800,)), ("parts", (600, 800))):
        broken = []

        def once(objective, broken=broken):
            if not broken:
                broken.append(break_block(objective))

        with monkeypatch.context() as patch:
            at_image(patch, {400}, once)
            for images in sittings:
                quiet(chosen.replace(train={"images": images}), tmp_path / name)
    rows = read_log(tmp_path / "whole" / "log.jsonl")
    assert [row["images"] for row in rows] == list(range(40, 801, 40))
    assert {row["lr"] for row in rows[-5:]} == {0.5 * chosen.train.lr}
    assert "going back to 400 images, with 0.5 of `train.lr`" in caplog.text
    assert_equal(*(quiet(chosen, tmp_path / name) for name in ("whole", "parts")))


def test_a_run_that_keeps_diverging_stops(small, tmp_path, monkeypatch):
    at_image(monkeypatch, {400}, break_block)
    fields = {"batch": 4, "images": 800, "checkpoint_images": 80, "on_divergence": "rewind"}
    with pytest.raises(InputError, match=r"0\.015625 of `train\.lr` before: give a lower one"):
        quiet(small.replace(train=fields), tmp_path / "run")
