"""What several tests need to parse a command as its verb does, without running it."""

from ditkit.cli import (
    VERBS,
    bench,
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
from ditkit.cli.parsing import data_section, parse
from ditkit.cli.train import parse_train
from ditkit.cli.train_codec import parse_train_codec

OWN = {"train": parse_train, "info": parse_info, "encode": parse_encode, "train-codec": parse_train_codec}
SECTIONS = {
    "sample": sample.SampleCommand,
    "eval": evaluate.EvalCommand,
    "compare": compare.CompareCommand,
    "likelihood": likelihood.LikelihoodCommand,
    "reference": reference.ReferenceCommand,
    "study": study.StudyCommand,
    "list": listing.ListCommand,
    "bench": bench.BenchCommand,
    "convert": convert.ConvertCommand,
    "demo": demo.DemoCommand,
    "classifier": classifier.ClassifierCommand,
}


def understood(words):
    """The section of a command, `VERB ...`. InputError for what is not understood."""
    verb, *rest = words
    assert verb in VERBS
    if verb in OWN:
        return OWN[verb](rest)
    default = None
    if verb == "classifier":
        data, *rest = rest
        default = classifier.ClassifierCommand(data=data_section(data))
    return parse(SECTIONS[verb], rest, verb, default=default)
