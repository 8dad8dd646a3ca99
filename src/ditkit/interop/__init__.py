"""Foreign checkpoints: official DiT, SiT, U-DiT and MDM files, diffusers' folders; nothing in them is ever run.

tensors.py    reads files without running what they name
official.py   the released DiT's and SiT's names <-> ours
udit.py       the released U-DiT's names <-> ours
mdm.py        the released MDM's names <-> ours
diffusers.py  diffusers' names <-> ours
"""

from pathlib import Path

from ditkit.errors import InputError
from ditkit.interop.diffusers import find_diffusers, read_diffusers, write_diffusers
from ditkit.interop.imported import Imported
from ditkit.interop.official import Kind, read_official, write_official

KINDS = ("DiT", "SiT")


def read_foreign(path: Path, kind: Kind | None = None, heads: int | None = None) -> Imported | None:
    """The foreign model at `path`: any file, or a folder of diffusers'; None when it is neither.

    `kind` and `heads` as in `read_official`. Raises InputError: it cannot be read, or does not fit.
    """
    if kind not in (None, *KINDS):
        raise InputError(f"`kind` {kind!r}: choose one of: {', '.join(KINDS)}")
    if path.is_file():
        return read_official(path, kind, heads)
    transformer = find_diffusers(path)
    if transformer is None:
        return None
    if heads is not None:
        raise InputError(f"`heads` {heads}: {transformer / 'config.json'} says how many; leave it out")
    return read_diffusers(path, transformer, kind)


__all__ = [
    "KINDS",
    "Imported",
    "Kind",
    "read_foreign",
    "write_diffusers",
    "write_official",
]
