"""A client's resource limits, out of the way for a moment.

What we do in a client's name for a moment must not run into a limit that what it asked for would not have met.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def raised(tid: int, kind: int, amount: int) -> Iterator[int]:
    """Raise limit `kind` (resource.RLIMIT_*) of a client by `amount`; gives the soft limit as it was.

    OSError(EPERM) when that needs CAP_SYS_RESOURCE, which we lack; ESRCH.
    """
    soft, hard = resource.prlimit(tid, kind)
    if soft == resource.RLIM_INFINITY:
        yield soft
        return
    higher = soft + amount, hard if hard == resource.RLIM_INFINITY else max(hard, soft + amount)
    resource.prlimit(tid, kind, higher)
    try:
        yield soft
    finally:
        with contextlib.suppress(OSError):  # the client may be dead, or have set its limit itself meanwhile
            if resource.prlimit(tid, kind) == higher:
                resource.prlimit(tid, kind, (soft, hard))
