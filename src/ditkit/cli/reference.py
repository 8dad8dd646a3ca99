"""`ditkit reference DATA --out FILE`: a reference's statistics, computed once."""

from pathlib import Path
from typing import Annotated

from ditkit.cli.evaluate import find_reference
from ditkit.cli.options import check_new
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.cli.verbs import to_type
from ditkit.config import Section
from ditkit.device import DeviceName, pick_device
from ditkit.errors import InputError
from ditkit.evaluation import save_statistics
from ditkit.scoring import rulers


class ReferenceCommand(Section):
    """Compute the statistics of a reference, for --reference FILE: mean and covariance of all
    its images, in ADM's names, and the features of 10,000 of them."""

    data: Annotated[str, Positional]
    """A data set's name (its training split), or a folder of images."""
    out: Path
    """The .npz file to write."""
    replace: bool = False
    """Write over a file that is there."""
    features: str = "classifier"
    """The network, as in `ditkit eval`."""
    size: int | None = None
    """Crop a folder's images to squares of this size, as ADM does."""
    device: DeviceName = "auto"
    """Where to run the network."""


def run(argv: list[str]) -> None:
    command = parse(ReferenceCommand, argv, "reference")
    if command.out.suffix != ".npz":
        raise InputError(f"--out {command.out}: give a file that ends in .npz")
    check_new(command.out, command.replace)
    reference = find_reference(command.data, None, command.size, flag=None)
    if isinstance(reference, Path):
        raise InputError(
            f"{reference} is a file of statistics already; give a data set or a folder of images"
        )
    (ruler,) = rulers([command.features], reference, pick_device(command.device))
    save_statistics(command.out, ruler.reference)
    found = ruler.reference
    print(
        f"{command.out}: {found.count:,} images of {ruler.name}, {found.network} {found.network_hash[:12]}, "
        f"{ruler.network.dim} features, hash {found.digest[:12]}\nnext: "
        f"{to_type('eval', 'WHAT', '--reference', command.out, '--features', command.features)}"
    )
