"""A debugger that speaks GDB's remote protocol (the GDB manual, appendix E)."""

from __future__ import annotations

import socket

RAX, RIP = 0, 16  # amd64's register numbers; those before the flags have 8 bytes each
SOFTWARE, HARDWARE, WRITE_WATCHPOINT = 0, 1, 2
TRAPPED = "T05"  # SIGTRAP


class Debugger:
    """The debugger's end of a connection; closed when the block ends."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(60)
        self._connection = connection
        self._file = connection.makefile("rwb")

    def __enter__(self) -> Debugger:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._connection.close()

    def command(self, text: str) -> str:
        """The answer; of a command that lets the target run, when it has stopped."""
        self._file.write(b"$%s#%02x" % (text.encode(), sum(text.encode()) & 0xFF))
        self._file.flush()
        assert self._file.read(1) == b"+", "not understood"
        assert self._file.read(1) == b"$"
        answer = b""
        while (byte := self._file.read(1)) != b"#":
            assert byte, "the connection has ended"
            answer += byte
        self._file.read(2)
        self._file.write(b"+")
        self._file.flush()
        return answer.decode()

    def break_at(self, kind: int, address: int, size: int = 1) -> None:
        assert self.command(f"Z{kind},{address:x},{size}") == "OK"

    def unbreak(self, kind: int, address: int, size: int = 1) -> None:
        assert self.command(f"z{kind},{address:x},{size}") == "OK"

    def go(self) -> str:
        """Until a breakpoint: why it stopped."""
        return self.command("c")

    def step(self) -> str:
        return self.command("s")

    def register(self, number: int) -> int:
        return int.from_bytes(bytes.fromhex(self.command("g"))[8 * number :][:8], "little")

    def memory(self, address: int, size: int) -> bytes:
        return bytes.fromhex(self.command(f"m{address:x},{size:x}"))

    def set_memory(self, address: int, data: bytes) -> None:
        assert self.command(f"M{address:x},{len(data):x}:{data.hex()}") == "OK"

    def detach(self) -> None:
        assert self.command("D") == "OK"
