"""What failures are expected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def raises_errno(*numbers: int) -> Iterator[None]:
    """Fail unless an OSError with one of these numbers comes out of the block."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        yield
    assert caught.value.errno in numbers
