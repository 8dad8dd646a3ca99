"""What the machine refuses, as opposed to defects: which errors of the system these are, and what helps."""

import errno
import os

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
}


def refusal(error: OSError) -> str | None:
    """The file, the reason and the remedy in one line; None for an error that is a defect."""
    if error.errno not in REMEDIES:
        return None
    reason, what = os.strerror(error.errno), error.filename2 or error.filename or "writing"
    return f"{what}: {reason[0].lower()}{reason[1:]}; {REMEDIES[error.errno]}"
