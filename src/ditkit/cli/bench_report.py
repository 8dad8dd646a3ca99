"""The tables of `ditkit bench`, from its record."""

from collections.abc import Iterator
from itertools import groupby

from ditkit.benchmarks.suite import STEP

MB = 1e6


def report(record: dict) -> Iterator[str]:
    """Its lines: a table for each task, where a step's time goes, and what was measured where."""
    for task, rows in groupby(record["rows"], key=lambda row: row["task"]):
        yield from _table(task, list(rows), record["memory"] if task == STEP else {})
    if record["rows"][0]["against"]:
        yield "×: how many times as fast, by the medians (by the median of the rounds' ratios)"
    alone = " and ".join(f"{found['gflops']:,.0f} in {name}" for name, found in record["gemm"].items())
    yield f"GEMM: products alone, of the shapes of the blocks' layers, in the same rounds: {alone} GFLOP/s"
    if record["memory"]:
        yield "memory: the peak of a step (as `ditkit info` predicts it), of which the heap wastes a part"
    yield "first call: compiles from an empty cache, by a compiler that was started before\n"
    yield from _shares(record)
    yield ""
    yield from _protocol(record)


def _table(task: str, rows: list[dict], memory: dict) -> Iterator[str]:
    against = "".join(f"{'× ' + name:>15s}" for name in rows[0]["against"])
    yield f"{task:24s}{'ms':>9s}{against}{'GFLOP/s':>10s}{'of GEMM':>9s}{'memory, MB' if memory else '':>16s}{'first call, s':>15s}"
    for row in rows:
        ratios = (
            f"{found['ratio']:.2f} ({found['ratio_by_round']:.2f})" for found in row["against"].values()
        )
        against = "".join(f"{words:>15s}" for words in ratios)
        yield (
            f"{row['name']:24s}{row['ms']:9.1f}{against}{row['gflops']:10,.0f}{row['share_of_gemm']:9.0%}"
            f"{_memory(memory.get(row['name'])):>16s}{row['first_call_s']:15.1f}"
        )
    yield ""


def _memory(found: dict | None) -> str:
    if found is None:
        return ""
    predicted = f" ({found['predicted'] / MB:,.0f})" if found["predicted"] else ""
    return f"{found['measured'] / MB:,.0f}{predicted}"


def _shares(record: dict) -> Iterator[str]:
    """Where a step's time goes, of ditkit's."""
    steps = {row["name"]: row["ms"] for row in record["rows"] if row["task"] == STEP}
    names = list(record["step_shares"])
    yield f"{'where a step goes':40s}" + "".join(f"{name + ', ms':>24s}" for name in names)
    for group in record["step_shares"][names[0]]:
        found = ((share := record["step_shares"][name][group], share * steps[name]) for name in names)
        yield f"{group:40s}" + "".join(f"{ms:17.1f}{share:7.1%}" for share, ms in found)


def _protocol(record: dict) -> Iterator[str]:
    counts = ", ".join(f"{name} {count:,}" for name, count in record["parameters"].items())
    there, versions = record["machine"], record["software"]
    yield f"{record['network']}, batch {record['batch']}, {record['precision']}; parameters: {counts}"
    if "diffusers" in record["parameters"]:
        yield "(every block of diffusers' network has its own embeddings of time and class)"
    named = [f"{name} {versions[name]}" for name in ("torch", "diffusers") if name in versions]
    yield (
        f"{there['cpu']}, {there['threads']} threads, {', '.join(named)}, "
        f"ditkit {versions.get('commit', versions['ditkit'])}"
    )
