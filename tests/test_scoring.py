"""Scoring: what is measured of images, and reports of hand-made sets; comparisons; measures while training."""

import errno
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU
from needs import needs_font, needs_table
from PIL import Image
from torch import Tensor

from ditkit.data import DATA, Folder
from ditkit.errors import InputError
from ditkit.evaluation import Features, Report, gather, read_statistics, save_statistics
from ditkit.pipeline import load
from ditkit.sampling.config import SamplingRequest
from ditkit.scoring import (
    Ruler,
    Samples,
    card_line,
    evaluate,
    files,
    held_out,
    labels_of,
    measure,
    nearest_images,
    random_labels,
    rulers,
    sampled,
    table,
)
from ditkit.scoring.comparison import COLUMNS, compare_cell, rows_of
from ditkit.scoring.tables import distance_name, software
from ditkit.training import train
from ditkit.training.log import read_log
from ditkit.training.monitor import LEVELS, validation_loss


class Brightness:
    """Reads an image as the class that its first pixel names; knows what classes are called."""

    name, hash, dim, resize, classes = "brightness", "b" * 64, 3, "none", 3

    def __call__(self, images: Tensor) -> Features:
        one_hot = torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).float()
        return Features(one_hot, 10 * one_hot)


class Words(Brightness):
    """The same with a text tower: the prompt's last word is the class."""

    def text(self, prompts):
        assert all(prompt.startswith("a photo of a ") for prompt in prompts)
        return torch.eye(3)[[("dark", "grey", "light").index(prompt.split()[-1]) for prompt in prompts]]


def samples(*batches: tuple[list[int], list[int] | None], **protocol) -> Samples:
    parts = [
        (
            torch.tensor(read, dtype=torch.uint8).view(-1, 1, 1, 1),
            None if wanted is None else torch.tensor(wanted),
        )
        for read, wanted in batches
    ]
    wanted = [labels for _, labels in parts]
    known = bool(wanted) and not any(labels is None for labels in wanted)
    return Samples(iter(parts), torch.cat(wanted) if known else None, protocol)


def ruler(network=None) -> Ruler:
    network = network or Brightness()
    reference = gather(samples(([0, 1, 2] * 4, None)).batches, network)
    return Ruler(network, reference, "hand", (1, 1, 1))


# --- reports ---------------------------------------------------------------------------------------


def test_report_of_a_hand_made_set():
    made = samples(([0, 0, 1], [0, 0, 0]), ([1, 1, 0], [1, 1, 0]), seed=7, sampler="heun")
    report = evaluate(made, [ruler()])
    scores = report.first
    assert report.images == 6
    assert (scores.reference, scores.reference_images, scores.features) == ("hand", 12, "brightness")
    labels = scores.labels
    assert labels.accuracy == 5 / 6
    assert labels.class_accuracy == [3 / 4, 1.0, None]
    assert labels.asked == [4, 2, 0]
    assert labels.read == [3, 3, 0]
    assert labels.mistakes == [(0, 1, 1)]
    assert scores.frechet > 0
    assert scores.precision == 1
    assert 1.9 < scores.inception_score < 2.1  # two classes, half each
    assert scores.clip_score is scores.spatial_frechet is None
    assert report.protocol["seed"] == 7
    assert "torch" in report.protocol
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_report_without_labels():
    scores = evaluate(samples(([0, 1, 2] * 4, None)), [ruler()]).first
    assert scores.labels.accuracy is scores.labels.class_accuracy is scores.labels.asked is None
    assert scores.labels.read == [4, 4, 4]
    assert scores.frechet < 1e-6


def test_clip_score_takes_the_prompt_of_each_label():
    names = ("dark", "grey", "light")
    right = evaluate(samples(([0, 1, 2, 2], [0, 1, 2, 2])), [ruler(Words())], names).first
    assert right.clip_score == pytest.approx(100)
    half = evaluate(samples(([0, 1, 2, 2], [0, 1, 1, 0])), [ruler(Words())], names)
    assert half.first.clip_score == pytest.approx(50)
    assert half.protocol["prompt"] == "a photo of a {}"


def test_several_rulers_share_one_pass():
    report = evaluate(samples(([0, 1, 2, 2], None)), [ruler(), ruler(Words())])
    assert len(report.scores) == 2
    assert report.scores[0].frechet == report.scores[1].frechet


