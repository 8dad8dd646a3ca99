"""What training draws for each image: the same numbers as ever, drawn ahead, and batches that carry them."""

import hashlib
import multiprocessing

import pytest
import torch
from conftest import CPU, SMALL
from torch import Tensor

from ditkit.backbones import DiTConfig
from ditkit.codecs import POSTERIOR
from ditkit.data import Batch, Digits, MovingDigits, batches, plan_for
from ditkit.errors import InputError
from ditkit.randomness import Draws, Stream
from ditkit.recipes import recipe
from ditkit.training import train
from ditkit.training.draws import DROP, draws_of, with_draws
from ditkit.training.log import read_log
from ditkit.training.step import backward
from ditkit.transports.transport import KNOWN, NOISE, TIME

EVERY = (NOISE, KNOWN, DROP, POSTERIOR, TIME)  # in no order
NUMBERS = [0, 5, 2**40]

# Of the seed 3: the first numbers of each stream and the hash of all, made with version 0.1's training step.
AS_EVER = {
    "time": ([0.5549012378687112, 0.04175602167538672], "b3a5b664de24a51f"),
    "drop": ([0.83594512753143, 0.503418880476237], "518f6c5f0dbef29b"),
    "noise": ([-0.4581888020038605, 0.048337578773498535], "316695c67b9f5f2b"),
    "posterior": ([-0.14487437903881073, 0.41438913345336914], "5125f08861a1d476"),
    "known": ([0.904045442318374, 0.14400060952290872], "e996244a54dc0ac3"),
}

TRAINING = {
    "images": 96, "batch": 32, "warmup_images": 0, "lr": 1e-3, "schedule": "constant", "precision": "fp32",
    "log_images": 32, "checkpoint_images": 96, "preview_images": 0, "validate_images": 0, "compile": "off",
}  # fmt: skip

DIGITS = [1.689162, 1.7456428, 1.7406626]


def clips(**train_fields):
    """Clips of 5 frames, 16 x 16, single frames beside them, some frames known."""
    data = MovingDigits(size=16, glyph=8, frames=5, clips=20, classes=10, single_frames=0.5)
    net = DiTConfig(width=16, depth=2, heads=2, patch=4, positions="rotary", size_embedding=True, tubelet=1)
    fields = TRAINING | {"images": 32, "log_images": 8, "tokens": 160} | train_fields
    return recipe("moving-digits").replace(
        data=data, backbone=net, transport={"known_frames": 0.5}, train=fields
    )


def hashed(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def test_every_stream_has_the_numbers_that_it_always_had():
    found = Draws(3, EVERY, {(4, 4): (2, 3, 3)})(NUMBERS, (4, 4))
    assert found.keys() == AS_EVER.keys()
    for name, (first, digest) in AS_EVER.items():
        assert found[name].flatten()[:2].tolist() == first, name
        assert hashed(found[name]) == digest, name


@pytest.mark.parametrize("stream", EVERY, ids=lambda stream: stream.name)
def test_a_stream_does_not_depend_on_which_others_are_drawn(stream):
    alone = Draws(3, (stream,), {(4, 4): (2, 3, 3)})(NUMBERS, (4, 4))
    assert hashed(alone[stream.name]) == AS_EVER[stream.name][1]


def test_a_stream_of_ones_own_changes_no_other():
    own = (Stream("route", "route", "uniform", (2,)), Stream("more", "given", "uniform", (2,), after=3))
    found = Draws(3, (*EVERY, *own), {(4, 4): (2, 3, 3)})(NUMBERS, (4, 4))
    assert all(hashed(found[name]) == digest for name, (_, digest) in AS_EVER.items())
    uniform = [found[name].flatten() for name in ("route", "more", "known", "time", "drop")]
    assert len(set(torch.cat(uniform).tolist())) == 3 * (2 + 2 + 3 + 1 + 1)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Stream("late", "train", "uniform", (), after=1), "drop and late take the same numbers of 'train'"),
        (Stream("late", "train", "uniform", (), after=7), "noise and late take the same numbers of 'train'"),
        (Stream("time", "own", "uniform", ()), "two streams are called time"),
    ],
)
def test_streams_that_would_change_each_other_are_refused(stream, message):
    with pytest.raises(ValueError, match=message):
        Draws(3, (*EVERY, stream), {})


