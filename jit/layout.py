"""Raw memory blocks described by field tables: a field is a byte offset that numba sees as a constant."""


class Layout:
    """Hands out offsets in order; `size` is what has been handed out, rounded up to 64 bytes."""

    def __init__(self) -> None:
        self._next = 0
        self.fields: dict[str, tuple[int, int]] = {}

    def bytes(self, size: int, align: int = 8) -> int:
        """Offset of a field of `size` bytes."""
        offset = (self._next + align - 1) & -align
        self._next = offset + size
        return offset

    def u64(self, count: int = 1) -> int:
        """Offset of `count` 64-bit words."""
        return self.bytes(8 * count)

    @property
    def size(self) -> int:
        return (self._next + 63) & -64