def test_too_few_images_for_the_features_are_reported():
    report = evaluate(samples(([0, 1, 2], None)), [ruler()])
    assert any("3 images for 3 features" in warning for warning in report.first.warnings)
    assert "note: 3 images for 3 features" in table([("few", report)])
    assert report.first.precision is None  # k = 3 needs more than three images


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (samples(([0, 1], [0, 1]), ([0, 1], None)), "label all images or none"),
        (samples(([0, 1], [0, 3])), "knows 0 to 2"),
        (samples(([0, 1], [0])), "as many labels"),
        (samples(), "0 images cannot be scored"),
        (samples(([1], None)), "1 images cannot be scored"),
        (
            Samples(iter([(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), None)]), None),
            "2x2 with 1 channels against",
        ),
    ],
)
def test_wrong_sets(made, message):
    with pytest.raises(InputError, match=message):
        evaluate(made, [ruler()])


def test_what_a_table_and_a_card_say():
    facts = {
        "sampler": "heun",
        "nfe": 50,
        "guidance": 1.5,
        "first_seed": 3,
        "labels": "balanced",
        "precision": "fp32",
    }
    report = evaluate(samples(([0, 1, 2, 2], [0, 1, 2, 2]), **facts), [ruler()])
    text = table([("mine", report)])
    assert "mine" in text.splitlines()[1]
    assert "100.0%" in text
    card = card_line(report)
    assert "4 samples (seeds 3 to 6, labels balanced), heun, 50 NFE, guidance 1.5, EMA, fp32" in card
    assert f"brightness {'b' * 12} against hand {report.first.reference_hash[:12]}" in card
    assert [distance_name(name) for name in ("inception", "inception-clean", "dinov2", "classifier")] == [
        "FID", "FID", "FD-DINOv2", "FD",
    ]  # fmt: skip


# --- what is scored --------------------------------------------------------------------------------


def test_random_labels_belong_to_seeds():
    some = random_labels(range(0, 400), 10)
    assert some[100:].equal(random_labels(range(100, 400), 10))
    counts = some.bincount(minlength=10)
    assert 15 < counts.min() < counts.max() < 70


def test_labels_as_often_as_in_the_data(monkeypatch):
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    data = SimpleNamespace(kind="mine", open=lambda split: SimpleNamespace(labels=labels))
    assert labels_of(data, 20).bincount().tolist() == [12, 6, 2]
    assert labels_of(data, 300).bincount().tolist() == [180, 90, 30]
    assert labels_of(data, 20).equal(labels_of(data, 20))
    labels = None
    with pytest.raises(InputError, match="mine: the data has no labels to sample"):
        labels_of(data, 20)


def test_sampled_images_come_with_their_labels_and_protocol(run):
    pipeline = load(run, CPU)
    made = sampled(pipeline, 6, first_seed=2, labels="random", steps=1, batch=4)
    parts = list(made.batches)
    assert [len(images) for images, _ in parts] == [4, 2]
    labels = torch.cat([label for _, label in parts])
    assert labels.equal(made.labels)
    assert labels.equal(random_labels(range(2, 8), 10))
    direct = pipeline.generate({"label": labels}, seeds=range(2, 8), steps=1)
    assert (torch.cat([images for images, _ in parts]).int() - direct.int()).abs().max() <= 1
    assert made.protocol["labels"] == "random"
    assert made.protocol["nfe"] == 2


def test_folders_are_squares_of_one_size_or_cropped(tmp_path):
    for name, size in (("a", (12, 12)), ("b", (12, 12)), ("c", (20, 14))):
        Image.new("RGB", size, (10, 20, 30)).save(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match=r"a.png 12x12 and c.png 20x14; give `size`"):
        files(tmp_path)
    cropped = files(tmp_path, size=8)
    assert cropped.protocol["preparation"] == "ADM's crop to 8"
    assert next(cropped.batches)[0].shape == (3, 3, 8, 8)
    (tmp_path / "c.png").unlink()
    whole = files(tmp_path)
    assert next(whole.batches)[0].shape == (2, 3, 12, 12)
    with pytest.raises(InputError, match="no such folder"):
        files(tmp_path / "nothing")


def test_npz_of_adm_with_labels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=pixels, arr_1=np.arange(70) % 7)
    made = files(tmp_path / "x.npz")
    parts = list(made.batches)
    assert torch.cat([images for images, _ in parts]).permute(0, 2, 3, 1).equal(torch.from_numpy(pixels))
    assert torch.cat([labels for _, labels in parts]).equal(torch.arange(70) % 7)


