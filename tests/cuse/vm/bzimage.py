"""The ELF image inside a bzImage (Documentation/arch/x86/boot.rst).

QEMU boots an uncompressed vmlinux through its PVH entry point, which spares the emulated CPU the decompression: about
a second of three.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess

_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_PAYLOAD_OFFSET = 0x248  # and payload_length after it


def extract_vmlinux(image: bytes) -> bytes:
    if image[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise ValueError("not a bzImage")
    # Offsets count from the end of the real-mode part: the boot sector and setup_sects (0 means 4) sectors.
    protected_mode = ((image[_SETUP_SECTS] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_OFFSET)
    payload = image[protected_mode + offset :][:length]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the uncompressed size, not part of the zstd frame.
        vmlinux = subprocess.run(["zstd", "-dc"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    elif payload.startswith(b"\xfd7zXZ\0"):
        vmlinux = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        vmlinux = gzip.decompress(payload[:-4])
    else:
        raise ValueError(f"unknown compression of the kernel: {payload[:6].hex()}")
    if not vmlinux.startswith(b"\x7fELF"):
        raise ValueError("the payload is no ELF image")
    return vmlinux
