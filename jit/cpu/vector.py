"""128-bit values (or 64-bit ones) as lanes: one definition of an operation serves LLVM and plain Python.

An operation is written once, over Lanes with Python operators; `vector_op` turns it into a primitive over addresses,
`op(dst, a, b)`: *dst = f(*a, *b). The LLVM backend makes vector instructions of it, the Python backend lists of
unsigned integers. Intermediate values may have other lane counts and widths than 128 bits hold.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from ..raw import I32, primitive, u64


class Lanes:
    """Equal lanes of unsigned integers; what both backends build on their few primitives."""

    bits: int
    count: int

    def constant(self, value: int) -> Any:
        """The same value in every lane, shaped like self."""
        raise NotImplementedError

    def __invert__(self):
        return self ^ self.constant(-1)

    def __neg__(self):
        return self.constant(0) - self

    def where(self, mask, other):
        """Lanes of self where the mask lane is all ones, of `other` where it is 0."""
        return (self & mask) | (other & ~mask)

    def minimum(self, other, signed: bool):
        return other.where(self.greater(other, signed), self)

    def maximum(self, other, signed: bool):
        return self.where(self.greater(other, signed), other)

    def negative(self):
        """A mask of the lanes whose top bit is set."""
        return self.constant(0).greater(self, True)

    def shifted(self, counts, kind: str):
        """Each lane shifted by its own count: "left", "right" or "arithmetic"; one too large shifts all out."""
        most = self.constant(self.bits - 1)
        if kind == "arithmetic":
            return self.shift_each(counts.minimum(most, False), kind)
        return self.shift_each(counts & most, kind) & ~counts.greater(most, False)

    def clamp(self, low: int, high: int):
        """Each lane, read as signed, brought into [low, high]."""
        return self.maximum(self.constant(low), True).minimum(self.constant(high), True)

    def even(self, other=None):
        """Lanes 0, 2, 4, ... of self, then of `other`."""
        return self.pick(range(0, self.count if other is None else 2 * self.count, 2), other)

    def odd(self, other=None):
        return self.pick(range(1, self.count if other is None else 2 * self.count, 2), other)


class PlainLanes(Lanes):
    """Lanes as a list, for NUMBA_DISABLE_JIT=1."""

    def __init__(self, values: Sequence[int], bits: int) -> None:
        self.bits, self.count = bits, len(values)
        self.values = [v & ((1 << bits) - 1) for v in values]

    def _each(self, f: Callable[..., int], *others: PlainLanes) -> PlainLanes:
        return PlainLanes([f(*v) for v in zip(self.values, *(o.values for o in others), strict=True)], self.bits)

    def _signed(self) -> list[int]:
        top = 1 << (self.bits - 1)
        return [(v ^ top) - top for v in self.values]

    def constant(self, value):
        return PlainLanes([value] * self.count, self.bits)

    def __add__(self, other):
        return self._each(lambda a, b: a + b, other)

    def __sub__(self, other):
        return self._each(lambda a, b: a - b, other)

    def __mul__(self, other):
        return self._each(lambda a, b: a * b, other)

    def __and__(self, other):
        return self._each(lambda a, b: a & b, other)

    def __or__(self, other):
        return self._each(lambda a, b: a | b, other)

    def __xor__(self, other):
        return self._each(lambda a, b: a ^ b, other)

    def equal(self, other):
        return self._each(lambda a, b: -(a == b), other)

    def greater(self, other, signed):
        if signed:
            return PlainLanes([-(a > b) for a, b in zip(self._signed(), other._signed(), strict=True)], self.bits)
        return self._each(lambda a, b: -(a > b), other)

    def left(self, n):
        return self._each(lambda a: a << n)

    def right(self, n):
        return self._each(lambda a: a >> n)

    def arithmetic_right(self, n):
        return PlainLanes([v >> n for v in self._signed()], self.bits)

    def shift_each(self, counts, kind):
        values = self._signed() if kind == "arithmetic" else self.values
        pairs = zip(values, counts.values, strict=True)
        return PlainLanes([v << n if kind == "left" else v >> n for v, n in pairs], self.bits)

    def widen(self, bits, signed):
        return PlainLanes(self._signed() if signed else self.values, bits)

    def narrow(self, bits):
        return PlainLanes(self.values, bits)

    def pick(self, indices, other=None):
        pool = self.values + (other.values if other is not None else [])
        return PlainLanes([pool[i] for i in indices], self.bits)

    def cast(self, bits):
        whole = sum(v << i * self.bits for i, v in enumerate(self.values))
        return PlainLanes([whole >> i for i in range(0, self.bits * self.count, bits)], bits)


class LlvmLanes(Lanes):
    """Lanes as an LLVM vector value."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value
        self.bits, self.count = value.type.element.width, value.type.count

    def _type(self, bits: int | None = None, count: int | None = None) -> ir.VectorType:
        return ir.VectorType(ir.IntType(bits or self.bits), count or self.count)

    def _make(self, value: ir.Value) -> LlvmLanes:
        return LlvmLanes(self.builder, value)

    def _splat(self, scalar: ir.Value) -> ir.Value:
        low = scalar if self.bits == 64 else self.builder.trunc(scalar, ir.IntType(self.bits))
        one = self.builder.insert_element(ir.Constant(self._type(), ir.Undefined), low, I32(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, self.count), None))

    def _count(self, n: int | ir.Value) -> ir.Value:
        return self.constant(n).value if isinstance(n, int) else self._splat(n)

    def constant(self, value):
        return self._make(ir.Constant(self._type(), [value & ((1 << self.bits) - 1)] * self.count))

    def __add__(self, other):
        return self._make(self.builder.add(self.value, other.value))

    def __sub__(self, other):
        return self._make(self.builder.sub(self.value, other.value))

    def __mul__(self, other):
        return self._make(self.builder.mul(self.value, other.value))

    def __and__(self, other):
        return self._make(self.builder.and_(self.value, other.value))

    def __or__(self, other):
        return self._make(self.builder.or_(self.value, other.value))

    def __xor__(self, other):
        return self._make(self.builder.xor(self.value, other.value))

    def equal(self, other):
        return self._make(self.builder.sext(self.builder.icmp_signed("==", self.value, other.value), self._type()))

    def greater(self, other, signed):
        compare = self.builder.icmp_signed if signed else self.builder.icmp_unsigned
        return self._make(self.builder.sext(compare(">", self.value, other.value), self._type()))

    def left(self, n):
        return self._make(self.builder.shl(self.value, self._count(n)))

    def right(self, n):
        return self._make(self.builder.lshr(self.value, self._count(n)))

    def arithmetic_right(self, n):
        return self._make(self.builder.ashr(self.value, self._count(n)))

    def shift_each(self, counts, kind):
        shift = {"left": self.builder.shl, "right": self.builder.lshr, "arithmetic": self.builder.ashr}[kind]
        return self._make(shift(self.value, counts.value))

    def widen(self, bits, signed):
        extend = self.builder.sext if signed else self.builder.zext
        return self._make(extend(self.value, self._type(bits)))

    def narrow(self, bits):
        return self._make(self.builder.trunc(self.value, self._type(bits)))

    def pick(self, indices, other=None):
        mask = ir.Constant(ir.VectorType(I32, len(indices)), list(indices))
        return self._make(self.builder.shuffle_vector(self.value, (other or self).value, mask))

    def cast(self, bits):
        return self._make(self.builder.bitcast(self.value, self._type(bits, self.bits * self.count // bits)))


def _plain_load(address: int, bits: int, size: int) -> PlainLanes:
    whole = int.from_bytes(ctypes.string_at(address, size // 8), "little")
    return PlainLanes([whole >> i for i in range(0, size, bits)], bits)


def _plain_store(address: int, lanes: PlainLanes, size: int) -> None:
    whole = lanes.cast(size).values[0]
    ctypes.memmove(address, whole.to_bytes(size // 8, "little"), size // 8)


def vector_op(name: str, bits: int, body: Callable, scalar: bool = False, size: int = 128) -> Callable:
    """The primitive `name(dst, a, b)`: *dst = body(*a, *b) over lanes of `bits`; b is a number itself if `scalar`.

    size: bits of each operand.
    """

    def plain(dst: int, a: int, b: int) -> None:
        second = u64(b) if scalar else _plain_load(b, bits, size)
        _plain_store(dst, body(_plain_load(a, bits, size), second), size)

    def generate(builder, dst, a, b):
        kind = ir.VectorType(ir.IntType(bits), size // bits)

        def load(address):
            return LlvmLanes(builder, builder.load(builder.inttoptr(address, kind.as_pointer()), align=8))

        result = body(load(a), b if scalar else load(b))
        builder.store(result.value, builder.inttoptr(dst, result.value.type.as_pointer()), align=8)

    generate.__name__ = name
    return primitive(3, plain, result=False)(generate)