def test_a_training_has_the_losses_that_it_had(tmp_path):
    """To the rounding of other processors: neither first weights nor draws change unnoticed."""
    small = recipe("digits").replace(**SMALL, train=TRAINING)
    train(small, tmp_path / "digits", device=CPU, progress=False)
    losses = [row["loss"] for row in read_log(tmp_path / "digits" / "log.jsonl")]
    assert losses == pytest.approx(DIGITS, rel=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_workers_draw_what_one_process_draws(packed):
    chosen = clips(packed=packed) if not packed else unknown_frames(packed=True)
    source = chosen.data.training()
    plan = plan_for(source, chosen.data, chosen.multiple, chosen.tokens, 160, packed)
    draws = draws_of(chosen, chosen.build_codec(), {*plan.sizes})
    ask = {"seed": 0, "stop": 40, "batch": 0, "plan": plan, "draws": draws}
    ours, theirs, later = (
        flat(batches(source, chosen.data, **ask, start=start, workers=workers))
        for start, workers in ((0, 0), (0, 1), (13, 0))
    )
    assert len(ours) == 40
    assert list(ours) == list(theirs)
    for n, drawn in ours.items():
        assert all(torch.equal(value, theirs[n][name]) for name, value in drawn.items())
        assert n < 13 or all(torch.equal(value, later[n][name]) for name, value in drawn.items())
    assert {drawn["noise"].shape for drawn in ours.values()} == {(1, 5, 16, 16), (1, 1, 16, 16)}


def unknown_frames(**train_fields):
    train_fields |= {"packed": False}
    chosen = clips(**train_fields).replace(transport={"known_frames": 0.0})
    return chosen.replace(train={"packed": True})


def flat(parts) -> dict[int, dict[str, Tensor]]:
    """The draws of each image of some batches, by its number."""
    return {
        n: {name: values[row] for name, values in group.draws.items()}
        for part in parts
        for group in part.groups or (part,)
        for row, n in enumerate(group.index.tolist())
    }


def test_packed_rows_of_clips_with_known_frames_are_refused():
    with pytest.raises(InputError, match=r"known_frames 0, or leave train.packed out") as caught:
        clips(packed=True)
    assert "\n" not in str(caught.value)


def test_an_error_in_a_step_ends_the_loaders_processes(tmp_path, monkeypatch):
    """Also while the error is looked at: processes that nobody ends keep a program from ending."""

    def fails(*arguments, **named):
        raise RuntimeError("no such step")

    monkeypatch.setattr("ditkit.training.parallel.accumulate", fails)
    small = recipe("digits").replace(**SMALL, train=TRAINING | {"workers": 1})
    with pytest.raises(RuntimeError, match="no such step") as caught:
        train(small, tmp_path / "run", device=CPU, progress=False)
    assert caught.traceback
    assert not multiprocessing.active_children()


# a batch without images


def of_a_rank(chosen, rank, packed=False):
    """The one batch of a process that has image 0, and of another that has none."""
    source = chosen.data.training()
    plan = plan_for(source, chosen.data, chosen.multiple, chosen.tokens, 10_000, packed)
    codec = chosen.build_codec()
    draws = draws_of(chosen, codec, {*plan.sizes})
    (batch,) = batches(
        source, chosen.data, seed=0, start=0, stop=1, batch=0, rank=rank, world=2, plan=plan, draws=draws
    )
    return batch


def digits(**sections):
    return recipe("digits").replace(**SMALL, train=TRAINING | {"tokens": 64}, **sections)


@pytest.mark.parametrize(
    ("chosen", "packed"),
    [
        (digits(), False),
        (digits(transport={"path": "ddpm", "predict": "noise", "variance": "learned"}), False),
        (clips(), False),
        (unknown_frames(), True),
    ],
)
def test_a_process_without_images_has_a_gradient_of_0(chosen, packed):
    net, codec = chosen.build_backbone(), chosen.build_codec()
    with torch.no_grad():
        for value in net.parameters():
            value += 0.1 * torch.randn(value.shape)
    some, none = of_a_rank(chosen, 0, packed), of_a_rank(chosen, 1, packed)
    assert (len(some.index), len(none.index)) == (1, 0)
    theirs = backward(chosen, net, codec, some, CPU)
    before = {name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None}
    net.zero_grad()
    terms = backward(chosen, net, codec, none, CPU)
    assert terms.keys() == theirs.keys()
    assert not any(terms.values())
    after = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
    assert after.keys() == before.keys()
    assert not any(grad.any() for grad in after.values())


# a batch


def test_a_batch_in_parts_and_in_pinned_memory(monkeypatch):
    chosen = digits()
    images = torch.arange(5, dtype=torch.uint8).repeat_interleave(64).view(5, 1, 8, 8)
    batch = Batch(images, torch.arange(5), torch.arange(5), tuple("abcde"))
    whole = with_draws(chosen, chosen.build_codec(), batch)
    parts = list(whole.split(2))
    assert [part.caption for part in parts] == [("a", "b"), ("c", "d"), ("e",)]
    for name in ("images", "label", "index"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name))
    for name, values in whole.draws.items():
        assert torch.cat([part.draws[name] for part in parts]).equal(values)
    assert whole.size == (8, 8)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self + 1)
    both = Batch(None, None, torch.arange(5), groups=(whole,)).pin_memory()
    (pinned,) = both.groups
    assert pinned.images.equal(images + 1)
    assert all(pinned.draws[name].equal(values + 1) for name, values in whole.draws.items())
    with pytest.raises(ValueError, match="group by group"):
        both.encodable  # noqa: B018


def test_batches_of_images_and_of_moments_have_other_names():
    config = Digits()
    (batch,) = batches(config.open(), config, seed=0, start=0, stop=4, batch=4)
    assert (batch.moments, batch.groups, batch.draws) == (None, (), {})
    assert batch.images is batch.encodable
