"""Processor states for a form: registers that address what is interesting, operands at the corners of every width."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from . import layout as L
from .forms import Form, Operand

U64 = np.uint64
ARITHMETIC, TF, DF, AC = 0x8D5, 0x100, 0x400, 0x40000
MXCSR_DEFAULT, FCW_DEFAULT = 0x1F80, 0x37F

_CORNERS = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 0x55, 0xAA, 0x99, 0x9A]
for _width in (8, 16, 32, 64):
    _top = 1 << (_width - 1)
    _CORNERS += [_top - 1, _top, _top + 1, 2 * _top - 1, 2 * _top - 2]
CORNERS = np.array(_CORNERS, U64)


def _float_corners(kind: str, sizes: tuple[int, int]) -> np.ndarray:
    """Bit patterns: zeros, denormals, the edges of the normal range, infinities, quiet and signalling NaNs, values near
    the edges of the integer types, ties."""
    exponent_bits, fraction_bits = sizes
    ones, top = (1 << exponent_bits) - 1, 1 << (fraction_bits - 1)
    found = [0, 1, 2, top, 2 * top - 1, 1 << fraction_bits, (ones << fraction_bits) - 1, (ones - 1) << fraction_bits]
    found += [ones << fraction_bits | low for low in (0, 1, top - 1, top, top | 1, 2 * top - 1)]
    values = [1.0, 2.0, 0.5, 1.5, 2.5, 3.0, 10.0, 0.1, 1 / 3, 127.5, 128.0, 255.5, 32767.5, 32768.0, 65535.5, 1e-3, 7.0]
    values += [2.0**31 - 1, 2.0**31, 2.0**31 - 0.5, 2.0**32, 2.0**63, 2.0**64, 2.0**52 + 0.5, 1e30, 1e-30]
    found += [int.from_bytes(struct.pack(kind, value), "little") for value in values]
    sign = 1 << (exponent_bits + fraction_bits)
    return np.array(found + [value | sign for value in found], U64)


SINGLES, DOUBLES = _float_corners("<f", (8, 23)), _float_corners("<d", (11, 52))


def words(rng: np.random.Generator, count: int) -> np.ndarray:
    """64-bit integers: corners of every width, most with other bits above; small ones; any."""
    found = rng.choice(CORNERS, count)
    random = rng.integers(0, 1 << 64, count, U64)
    above = rng.choice(np.array([0, 8, 16, 32], U64), count)
    mask = np.where(above == 0, U64(0), ~U64(0) << above)
    found = found & ~mask | random & mask
    return np.where(rng.integers(0, 4, count) == 0, random, found)


def lanes(rng: np.random.Generator, count: int) -> np.ndarray:
    """64-bit pieces of vectors: integers, two singles, or a double each."""
    singles = rng.choice(SINGLES, count) | rng.choice(SINGLES, count) << U64(32)
    doubles = rng.choice(DOUBLES, count)
    nearby = doubles + rng.integers(0, 4, count, U64)
    kind = rng.integers(0, 4, count)
    return np.select([kind == 0, kind == 1, kind == 2], [words(rng, count), singles, doubles], nearby)


def _frame(rng: np.random.Generator, size: int) -> bytes:
    """Instruction pointer, CS, flags, stack pointer, SS, as IRET pops them; a far pointer begins it."""
    code, stack = (int(rng.choice(L.SELECTORS)) for _ in range(2))
    if rng.random() < 0.7:
        code = int(rng.choice([L.CODE16, L.USER32_CS, L.USER64_CS, 0x2F, 0x57]))
    if rng.random() < 0.7:
        stack = int(rng.choice([L.USER_DS, L.DATA16, 0x17, 0x1F, 0x37, 0x47]))
    target = int(rng.integers(0, 0x2080)) + (0 if code & 4 else L.CODE)
    top = int(rng.integers(0, L.PAGE * 4)) + (0 if stack & 4 and stack != 0x37 else L.DATA)
    flags = int(rng.integers(0, 1 << 22)) & ~0x3000 | TF | 0x202  # IOPL is not a process's
    elements = [target, code, flags, top, stack]
    if rng.random() < 0.2:
        elements[int(rng.choice([0, 3]))] = int(words(rng, 1)[0])
    return b"".join((element & (1 << 8 * size) - 1).to_bytes(size, "little") for element in elements)


def _image(rng: np.random.Generator) -> np.ndarray:
    """What XRSTOR and FXRSTOR load: 832 bytes."""
    made = np.zeros(832, np.uint8)
    halves, doubles = made.view(np.uint16), made.view(np.uint64)
    state = np.zeros(1, L.STATE)
    _x87(rng, state)
    halves[:3] = [state["fcw"][0], state["fsw"][0], state["ftw"][0]]
    made.view(np.uint32)[6] = rng.choice(np.array([MXCSR_DEFAULT, 0x1F80, 0xFFFF, 0, 0x5678, 0x3FF80], np.uint32))
    doubles[4:20] = state["st"].tobytes() and np.frombuffer(state["st"].tobytes(), np.uint64)
    doubles[20:52] = lanes(rng, 32)
    doubles[72:104] = lanes(rng, 32)
    doubles[64] = rng.integers(0, 8)  # XSTATE_BV
    if rng.random() < 0.5:
        doubles[65] = 1 << 63 | int(rng.integers(0, 8)) | int(doubles[64])  # XCOMP_BV
    if rng.random() < 0.1:
        doubles[rng.choice([64, 65, 66, 70])] |= U64(1 << 62)
    return made


def data(rng: np.random.Generator) -> np.ndarray:
    """Contents of the data pages: runs of lanes, at odd places too. The page to read is the same every time."""
    fixed = np.random.default_rng(1)
    made = [lanes(generator, L.PAGE // 8) for generator in (rng, rng, fixed)]
    made = [np.roll(page.view(np.uint8), -shift) for page, shift in zip(made, (0, 3, 0), strict=True)]
    everything = np.concatenate(made)
    for number in range(L.FRAME_COUNT):
        frame = _frame(rng, L.FRAME_SIZES[number % len(L.FRAME_SIZES)])
        at = L.FRAMES - L.WRITABLE + 64 * number
        everything[at : at + len(frame)] = np.frombuffer(frame, np.uint8)
    for place in L.IMAGES:
        image = _image(fixed if place >= L.READABLE else rng)
        everything[place - L.WRITABLE :][: len(image)] = image
    return everything


def _targets(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Linear addresses for a memory operand."""
    inside = L.WRITABLE + rng.integers(0, L.WRITABLE_PAGES * L.PAGE - size, count)
    aligned = inside & -max(size, 1) if size & (size - 1) == 0 else inside & -64
    edges = np.array([L.WRITABLE + L.PAGE, L.READABLE, L.WRITABLE, L.READABLE + L.PAGE])
    edge = rng.choice(edges, count, p=[0.7, 0.1, 0.1, 0.1]) - rng.integers(0, size + 1, count)
    fixed = L.READABLE + rng.integers(0, L.PAGE - size, count)
    far = rng.choice(np.array([0, 0x7FFF_FFFF_FFF8, 0x8000_0000_0000, -1, -8, -0x8000_0000_0000, 1 << 62]), count)
    kind = rng.random(count)
    limits = [0.5, 0.75, 0.9, 0.96]
    return np.select([kind < limit for limit in limits], [aligned, inside, edge, fixed], far).astype(np.int64).view(U64)