def test_held_out_images_are_as_many_as_asked_and_of_all_classes():
    part = next(held_out(DATA["digits"], 50).batches)
    assert len(part[0]) == 50
    assert len(part[1].unique()) == 10
    assert held_out(Folder(), 10) is None


# --- rulers ----------------------------------------------------------------------------------------


def test_a_reference_from_a_file_is_the_same_ruler(tmp_path):
    (computed,) = rulers(["classifier"], DATA["digits"])
    save_statistics(tmp_path / "digits.npz", computed.reference)
    again = read_statistics(tmp_path / "digits.npz", computed.network)
    assert again.digest == computed.reference.digest
    assert computed.name == "digits train"
    assert computed.shape == (1, 8, 8)
    with pytest.raises(InputError, match="classifier=FILE"):
        rulers(["classifier"], tmp_path / "digits.npz")
    scores = evaluate(held_out(DATA["digits"], 100), [computed]).first
    from_file = evaluate(held_out(DATA["digits"], 100), [Ruler(computed.network, again, "file", None)]).first
    assert from_file.frechet == pytest.approx(scores.frechet, rel=1e-9)
    assert from_file.precision == scores.precision


def test_no_classifier_comes_with_a_folder(tmp_path):
    for k in range(3):
        Image.new("L", (8, 8), k).save(tmp_path / f"{k}.png")
    with pytest.raises(InputError, match="no classifier comes with ditkit for data 'folder'"):
        rulers(["classifier"], Folder(path=tmp_path, size=8, channels=1))


# --- comparisons -----------------------------------------------------------------------------------


def test_a_comparison_is_paired_cached_and_redone_with_other_settings(run, tmp_path, monkeypatch):
    pipeline = load(run, CPU)
    measure = rulers(["classifier"], DATA["digits"])

    def cell(model, guidance, n=40, seed=0):
        return compare_cell(
            model, pipeline, guidance, measure, (), tmp_path / f"{model}-{guidance}", n=n, first_seed=seed,
            request=SamplingRequest(steps=1),
        )  # fmt: skip

    cells = [cell("a", 1.0), cell("a", 2.0), cell("b", 1.0)]
    rows = rows_of(cells, measure, 0, resamples=20)
    assert rows[0].difference is None
    assert rows[1].difference is None  # of the first model itself
    assert rows[2].difference == (0, 0)  # the same samples: no difference, and no doubt about it
    assert rows[0].errors.frechet > 0
    assert 0 <= rows[0].errors.accuracy < 0.1
    assert cells[0].images.shape == (10 * COLUMNS, 1, 8, 8)
    assert cells[0].report.protocol["guidance"] == 1
    assert cell("a", 1.0, seed=5).report.images_hash != cells[0].report.images_hash
    assert cell("a", 1.0).report == cells[0].report
    monkeypatch.setattr("ditkit.scoring.comparison.measure", None)
    assert cell("a", 1.0).report == cells[0].report  # nothing is sampled again
    with pytest.raises(TypeError):
        cell("a", 1.0, n=50)


