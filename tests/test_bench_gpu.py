"""The check of a GPU, without one: every part on the CPU with a tiny network, and what becomes of parts that fail."""

import json
import math
import os
import time
from pathlib import Path

import pytest
import torch

from ditkit.benchmarks import gpu, several_gpus
from ditkit.benchmarks.gpu import EVALUATIONS, Work, measured
from ditkit.benchmarks.several_gpus import several
from ditkit.cli import bench_gpu, main
from ditkit.cli.bench_gpu import NO_GPU, Part, check, counted, table
from ditkit.costs import recipe_cost
from ditkit.costs.gpus import GPUS, NAMES, known_as
from ditkit.errors import InputError
from ditkit.own_process import in_own_process

TESTS = Path(__file__).parent
TINY = Work("tiny", "cpu", False, 0.01)


def in_here(seconds, run, *arguments):
    return run(*arguments)


def one(work, kind, count, seconds, *, tmp):
    file = tmp / f"{kind}.json"
    several_gpus.main(json.dumps({"work": work, "kind": "none", "file": str(file)}))
    return json.loads(file.read_text()) | {"kind": kind}


def test_the_whole_command_in_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_gpu, "in_own_process", in_here)
    monkeypatch.setattr(bench_gpu, "several", lambda *given: one(*given, tmp=tmp_path))
    file = tmp_path / "gpu.json"
    assert main(["bench", "--gpu", "--small", "--out", str(file)]) == 0
    record = json.loads(file.read_text())
    (row,), (found,) = record["networks"], record["products"]
    assert {*found} == {"bf16", "tf32", "fp32"}
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    macs = recipe_cost(gpu.recipe_of("tiny")).macs
    assert row["step_flops"] == pytest.approx(6 * macs * row["images_per_second"])
    assert row["evaluation_flops"] == pytest.approx(4 * macs * EVALUATIONS * row["sampled_per_second"])
    assert row["memory"]["predicted"] > 0
    assert row["memory"]["measured"] is None  # of a CPU nobody counts them
    assert [each["kind"] for each in record["several"]] == ["ddp", "fsdp"]
    assert record["skipped"] == []
    printed = capsys.readouterr().out
    assert (tmp_path / "gpu.md").read_text() in printed
    assert "| tiny, eager | 4 |" in printed
    assert main(["bench", "--gpu", "--small", "--out", str(file)]) == 2  # it is there already
    assert "--replace" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert main(["bench", "--gpu"]) == 2
    assert f"{NO_GPU}; --small tries" in capsys.readouterr().err