POINTERS = ("call", "jmp", "les", "lds", "lfs", "lgs", "lss")  # if their operand is one
RETURNS = ("retf", "iret", "iretd", "iretq")
SELECTING = ("lar", "lsl", "verr", "verw")


def _special_targets(rng: np.random.Generator, form: Form, operand: Operand, targets: np.ndarray) -> np.ndarray:
    """Some of the addresses replaced by where there is what the instruction looks for."""
    count, special = len(targets), None
    if form.mnemonic.startswith(("xrstor", "fxrstor")):
        special = rng.choice(np.array(L.IMAGES, U64), count)
    elif form.saves:
        special = L.WRITABLE + 64 * rng.integers(0, 2 * L.PAGE // 64 - 12, count).astype(U64)
    elif form.mnemonic in RETURNS or (form.mnemonic in POINTERS and operand.size in (4, 6, 10)):
        special = L.FRAMES + 64 * rng.integers(0, L.FRAME_COUNT, count).astype(U64)
    elif form.mnemonic in SELECTING:
        numbers = rng.integers(0, L.FRAME_COUNT, count)
        special = L.FRAMES + 64 * numbers.astype(U64) + np.array(L.FRAME_SIZES, U64)[numbers % len(L.FRAME_SIZES)]
    return targets if special is None else np.where(rng.random(count) < 0.8, special, targets)


def _steer(rng: np.random.Generator, states: np.ndarray, form: Form, operand: Operand, exact: bool) -> None:
    """Set the address registers so that the operand lies at a target."""
    bits = form.bits
    count = len(states)
    index, scale, displacement = operand.index, operand.scale, U64(operand.displacement & (1 << 64) - 1)
    if operand.vector_index:
        states["vec"] &= U64(0x0000_00FF_0000_00FF)
        index = -1
    if operand.base < 0 and index < 0:
        return
    target = _special_targets(rng, form, operand, _targets(rng, count, operand.size))
    target = target - L.bases(states, bits, operand.segment) - displacement
    mask = U64((1 << operand.address_size) - 1)
    if operand.base < 0 or operand.base == index:
        register, value = index, target // U64(scale + (operand.base == index))
    else:
        register = operand.base
        if index >= 0:
            if operand.address_size == 16:
                states["gpr"][:, index] = rng.integers(0, 0x400, count)
            target = target - states["gpr"][:, index] * U64(scale)
        value = target
    if register == L.RSP and not exact:
        value &= ~U64(7)
    above = rng.integers(0, 1 << 64, count, U64) & ~mask if bits == 64 and operand.address_size == 32 else U64(0)
    keep = rng.random(count) < 0.03
    states["gpr"][:, register] = np.where(keep, states["gpr"][:, register], value & mask | above)


def _segments(rng: np.random.Generator, states: np.ndarray, bits: int) -> None:
    count = len(states)
    if bits == 64:
        states["segment"][:] = [0, L.USER64_CS, L.USER_DS, 0, 0, 0]
        bases = np.array([0, L.DATA, L.WRITABLE + 5, 0x7FFF_0000_0000], U64)
        states["fs_base"], states["gs_base"] = rng.choice(bases, count), rng.choice(bases, count)
        return
    usual = L.USER_DS if bits == 32 else L.DATA16
    selectors = np.array([4 | 3 | n << 3 for n in range(len(L.LDT))], np.uint16)
    loadable = [s for s, e in zip(selectors, L.LDT, strict=True) if e.present and not (e.contents == 2 and e.read_only)]
    loadable = np.array([*loadable, 0, L.USER_DS], np.uint16)
    stacks = [s for s, e in zip(selectors, L.LDT, strict=True) if e.present and e.contents < 2 and not e.read_only]
    for segment in (L.ES, L.DS, L.FS, L.GS):
        states["segment"][:, segment] = np.where(rng.random(count) < 0.8, usual, rng.choice(loadable, count))
    states["segment"][:, L.SS] = np.where(rng.random(count) < 0.85, usual, rng.choice(np.array(stacks), count))
    code = [L.USER32_CS] if bits == 32 else [L.CODE16, L.CODE16, L.CODE16, 0x2F]
    states["segment"][:, L.CS] = rng.choice(np.array(code), count)


def _x87(rng: np.random.Generator, states: np.ndarray) -> None:
    count = len(states)
    usual = rng.random(count) < 0.6
    words = rng.integers(0, 0x1000, count)
    states["fcw"] = np.where(usual, FCW_DEFAULT, words & 0xF3F | 0x40)
    status = rng.integers(0, 0x10000, count) & 0x7F7F  # all but ES and B
    status = np.where(rng.random(count) < 0.8, status & 0x7F00, status)
    pending = status & ~states["fcw"] & 0x3F != 0
    states["fsw"] = status | np.where(pending, 0x8080, 0)
    states["ftw"] = rng.choice(np.array([0xFF, 0xFF, 0, 0x0F, 0xAA, 0x80]), count)
    fractions = lanes(rng, count * 8).reshape(count, 8)
    corners = np.array([0, 1, 0x3FFE, 0x3FFF, 0x4000, 0x401E, 0x403E, 0x7FFE, 0x7FFF, 0x3F80, 0x3BFF, 0x43FF])
    exponents = rng.choice(corners, (count, 8)) | rng.integers(0, 2, (count, 8)) << 15
    integers = rng.choice(np.array([0, 1 << 63, 1 << 62, 3 << 62, (1 << 64) - 1, 1, (1 << 63) + 1], U64), (count, 8))
    fractions = np.where(rng.random((count, 8)) < 0.6, integers, fractions)
    normal = (exponents & 0x7FFF != 0) & (rng.random((count, 8)) < 0.9)  # others are what the 387 made unsupported
    fractions = np.where(normal, fractions | U64(1 << 63), fractions)
    states["st"][:, :, :8] = fractions.view(np.uint8).reshape(count, 8, 8)
    states["st"][:, :, 8:10] = exponents.astype("<u2").view(np.uint8).reshape(count, 8, 2)


def _state(rng: np.random.Generator, form: Form, states: np.ndarray) -> None:
    count = len(states)
    if form.bits != 64:
        states["gpr"] &= U64(0xFFFF_FFFF)
        states["gpr"][:, 8:] = 0
    _segments(rng, states, form.bits)
    if form.bits != 64 and form.name.startswith("call_far"):
        states["segment"][:, L.SS] = L.USER_DS  # from a 16-bit stack to 64-bit code: this host does not come back
    if form.mnemonic in SELECTING:
        chosen = rng.choice(np.array(L.SELECTORS, U64), (count, 16))
        states["gpr"] = np.where(rng.random((count, 16)) < 0.7, states["gpr"] & ~U64(0xFFFF) | chosen, states["gpr"])
    for operand in form.operands:
        # The stack pointer is steered first: an operand that uses it has the last word.
        if operand.base == L.RSP and operand.index < 0:
            _steer(rng, states, form, operand, exact=form.mnemonic in RETURNS)
    for operand in form.operands:
        if operand.base != L.RSP or operand.index >= 0:
            _steer(rng, states, form, operand, exact=True)
    if form.repeats:
        size = max((operand.address_size for operand in form.operands), default=form.bits)
        mask = U64((1 << size) - 1)
        counts = rng.choice(np.array([0, 1, 2, 3, 5, 17], U64), count)
        states["gpr"][:, 1] = np.where(rng.random(count) < 0.02, U64(600), counts) | states["gpr"][:, 1] & ~mask
        states["flags"] ^= np.where(rng.random(count) < 0.4, U64(DF), U64(0))
    if form.mnemonic.startswith(("xsave", "xrstor")):  # components that the host has and ours has not: bits 5 to 7
        states["gpr"][:, 0] &= ~U64(0xE0)
    if form.saves and form.operands:
        place = form.operands[0].address(states, form.bits) - U64(L.WRITABLE)
        states["image"] = np.where(place < 2 * L.PAGE - 64, place + U64(1), 0)
    states["repeat"] = form.repeats
    states["rip"] = form.rip
    states["length"] = len(form.code)
    states["code"][:, : len(form.code)] = np.frombuffer(form.code, np.uint8)


def make(rng: np.random.Generator, forms: Sequence[Form], each: int) -> np.ndarray:
    """`each` states for every form, in order."""
    count = len(forms) * each
    states = np.zeros(count, L.STATE)
    states["gpr"] = words(rng, count * 16).reshape(count, 16)
    flags = rng.integers(0, 1 << 12, count, U64) & U64(ARITHMETIC) | U64(0x202)
    flags |= np.where(rng.random(count) < 0.1, U64(DF), U64(0)) | np.where(rng.random(count) < 0.1, U64(AC), U64(0))
    states["flags"] = flags
    states["vec"] = lanes(rng, count * 64).reshape(count, 16, 4)
    states["mxcsr"] = np.where(rng.random(count) < 0.6, MXCSR_DEFAULT, rng.integers(0, 0x10000, count))
    _x87(rng, states)
    for number, form in enumerate(forms):
        _state(rng, form, states[number * each : (number + 1) * each])
    return states
