"""What several tests need to parse a command as its verb does, without running it."""

from ditkit.cli import (
    VERBS,
    average,
    bench,
    bench_backbones,
    bench_cost,
    bench_data,
    bench_gpu,
    bench_levels,
    bench_parallel,
    bench_sizes,
    bench_statistics,
    bench_study,
    classifier,
    compare,
    convert,
    demo,
    evaluate,
    likelihood,
    listing,
    reference,
    sample,
    study,
)
from ditkit.cli.encode import parse_encode
from ditkit.cli.info import parse_info
from ditkit.cli.kinds import data_section
from ditkit.cli.parsing import parse
from ditkit.cli.plan import parse_plan
from ditkit.cli.train import parse_train
from ditkit.cli.train_codec import parse_train_codec

OWN = {
    "train": parse_train,
    "info": parse_info,
    "plan": parse_plan,
    "encode": parse_encode,
    "train-codec": parse_train_codec,
}
SECTIONS = {
    "sample": sample.SampleCommand,
    "eval": evaluate.EvalCommand,
    "compare": compare.CompareCommand,
    "likelihood": likelihood.LikelihoodCommand,
    "reference": reference.ReferenceCommand,
    "study": study.StudyCommand,
    "list": listing.ListCommand,
    "bench": bench.BenchCommand,
    "average": average.AverageCommand,
    "convert": convert.ConvertCommand,
    "demo": demo.DemoCommand,
    "classifier": classifier.ClassifierCommand,
}

BENCHES = {
    "--backbones": bench_backbones.BackboneBenchCommand,
    "--levels": bench_levels.LevelsBenchCommand,
    "--sizes": bench_sizes.SizesBenchCommand,
    "--data": bench_data.DataBenchCommand,
    "--cost": bench_cost.CostCommand,
    "--statistics": bench_statistics.StatisticsCommand,
    "--gpu": bench_gpu.GpuBenchCommand,
    "--parallel": bench_parallel.ParallelBenchCommand,
    "--study": bench_study.StudyBenchCommand,
}


def understood(words):
    """The section of a command, `VERB ...`. InputError for what is not understood."""
    verb, *rest = words
    if "--plugin" in rest:  # which is taken away before
        place = rest.index("--plugin")
        del rest[place : place + 2]
    assert verb in VERBS
    if verb in OWN:
        return OWN[verb](rest)
    if verb == "bench":
        for flag, section in BENCHES.items():
            if flag in rest:
                return parse(
                    section, [word for word in rest if word != flag or flag not in bench.OTHERS], verb
                )
    default = None
    if verb == "classifier":
        data, *rest = rest
        default = classifier.ClassifierCommand(data=data_section(data))
    return parse(SECTIONS[verb], rest, verb, default=default)