def test_compare_writes_table_pictures_and_curves(run, tmp_path, capsys):
    from ditkit.cli import main

    out = tmp_path / "c"
    command = [
        "compare",
        str(run),
        "digits",
        "--n",
        "40",
        "--sampler",
        "heun",
        "--steps",
        "1",
        "--resamples",
        "5",
        "--out",
        str(out),
    ]
    assert main([*command, "--guidance", "1,1.5,3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| small |") == printed.count("| digits |") == 3
    assert "standard error over the draw" in printed
    for name in ("compare.md", "samples.png", "curves.png"):
        assert (out / name).stat().st_size > 300
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert [(row["model"], row["guidance"]) for row in rows] == [
        (model, scale) for model in ("small", "digits") for scale in (1, 1.5, 3)
    ]
    assert {row["protocol"]["nfe"] for row in rows} == {2}
    assert all(row["difference"] for row in rows[3:])


def test_compare_of_solvers_is_paired_with_the_first(run, tmp_path, capsys):
    from ditkit.cli import main

    command = [
        "compare",
        str(run),
        "--n",
        "40",
        "--resamples",
        "5",
        "--out",
        str(tmp_path),
        "--guidance",
        "1",
    ]
    assert main([*command, "--solvers", "heun:2", "ab2:4", "ab2:2"]) == 0
    assert "| small | ab2, 2 | 1 |" in capsys.readouterr().out
    heun, four, two = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert [(row["protocol"]["sampler"], row["protocol"]["nfe"]) for row in (heun, four, two)] == [
        ("heun", 4), ("ab2", 4), ("ab2", 2),
    ]  # fmt: skip
    assert heun["difference"] is None
    for row in (four, two):
        gap = row["scores"]["frechet"] - heun["scores"]["frechet"]
        assert row["difference"][0] == pytest.approx(gap)
        assert 0 < row["difference"][1] < row["errors"]["frechet"] + heun["errors"]["frechet"]
    alone = load(run, CPU).generate(
        {"label": list(range(10))}, seeds=range(10), sampler="ab2", steps=2, guidance=1
    )
    with np.load(tmp_path / "cells" / "small-ab2-2-1" / "images.npz") as file:
        gaps = file["arr_0"][:10, :, :, 0].astype(int) - alone[:, 0].numpy()
    assert (
        np.abs(gaps).max() <= 1
    )  # the images of the same seeds, rounded otherwise in batches of other sizes


# --- while training --------------------------------------------------------------------------------


def test_validation_loss_is_the_loss_at_fixed_times_and_noise():
    pipeline = load("digits", CPU)
    images = next(held_out(DATA["digits"], 20).batches)
    t, losses = validation_loss(pipeline, *images)
    assert len(t) == len(losses) == LEVELS
    assert t == sorted(t)
    assert (t[0], t[-1]) == (pytest.approx(0.05), pytest.approx(0.95))
    assert validation_loss(pipeline, *images)[1] == losses
    half = validation_loss(pipeline, images[0][:10], images[1][:10])[1]
    rest = [2 * whole - part for whole, part in zip(losses, half, strict=True)]
    assert all(value > 0 for value in rest)  # image n has its own noise, whatever is beside it
    wrong = validation_loss(pipeline, images[0], (images[1] + 5) % 10)[1]
    assert sum(wrong) > sum(losses)  # labels are read


def test_measures_while_training_resume_without_doubles(small, tmp_path):
    every = {"validate_images": 64, "score_images": 160, "score_samples": 20}
    train(small.replace(train=every), tmp_path, device=CPU, progress=False)
    validation, scores = (read_log(tmp_path / f"{name}.jsonl") for name in ("validation", "scores"))
    assert [row["images"] for row in validation] == [64, 128, 192, 256, 320]
    assert [row["images"] for row in scores] == [160, 320]
    assert scores[-1]["samples"] == 20
    assert validation[-1]["loss"] == pytest.approx(sum(validation[-1]["levels"]) / LEVELS)
    for name in ("validation", "scores"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 500
    (tmp_path / "checkpoints" / f"{320:012d}" / "state.json").unlink()  # as if killed before the last one
    train(small.replace(train=every), tmp_path, device=CPU, progress=False)
    assert read_log(tmp_path / "validation.jsonl") == validation
    assert read_log(tmp_path / "scores.jsonl") == scores


def test_measuring_changes_nothing_of_the_training(small, tmp_path):
    quiet = {"validate_images": 0}
    often = {"validate_images": 64, "score_images": 160, "score_samples": 20}
    for name, every in (("quiet", quiet), ("often", often)):
        train(small.replace(train=every), tmp_path / name, device=CPU, progress=False)
    losses = [[row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("quiet", "often")]
    assert losses[0] == losses[1]
    assert not (tmp_path / "quiet" / "validation.jsonl").exists()


# --- captions -------------------------------------------------------------------------------------------

RULERS = sys.modules["ditkit.scoring.rulers"]  # the name is also a function's


def angle(values) -> Tensor:
    turn = 2 * torch.pi * torch.as_tensor(values).float() / 60
    return torch.stack([turn.cos(), turn.sin()], dim=-1)


class Hue:
    """Reads the grey value of an image's first pixel as a place on a circle."""

    name, hash, dim, resize, classes = "hue", "c" * 64, 2, "none", None

    def __call__(self, images: Tensor) -> Features:
        return Features(angle(images[:, 0, 0, 0]))


class SpokenHue(Hue):
    """The same with a text tower."""

    def text(self, captions) -> Tensor:
        return spoken(captions)


def spoken(captions) -> Tensor:
    return angle([int(caption.split()[-1]) for caption in captions])


@pytest.fixture
def hues(tmp_path):
    """Sixty images of one pixel and one grey value each, whose captions say which."""
    lines = []
    for value in range(60):
        Image.new("L", (1, 1), value).save(tmp_path / f"{value:02d}.png")
        lines.append(json.dumps({"file_name": f"{value:02d}.png", "text": f"hue {value}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return Folder(path=tmp_path, size=1, channels=1, caption_column="text")


@pytest.mark.parametrize("network", [Hue, SpokenHue])
def test_captions_are_found_by_a_probe_or_by_a_network_that_reads_text(monkeypatch, hues, network):
    monkeypatch.setattr(RULERS, "network", lambda *_: network())
    (ruler,) = rulers(["hue"], hues, embed=spoken)
    fitting = samples(([10, 20, 30], None), ([40, 50], None))
    fitting.captions = [f"hue {value}" for value in (10, 20, 30, 40, 50)]
    report = evaluate(fitting, [ruler])
    assert report.first.retrieval == 1
    assert report.protocol["retrieval"]["hue"].items() >= {"candidates": 20, "captions": 60}.items()
    assert (report.first.clip_score is None) == (network is Hue)
    mixed = samples(([10, 20, 30, 40, 50], None))
    mixed.captions = ["hue 10", "hue 50", "hue 0", "hue 40", "hue 20"]
    assert evaluate(mixed, [ruler]).first.retrieval == pytest.approx(2 / 5)
    assert "retrieval" in table([("mixed", report)])


def test_without_captions_nothing_is_retrieved(monkeypatch, hues):
    monkeypatch.setattr(RULERS, "network", lambda *_: Hue())
    (ruler,) = rulers(["hue"], hues)
    assert ruler.captions is None
    few = samples(([10, 20], None))
    few.captions = ["hue 10", "hue 20"]
    assert evaluate(few, [ruler]).first.retrieval is None


def test_the_nearest_training_images_are_shown_in_the_order_of_the_samples(monkeypatch, hues):
    monkeypatch.setattr(RULERS, "network", lambda *_: Hue())
    (ruler,) = rulers(["hue"], hues)
    found = measure(samples(([33, 7], None), ([59, 0], None)), [ruler])
    assert nearest_images(found[0], ruler, hues).flatten().tolist() == [33, 7, 59, 0]
    assert nearest_images(found[0], ruler, hues, count=3).shape == (3, 1, 1, 1)


@needs_font
@needs_table
def test_held_out_images_keep_their_captions():
    found = held_out(DATA["emoji"], 16)
    source = DATA["emoji"].open("test")
    assert list(found.captions) == [source.captions[place] for place in range(0, 64, 4)]
    assert sum(len(images) for images, _ in found.batches) == 16


def test_a_model_that_was_trained_anew_is_scored_anew_and_so_is_a_damaged_cell(run, tmp_path, caplog):
    """The same folder, images and minutes; other weights."""
    pipeline = load(run, CPU)
    measure = rulers(["classifier"], DATA["digits"])
    folder = tmp_path / "cell"

    def frechet(pipeline) -> float:
        cell = compare_cell(
            "a", pipeline, 1.0, measure, (), folder, n=20, first_seed=0, request=SamplingRequest(steps=1)
        )
        return cell.report.first.frechet

    before = frechet(pipeline)
    with torch.no_grad():
        for parameter in pipeline.backbone.parameters():
            parameter.mul_(1.5)
    pipeline.save(tmp_path / "model")
    assert (after := frechet(load(tmp_path / "model"))) != before
    assert frechet(load(run, CPU)) == before
    for name, content in (
        ("report.json", b"{}"),
        ("images.npz", b"?"),
        ("0.npz", b""),
        ("wanted.json", b"["),
    ):
        (folder / name).write_bytes(content)
        assert frechet(load(run, CPU)) == before != after
    assert "it is sampled and scored again" in caplog.text


def test_weights_of_a_snapshot_are_checked_against_their_hash(run, tmp_path):
    file = load(run).save(tmp_path / "model") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"model\.safetensors is damaged: its tensors do not match their hash"
    ):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (subprocess.CalledProcessError(128, "git", stderr="fatal: dubious ownership\nmore"), "fatal: dubious ownership"),
    ],
)  # fmt: skip
def test_a_commit_that_git_does_not_say_is_missed_aloud(monkeypatch, caplog, failure, reason):
    def fails(*arguments):
        raise failure

    monkeypatch.setattr("ditkit.scoring.tables._git", fails)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    with caplog.at_level(logging.WARNING):
        found = software()
    assert "commit" not in found
    assert "git does not say which commit this is" in caplog.text
    assert reason in caplog.text
    monkeypatch.setattr(Path, "exists", lambda path: False)  # no checkout: nothing to be missed
    caplog.clear()
    assert set(software()) == {"ditkit", "torch"}
    assert not caplog.text
