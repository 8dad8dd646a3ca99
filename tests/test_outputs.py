"""What the verbs write: whole or not at all, never over something else unasked, by one process at a time; and samples that
go on where they were stopped."""

import errno
import json
import os
import struct
import subprocess
import sys
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.cli import main
from ditkit.errors import InputError
from ditkit.evaluation import Statistics, load_statistics, save_images, save_statistics
from ditkit.evaluation.frechet import Moments
from ditkit.evaluation.inception_score import ScoreSums
from ditkit.files import load_npy, owned, save_torch
from ditkit.records import write_whole, written_whole
from ditkit.scoring.sample_folder import SampleFolder
from ditkit.scoring.samples import files
from ditkit.snapshots import SNAPSHOTS

DIGITS = ("sample", "digits", "--steps", "1", "--sampler", "euler")


def ditkit(capsys, *arguments):
    """Exit status, stdout and stderr of a command."""
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, *arguments):
    """The one line of a command that is refused."""
    status, _, err = ditkit(capsys, *arguments)
    assert status == 2
    line = err.splitlines()[-1]
    assert line.startswith("ditkit: ")
    return line


def contents(folder):
    """Every visible file below a folder: its bytes."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# samples


def test_a_command_run_again_does_nothing_twice_and_eval_finds_its_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = ditkit(capsys, *DIGITS, "--n", "12", "--png", "--labels", "3", "7")
    assert status == 0
    assert "samples/digits/images" in out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("samples/digits/**/*.png")}
    assert len(before) == 13
    status, out, _ = ditkit(capsys, *DIGITS, "--n", "12", "--png", "--labels", "3", "7")
    assert "all there already" in out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    found = files(tmp_path / "samples" / "digits")
    assert found.labels.tolist() == [3, 7] * 6
    assert sum(len(images) for images, _ in found.batches) == 12
    status, out, _ = ditkit(capsys, "eval", "samples/digits", "--reference", "digits")
    assert status == 0
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["images"] == 12
    assert report["scores"][0]["labels"]["asked"][3] == 6
    assert report["protocol"]["samples"]["sampler"] == "euler"
    next(tmp_path.glob("samples/digits/images/*.png")).unlink()
    assert "11 images that can be read, 12 were asked for" in refused(
        capsys, "eval", "samples/digits", "--reference", "digits"
    )


def test_samples_of_other_settings_are_not_mixed_and_not_lost(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for labels in ("1", "2", "1"):
        assert ditkit(capsys, *DIGITS, "--n", "2", "--labels", labels)[0] == 0
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["digits", "digits-2"]
    first = contents(tmp_path / "samples" / "digits")
    line = refused(capsys, *DIGITS, "--n", "2", "--labels", "2", "--out", "samples/digits")
    assert "samples of labels [1], not [2]" in line
    assert "--replace" in line
    assert contents(tmp_path / "samples" / "digits") == first
    other = (*DIGITS, "--n", "3", "--png", "--labels", "2")
    assert ditkit(capsys, *other, "--out", "samples/digits", "--replace")[0] == 0
    assert len(list((tmp_path / "samples" / "digits" / "images").iterdir())) == 3
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "yours").mkdir()
    (tmp_path / "mine" / "images" / "holiday.png").write_bytes(b"mine")
    line = refused(capsys, *DIGITS, "--out", "mine", "--replace")
    assert "images is there already, and no samples.json" in line
    assert contents(tmp_path / "mine") == {"images/holiday.png": b"mine"}
    for content in (b"{}", b"[]", b"{"):
        write_whole(tmp_path / "yours" / "samples.json", content)
        assert "samples.json" in refused(capsys, *DIGITS, "--out", "yours", "--replace")
        assert contents(tmp_path / "yours") == {"samples.json": content}


def test_what_was_interrupted_goes_on_bit_for_bit(tmp_path, capsys, monkeypatch):
    command = (*DIGITS, "--n", "23", "--batch", "5", "--png", "--npz", "--out")
    assert ditkit(capsys, *command, tmp_path / "whole")[0] == 0
    keep, calls = SampleFolder.keep, []

    def interrupted(self, part, samples, save):
        calls.append(part)
        if len(calls) == 3:  # in the midst of a batch
            keep(self, part[:2], samples[:2], save)
            raise KeyboardInterrupt
        keep(self, part, samples, save)

    monkeypatch.setattr(SampleFolder, "keep", interrupted)
    status, _, err = ditkit(capsys, *command, tmp_path / "parts")
    assert status == 130
    assert "again goes on" in err
    assert len(list((tmp_path / "parts" / "images").iterdir())) == 12
    assert not (tmp_path / "parts" / "samples.npz").exists()
    calls.extend([None] * 5)
    (tmp_path / "parts" / "images" / "000001-class1.png").write_bytes(b"")  # of a loss of power
    status, *_ = ditkit(capsys, *command, tmp_path / "parts")
    assert status == 0
    assert [part.start for part in calls if part is not None] == [0, 5, 10, 0, 10, 15, 20]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert "unfinished" not in os.listdir(tmp_path / "parts")


def test_many_samples_are_neither_kept_in_memory_nor_all_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ditkit.cli.make_samples.MOST_IMAGES", 20)
    keep, batches = SampleFolder.keep, []

    def watched(self, part, samples, save):
        assert sum(batch() is not None for batch in batches) <= 1
        batches.append(weakref.ref(samples))
        keep(self, part, samples, save)

    monkeypatch.setattr(SampleFolder, "keep", watched)
    status, out, _ = ditkit(capsys, *DIGITS, "--n", "60", "--batch", "10", "--out", tmp_path)
    assert status == 0
    assert "grid.png shows the first 20; --png or --npz makes and keeps all 60" in out
    assert len(batches) == 2
    status, out, _ = ditkit(capsys, *DIGITS, "--n", "60", "--batch", "10", "--npz", "--out", tmp_path)
    assert len(batches) == 8
    assert "60 images" in out
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].shape == (60, 8, 8, 1)
        assert file["labels"].tolist() == [k % 10 for k in range(60)]
    assert Image.open(tmp_path / "grid.png").height < 700


def test_images_are_scored_without_being_kept(run):
    from ditkit.data import DATA
    from ditkit.scoring import measure, rulers
    from ditkit.scoring.samples import Samples

    alive: list[weakref.ref] = []

    def batches():
        for _ in range(6):
            assert sum(batch() is not None for batch in alive) <= 2
            images = torch.randint(0, 255, (10, 1, 8, 8), dtype=torch.uint8)
            alive.append(weakref.ref(images))
            yield images, None
            del images

    (found,) = measure(Samples(batches(), None), rulers(["classifier"], DATA["digits"]))
    assert found.count == 60


# outputs that are there


def test_reports_are_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("eval", "digits", "--steps", "1", "--n")
    for count in ("4", "6", "4"):
        assert ditkit(capsys, *command, count)[0] == 0
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["eval", "eval-2"]
    assert json.loads((tmp_path / "eval-2" / "report.json").read_text())["images"] == 6
    line = refused(capsys, *command, "4", "--out", "eval-2")
    assert "eval-2/report.json: it is there already; give another --out, or --replace" in line
    assert ditkit(capsys, *command, "4", "--out", "eval-2", "--replace")[0] == 0
    assert json.loads((tmp_path / "eval-2" / "report.json").read_text())["images"] == 4


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("reference", "digits", "--out"), "x.npz"),
        (("classifier", "digits", "--epochs", "1", "--out"), "x.safetensors"),
        (("bench", "--statistics", "--n", "20", "--out"), "x.json"),
        (("convert", "digits", "--out"), "."),
    ],
)
def test_a_file_that_is_there_is_replaced_only_with_the_flag(tmp_path, capsys, command, name):
    (tmp_path / "x").mkdir()
    file = tmp_path / "x" / ("model.safetensors" if name == "." else name)
    file.write_bytes(b"mine")
    assert "--replace" in refused(capsys, *command, tmp_path / "x" / name)
    assert file.read_bytes() == b"mine"
    assert ditkit(capsys, *command, tmp_path / "x" / name, "--replace")[0] == 0
    assert file.stat().st_size > 4


def test_a_file_cannot_take_the_place_of_a_folder(tmp_path, capsys):
    (tmp_path / "x.npz").mkdir()
    assert "it is a folder; name a file" in refused(
        capsys, "reference", "digits", "--out", tmp_path / "x.npz"
    )


# what the machine refuses


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "another place"),
        (errno.EACCES, "another place"),
        (errno.ENOTDIR, "another place"),
        (errno.EISDIR, "another place"),
        (errno.EFBIG, "larger files"),
    ],
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, number, remedy):
    def failing(argv):
        raise OSError(number, os.strerror(number), "some/file.png")

    monkeypatch.setattr("ditkit.cli.listing.run", failing)
    line = refused(capsys, "list")
    assert line.lower().startswith(f"ditkit: some/file.png: {os.strerror(number)}; ".lower())
    assert remedy in line


def test_an_unknown_failure_is_a_defect(monkeypatch):
    def failing(argv):
        raise OSError(errno.ECHILD, "no child")

    monkeypatch.setattr("ditkit.cli.listing.run", failing)
    with pytest.raises(OSError, match="no child"):
        main(["list"])


def test_an_output_that_is_a_file_or_inside_one(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"mine")
    for out in (tmp_path / "file", tmp_path / "file" / "x"):
        for command in (DIGITS, ("eval", "digits", "--n", "4"), ("convert", "digits"), ("compare", "digits")):
            assert f"--out {tmp_path / 'file'}" in refused(capsys, *command, "--out", out)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_nothing_of_a_file_that_could_not_be_written_has_its_name(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", b"before")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.txt"):
        write_whole(tmp_path / "a.txt", b"after")
    with pytest.raises(OSError, match=r"b\.pt"):
        save_torch(tmp_path / "b.pt", {"w": torch.zeros(3)})
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "c.txt") as place:
        place.write_bytes(b"half" * (1 // 0))
    assert contents(tmp_path) == {"a.txt": b"before"}
    assert len(list(tmp_path.iterdir())) == 1


LIMITED = """
import resource, signal, sys
from ditkit.cli import main
import ditkit.cli.make_samples, ditkit.cli.convert, ditkit.cli.reference, ditkit.cli.likelihood

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
few = ["--n", "40", "--steps", "1"]
print(
    main(["sample", "digits", *few, "--batch", "40", "--npz", "--out", "a"]),
    main(["sample", "digits", *few, "--batch", "40", "--png", "--out", "a"]),
    main(["reference", "digits", "--out", "b/ref.npz"]),
    main(["convert", "digits-dit", "--out", "c"]),
    main(["convert", "digits-dit", "--to", "official", "--out", "d"]),
    main(["convert", "digits-dit", "--to", "diffusers", "--out", "e"]),
    main(["eval", "digits", *few, "--out", "f"]),
)
"""


def test_files_that_the_disk_does_not_take(tmp_path):
    """A limit on the size of files, which any system has, in place of a full disk."""
    pytest.importorskip("resource")
    environment = os.environ | {"DITKIT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stdout.splitlines()[-1] == "2 2 2 2 2 2 2", done.stdout + done.stderr
    large = os.strerror(errno.EFBIG).lower()
    lines = [line for line in done.stderr.splitlines() if line.startswith("ditkit: ")]
    assert len(lines) == 7
    assert all(large in line.lower() for line in lines)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    whole = {"samples.json", "report.json", "000000.npy"} | {name for name in left if "-class" in name}
    assert set(left) <= whole, left


# one process at a time


@pytest.mark.parametrize("command", [(*DIGITS, "--n", "2"), ("compare", "digits", "--n", "4")])
def test_a_second_process_in_a_folder_is_one_line(tmp_path, capsys, command):
    with owned(tmp_path / "out"):
        line = refused(capsys, *command, "--out", tmp_path / "out")
    assert "another process is writing into this folder" in line
    assert contents(tmp_path / "out") == {}


def test_two_drawings_of_a_study(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    write_whole(tmp_path / "cells" / "DiT-S4.json", b'{"scores": {}}')
    from ditkit.studies import STUDIES

    name = next(iter(STUDIES["scaling"].cells()))
    write_whole(tmp_path / "cells" / f"{name}.json", b'{"scores": {}}')
    draw = ("study", "scaling", "--draw", "--out", tmp_path)
    with owned(tmp_path):
        assert "another process is writing" in refused(capsys, *draw)
    assert ditkit(capsys, *draw)[0] == 0
    write_whole(tmp_path / "cells" / f"{name}.json", b"[]")
    assert f"{name}.json: cannot be read" in refused(capsys, *draw)


def test_a_study_of_which_nothing_is_there(tmp_path, capsys):
    from ditkit.studies import STUDIES

    for name in STUDIES:
        line = refused(capsys, "study", name, "--draw", "--out", tmp_path / "nothing")
        assert f"no cell of the study {name} is there" in line
    assert not (tmp_path / "nothing").exists()


# what is read


def statistics() -> Statistics:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    return Statistics(
        network="n", network_hash="h", resize="none", digest="0" * 64, moments=Moments.of(rows), spatial=None,
        rows=rows, index=torch.arange(6), keep=10, scores=ScoreSums.of(rows), confusion=None, read=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", "six"), ("count", 6.0), ("count", [6]), ("count", 1), ("keep", "all"), ("network", 3),
        ("digest", 0), ("rows", [["a"] * 3] * 6), ("rows", np.full((6, 3), np.nan)), ("index", [0.0] * 6),
        ("index", [0] * 6), ("index", -np.arange(6)), ("mu", ["a", "b", "c"]), ("split", ["a"]),
        ("split_count", [1, 2]), ("split_probability", [1.0]), ("confusion", [[1.5]]), ("read", ["x"]),
        ("confusion", np.ones((2, 3), int)),
    ],
)  # fmt: skip
def test_statistics_with_wrong_arrays_are_one_line(tmp_path, name, value):
    save_statistics(tmp_path / "a.npz", statistics())
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "b.npz", **(arrays | {name: np.array(value)}))
    with pytest.raises(InputError, match=r"b\.npz: .*make .*anew") as caught:
        load_statistics(tmp_path / "b.npz")
    assert "\n" not in str(caught.value)
    assert load_statistics(tmp_path / "a.npz").count == 6


def test_damaged_cells_of_a_comparison_are_made_again(run, tmp_path, caplog):
    from ditkit.data import DATA
    from ditkit.pipeline import load
    from ditkit.sampling.config import SamplingRequest
    from ditkit.scoring import rulers
    from ditkit.scoring.comparison import compare_cell

    pipeline, measure = load(run, torch.device("cpu")), rulers(["classifier"], DATA["digits"])
    folder = tmp_path / "cell"

    def cell():
        request = SamplingRequest(steps=1, sampler="euler")
        return compare_cell("a", pipeline, 1.0, measure, (), folder, n=10, first_seed=0, request=request)

    before = cell().report
    whole = contents(folder)
    with np.load(folder / "0.npz") as file:
        arrays = dict(file)

    def other_count():
        np.savez(folder / "0.npz", **(arrays | {"count": np.array("ten")}))

    def other_images():
        save_images(folder / "images.npz", [np.zeros((2, 2), np.uint8)], 2)

    def no_scores():
        report = json.loads(whole["report.json"])
        (folder / "report.json").write_text(json.dumps(report | {"scores": []}))

    def flipped(name, place):
        content = bytearray(whole[name])
        content[int(place * len(content))] ^= 0x5A
        (folder / name).write_bytes(content)

    damages = [other_count, other_images, no_scores]
    damages += [lambda n=n, p=p: flipped(n, p) for n in ("0.npz", "images.npz") for p in (0.01, 0.5, 0.99)]
    for damage in damages:
        damage()
        caplog.clear()
        assert cell().report.images_hash == before.images_hash
        assert contents(folder)["0.npz"] == whole["0.npz"] or not caplog.text


def test_one_image_of_a_huge_size_is_left_out_and_named(tmp_path, capsys, caplog):
    data = tmp_path / "data"
    data.mkdir()
    for k in range(4):
        Image.new("L", (8, 8), k * 50).save(data / f"{k}.png")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b""))
    (data / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    classifier = SNAPSHOTS.parent / "classifiers" / "digits.safetensors"
    out, features = ["--out", tmp_path / "out", "--replace"], ["--features", f"classifier={classifier}"]
    for command in (
        ("eval", data, "--reference", "digits", *out),
        ("eval", data, "--reference", "digits", "--size", "8", *out),
        ("eval", "digits", "--n", "4", "--steps", "1", "--reference", data, *out),
        ("reference", data, *features, "--out", tmp_path / "x.npz"),
    ):
        caplog.clear()
        status, _, err = ditkit(capsys, *command)
        assert status == 0, err
        assert "left out 1 of" in caplog.text
        assert "huge.png (60000 x 60000 pixels" in caplog.text


def test_arrays_are_read_by_several_threads(tmp_path):
    """Whose headers numpy parses as Python, which Python 3.11 fails at in two threads at once."""
    for k in range(50):
        np.save(tmp_path / f"{k}.npy", np.full(3, k))
    files = [tmp_path / f"{k}.npy" for k in range(50)] * 20
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = [array[0] for array in pool.map(load_npy, files)]
    finally:
        sys.setswitchinterval(before)
    assert found == [*range(50)] * 20