class Clock:
    """Seconds that pass as the parts say."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def part(self, name, takes, least, fails=None):
        def run(left):
            self.now += takes
            if fails:
                raise InputError(fails)
            return {"name": name, "left": left}

        return Part(name, "networks", least, run)


def test_what_has_no_time_left_is_left_out_and_named():
    clock, printed = Clock(), []
    todo = [
        clock.part("first", 30, 10),
        clock.part("fails", 20, 10, "no memory"),
        clock.part("long", 60, 60),
        clock.part("short", 5, 40),
    ]
    record = check(todo, 100, printed.append, clock)
    assert record["networks"] == [{"name": "first", "left": 100}, {"name": "short", "left": 50}]
    assert record["skipped"] == [
        {"part": "fails", "why": "no memory"},
        {"part": "long", "why": "50 s were left, it needs 60"},
    ]
    assert record["seconds"] == 55
    assert "skipped long: 50 s were left, it needs 60" in printed


def test_a_part_of_its_own_process():
    """Its result, its error in one line, its death and its not ending."""
    assert in_own_process(60, math.hypot, 3, 4) == 5
    with pytest.raises(InputError, match="JSONDecodeError: Expecting"):
        in_own_process(60, json.loads, "{")
    with pytest.raises(InputError, match="its process ended with status 3"):
        in_own_process(60, os._exit, 3)
    with pytest.raises(InputError, match="did not end within 1 s"):
        in_own_process(1, time.sleep, 60)


def test_fewer_images_where_not_as_many_fit(monkeypatch):
    tried = []
    real = gpu._measured

    def full(recipe, counted, images, device, work):
        tried.append(images)
        if images > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(recipe, counted, images, device, work)

    monkeypatch.setattr(gpu, "_measured", full)
    found = measured(TINY._replace(images=8))
    assert tried == [8, 4, 2]
    assert (found["images"], found["out_of_memory"]) == (2, [8, 4])


def test_tests_are_counted(tmp_path):
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="x"/></testcase>'
        '<testcase name="c"><skipped message="needs a CUDA GPU"/></testcase></testsuite></testsuites>'
    )
    assert counted(report) == {"passed": 1, "failed": ["b"], "skipped": {"needs a CUDA GPU": 1}}


def test_tests_that_fail_are_named(tmp_path, capsys, monkeypatch):
    found = {"passed": 1, "failed": ["test_b"], "skipped": {"needs two GPUs": 3}}
    monkeypatch.setattr(bench_gpu, "parts", lambda command: [Part("tests", "tests", 0, lambda left: found)])
    assert main(["bench", "--gpu", "--small", "--tests", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "Tests: 1 passed, 1 failed; 3 skipped: needs two GPUs." in printed.out
    assert "1 of the tests failed, test_b the first" in printed.err


def test_pytest_that_does_not_start(tmp_path):
    with pytest.raises(InputError, match="pytest: "):
        bench_gpu._tests(tmp_path / "none", "cpu", 60, 60)


def test_a_table_says_what_the_maker_states():
    gpu = {"name": "NVIDIA H100 80GB HBM3", "plan": "h100", "count": 2}
    row = {
        "network": "DiT-XL/2", "compiled": True, "images": 64, "step_ms": 100.0, "images_per_second": 640.0,
        "step_flops": 4e14, "sampled_per_second": 12.0, "evaluation_flops": 3e14,
        "memory": {"measured": 50e9, "predicted": 52e9},
    }  # fmt: skip
    record = {
        "gpu": gpu, "machine": {"cpu": "some CPU"}, "software": {"torch": "2.13", "ditkit": "0.1"}, "seconds": 500,
        "products": [{"bf16": 8e14}], "networks": [row], "skipped": [{"part": "ddp", "why": "no time"}],
    }  # fmt: skip
    text = "\n".join(table(record))
    assert "2 of them" in text
    assert "its maker states 989.4 in bf16" in text
    assert (
        "| DiT-XL/2, compiled | 64 | 100.0 | 640.0 | 400 | 50% | 12.00 | 300 | 38% | 50.00 | 52.00 | +4.0% |"
        in text
    )
    assert text.endswith("Left out:\n- ddp: no time")


def test_names_of_gpus_are_those_of_plans():
    assert {*NAMES.values()} == {*GPUS}
    assert known_as("NVIDIA H100 80GB HBM3") == "h100"
    assert known_as("NVIDIA H100 PCIe") is None


@pytest.fixture
def own_name(monkeypatch):
    """torchrun looks up the name of its own machine, which `no_network` cannot tell from others."""
    paths = os.environ["PYTHONPATH"].split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path != str(TESTS)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_several_processes_by_torchrun(kind, own_name):
    found = several(TINY, kind, 2, 300)
    assert (found["gpus"], found["kind"], found["images"]) == (2, kind, 4)


@pytest.mark.slow
def test_several_that_do_not_end_or_fail(own_name):
    with pytest.raises(InputError, match="did not end within 16 s"):
        several(TINY._replace(seconds=10_000.0), "ddp", 2, 16)
    with pytest.raises(InputError, match=r"torchrun: .*KeyError"):
        several(TINY._replace(network="none"), "ddp", 2, 120)


@pytest.mark.slow
def test_tests_marked_gpu_work_on_a_cpu():
    found = bench_gpu._tests(TESTS, "cpu", 600, 600)
    assert found["failed"] == []
    assert found["passed"] > 50
