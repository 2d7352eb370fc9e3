"""What carries a device. A module of its own, so that commands which make none need not load what does."""

from enum import StrEnum


class Transport(StrEnum):
    AUTO = "auto"
    CUSE = "cuse"
    FUSE = "fuse"
    SECCOMP = "seccomp"
