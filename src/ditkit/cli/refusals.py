"""What the machine refuses, as opposed to defects: which errors these are, and what helps."""

import errno
import os

from ditkit.errors import is_defect

ELSEWHERE = "give another place"
RIGHT = f"{ELSEWHERE}, or ask its owner for the right"
REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "allow larger files (ulimit -f), or give a place that takes them",
    errno.EROFS: ELSEWHERE,
    errno.EACCES: RIGHT,
    errno.EPERM: RIGHT,
    errno.ENOTDIR: ELSEWHERE,
    errno.EISDIR: ELSEWHERE,
    errno.EEXIST: ELSEWHERE,
    errno.ENOTEMPTY: ELSEWHERE,
    errno.ELOOP: ELSEWHERE,
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "look at the disk",
    errno.ESTALE: "look at the disk",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EAGAIN: "allow more processes (ulimit -u)",
}
NO_MEMORY = (  # of torch, on a CPU and elsewhere, of oneDNN, of safetensors, and of what starts threads
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "can't start new thread",
    "could not create a primitive", "integer multiplication overflow", "storage size calculation overflowed",
)  # fmt: skip
SMALLER = "give smaller batches (--batch, --train.micro-batch) or smaller images"


def refusal(error: BaseException) -> str | None:
    """The file or the memory, the reason and the remedy in one line; None for an error that is a defect."""
    tidying = None if is_defect(error) else error.__context__  # where tidying up failed, too
    if _of_memory(error) or _of_memory(tidying):
        return f"there is not enough memory for this; {SMALLER}"
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return None
    reason, what = os.strerror(error.errno), error.filename2 or error.filename or "writing"
    return f"{what}: {reason[0].lower()}{reason[1:]}; {REMEDIES[error.errno]}"


def _of_memory(error: BaseException | None) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return any(words in str(error).lower() for words in NO_MEMORY)
    return isinstance(error, MemoryError)
