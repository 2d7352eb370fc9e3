"""Machine primitives for numba code over raw addresses.

Every machine word in compiled code is an int64: numba turns a mix of int64 and uint64 into float64, so unsigned
meaning lives in the operation (`ult`, `lshr`, `udiv`) and never in a type. Addresses are int64 as well.

Each primitive has two forms, chosen once at import: LLVM code for compiled callers, and plain Python over ctypes for
NUMBA_DISABLE_JIT=1, where the same functions can be stepped through and measured for coverage.
"""

import ctypes
from collections.abc import Callable

import numba
from llvmlite import binding, ir
from numba import config, types
from numba.cpython import numbers
from numba.extending import intrinsic

I1, I8, I16, I32, I64, I128 = (ir.IntType(n) for n in (1, 8, 16, 32, 64, 128))
VOID = ir.VoidType()
PLAIN = bool(config.DISABLE_JIT)


# Words wrap. numba tells LLVM that signed arithmetic never overflows (the flag `nsw`), so that a sum, difference or
# product beyond int64 is poison and what depends on it is optimized away. It has no option for that.
if not callable(getattr(numbers, "_int_arith_flags", None)):
    raise ImportError(f"numba {numba.__version__}: integer arithmetic cannot be made to wrap")
numbers._int_arith_flags = lambda returned: []


def s64(value: int) -> int:
    """The int64 with the same low 64 bits."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >> 63 else value


def u64(value: int) -> int:
    """The unsigned reading of a word, for Python code."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


def primitive(arity: int, plain: Callable, result: bool = True) -> Callable:
    """Make a primitive of `arity` int64 arguments from a code generator `gen(builder, *values) -> value`."""

    def decorate(gen: Callable):
        if PLAIN:
            return plain
        returns = types.int64 if result else types.void
        signature = returns(*([types.int64] * arity))

        def codegen(context, builder, sig, args):
            value = gen(builder, *args)
            return value if result else context.get_dummy_value()

        names = ", ".join(f"a{i}" for i in range(arity))
        scope = {"signature": signature, "codegen": codegen}
        exec(f"def {gen.__name__}(typingctx, {names}):\n    return signature, codegen\n", scope)
        return intrinsic(scope[gen.__name__])

    return decorate


# Memory -----

_C = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_int64}


def _pointer(builder, address, bits: int):
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _make_load(bits: int, signed: bool):
    def load(builder, address):
        value = builder.load(_pointer(builder, address, bits), align=1)
        if bits == 64:
            return value
        return builder.sext(value, I64) if signed else builder.zext(value, I64)

    def plain(address: int) -> int:
        value = _C[bits].from_address(address).value
        return value - (1 << bits) if signed and value >> (bits - 1) & 1 and bits < 64 else value

    load.__name__ = f"{'s' if signed else ''}load{bits}"
    return primitive(1, plain)(load)


def _make_store(bits: int):
    def store(builder, address, value):
        low = value if bits == 64 else builder.trunc(value, ir.IntType(bits))
        builder.store(low, _pointer(builder, address, bits), align=1)

    def plain(address: int, value: int) -> None:
        _C[bits].from_address(address).value = s64(value) if bits == 64 else value & ((1 << bits) - 1)

    store.__name__ = f"store{bits}"
    return primitive(2, plain, result=False)(store)


load8, load16, load32, load64 = (_make_load(n, False) for n in (8, 16, 32, 64))
sload8, sload16, sload32 = (_make_load(n, True) for n in (8, 16, 32))
store8, store16, store32, store64 = (_make_store(n) for n in (8, 16, 32, 64))


@primitive(3, lambda dst, src, n: ctypes.memmove(dst, src, n) and None, result=False)
def memcpy(builder, dst, src, n):
    p8 = I8.as_pointer()
    fn = builder.module.declare_intrinsic("llvm.memmove", [p8, p8, I64])
    builder.call(fn, [builder.inttoptr(dst, p8), builder.inttoptr(src, p8), n, I1(0)])


@primitive(3, lambda dst, byte, n: ctypes.memset(dst, byte & 255, n) and None, result=False)
def memset(builder, dst, byte, n):
    p8 = I8.as_pointer()
    fn = builder.module.declare_intrinsic("llvm.memset", [p8, I64])
    builder.call(fn, [builder.inttoptr(dst, p8), builder.trunc(byte, I8), n, I1(0)])


# Atomics (guest atomics are host atomics) ----------


def _make_cas(bits: int):
    def cas(builder, address, old, new):
        t = ir.IntType(bits)
        narrow = (lambda v: v) if bits == 64 else (lambda v: builder.trunc(v, t))
        pair = builder.cmpxchg(_pointer(builder, address, bits), narrow(old), narrow(new), "seq_cst", "seq_cst")
        found = builder.extract_value(pair, 0)
        return found if bits == 64 else builder.zext(found, I64)

    def plain(address: int, old: int, new: int) -> int:
        cell = _C[bits].from_address(address)
        found = cell.value
        if found == (s64(old) if bits == 64 else old & ((1 << bits) - 1)):
            cell.value = s64(new) if bits == 64 else new & ((1 << bits) - 1)
        return found

    cas.__name__ = f"cas{bits}"
    return primitive(3, plain)(cas)


# casN(address, old, new) -> the value found, zero-extended; it was swapped when that equals `old`.
cas8, cas16, cas32, cas64 = (_make_cas(n) for n in (8, 16, 32, 64))


def _make_rmw(operation: str, python: Callable[[int, int], int]):
    def rmw(builder, address, value):
        return builder.atomic_rmw(operation, _pointer(builder, address, 64), value, "seq_cst")

    def plain(address: int, value: int) -> int:
        cell = ctypes.c_int64.from_address(address)
        found = cell.value
        cell.value = s64(python(found, value))
        return found

    rmw.__name__ = f"atomic_{operation}"
    return primitive(2, plain)(rmw)


# atomic_op(address, value) -> the previous 64-bit value.
atomic_or = _make_rmw("or", lambda a, b: a | b)
atomic_and = _make_rmw("and", lambda a, b: a & b)
atomic_add = _make_rmw("add", lambda a, b: a + b)
atomic_xchg = _make_rmw("xchg", lambda a, b: b)


@primitive(0, lambda: None, result=False)
def fence(builder):
    builder.fence("seq_cst")


@primitive(4, lambda address, expected, new, _: _plain_cas128(address, expected, new))
def cas128(builder, address, expected, new, _):
    """cas128(address, &expected, &new, 0) -> 1 if swapped; else 0 and *expected is what was found."""
    p128 = I128.as_pointer()
    want = builder.inttoptr(expected, p128)
    pair = builder.cmpxchg(
        builder.inttoptr(address, p128),
        builder.load(want, align=8),
        builder.load(builder.inttoptr(new, p128), align=8),
        "seq_cst",
        "seq_cst",
    )
    builder.store(builder.extract_value(pair, 0), want, align=8)
    return builder.zext(builder.extract_value(pair, 1), I64)


def _plain_cas128(address: int, expected: int, new: int) -> int:
    found = ctypes.string_at(address, 16)
    same = found == ctypes.string_at(expected, 16)
    ctypes.memmove(address, new, 16) if same else ctypes.memmove(expected, found, 16)
    return int(same)


# Arithmetic -----


@primitive(2, lambda a, n: s64(u64(a) >> (n & 63)))
def lshr(builder, a, n):
    """Logical shift right; n is taken modulo 64."""
    return builder.lshr(a, builder.and_(n, I64(63)))


@primitive(2, lambda a, n: s64(a << (n & 63)))
def shl(builder, a, n):
    """Shift left; n is taken modulo 64."""
    return builder.shl(a, builder.and_(n, I64(63)))


@primitive(2, lambda a, b: int(u64(a) < u64(b)))
def ult(builder, a, b):
    return builder.zext(builder.icmp_unsigned("<", a, b), I64)


@primitive(2, lambda a, b: int(u64(a) <= u64(b)))
def ule(builder, a, b):
    return builder.zext(builder.icmp_unsigned("<=", a, b), I64)


@primitive(2, lambda a, b: s64(u64(a) // u64(b)))
def udiv(builder, a, b):
    """Unsigned quotient; the caller has checked b != 0."""
    return builder.udiv(a, b)


@primitive(2, lambda a, b: s64(u64(a) % u64(b)))
def urem(builder, a, b):
    """Unsigned remainder; the caller has checked b != 0."""
    return builder.urem(a, b)


def _wide(builder, a, b, extend):
    product = builder.mul(extend(a, I128), extend(b, I128))
    return builder.trunc(builder.lshr(product, I128(64)), I64)


@primitive(2, lambda a, b: s64(u64(a) * u64(b) >> 64))
def umulh(builder, a, b):
    """High 64 bits of the unsigned product."""
    return _wide(builder, a, b, builder.zext)


@primitive(2, lambda a, b: s64(s64(a) * s64(b) >> 64))
def smulh(builder, a, b):
    """High 64 bits of the signed product."""
    return _wide(builder, a, b, builder.sext)


binding.initialize_native_asmparser()  # numba itself has no inline assembly


def _asm(builder, result, operands, text: str, constraints: str):
    """Inline assembly with side effects; operands are LLVM values."""
    ftype = ir.FunctionType(result, [v.type for v in operands])
    return builder.call(ir.InlineAsm(ftype, text, constraints, side_effect=True), operands)


@primitive(3, lambda hi, lo, d: s64(((u64(hi) << 64) | u64(lo)) // u64(d)))
def udiv128(builder, hi, lo, d):
    """hi:lo / d; the caller has checked hi < d (unsigned), so the quotient fits."""
    pair = ir.LiteralStructType([I64, I64])
    value = _asm(builder, pair, [lo, hi, d], "divq $4", "={rax},={rdx},0,1,r,~{flags}")
    return builder.extract_value(value, 0)


@primitive(3, lambda hi, lo, d: s64(((u64(hi) << 64) | u64(lo)) % u64(d)))
def urem128(builder, hi, lo, d):
    pair = ir.LiteralStructType([I64, I64])
    value = _asm(builder, pair, [lo, hi, d], "divq $4", "={rax},={rdx},0,1,r,~{flags}")
    return builder.extract_value(value, 1)


def _make_unary(name: str, llvm: str, plain: Callable[[int], int]):
    def unary(builder, a):
        wants_poison_flag = llvm in ("llvm.ctlz", "llvm.cttz")
        ftype = ir.FunctionType(I64, [I64, I1]) if wants_poison_flag else None
        fn = builder.module.declare_intrinsic(llvm, [I64], ftype)
        return builder.call(fn, [a, I1(0)] if wants_poison_flag else [a])

    unary.__name__ = name
    return primitive(1, plain)(unary)


popcount = _make_unary("popcount", "llvm.ctpop", lambda a: u64(a).bit_count())
clz = _make_unary("clz", "llvm.ctlz", lambda a: 64 - u64(a).bit_length())  # 64 for 0
ctz = _make_unary("ctz", "llvm.cttz", lambda a: (u64(a) & -u64(a)).bit_length() - 1 if u64(a) else 64)  # 64 for 0
bswap = _make_unary("bswap", "llvm.bswap", lambda a: s64(int.from_bytes(u64(a).to_bytes(8, "little"), "big")))


def _make_extend(bits: int, signed: bool):
    def extend(builder, a):
        low = builder.trunc(a, ir.IntType(bits))
        return builder.sext(low, I64) if signed else builder.zext(low, I64)

    def plain(a: int) -> int:
        low = a & ((1 << bits) - 1)
        return low - (1 << bits) if signed and low >> (bits - 1) else low

    extend.__name__ = f"{'sext' if signed else 'zext'}{bits}"
    return primitive(1, plain)(extend)


sext8, sext16, sext32 = (_make_extend(n, True) for n in (8, 16, 32))
zext8, zext16, zext32 = (_make_extend(n, False) for n in (8, 16, 32))


# Control and the host -----


def _make_call(arity: int):
    def call(builder, function, *args):
        pointer = ir.FunctionType(I64, [I64] * arity).as_pointer()
        return builder.call(builder.inttoptr(function, pointer), list(args))

    def plain(function: int, *args: int) -> int:
        return ctypes.CFUNCTYPE(ctypes.c_int64, *([ctypes.c_int64] * arity))(function)(*args)

    call.__name__ = f"call{arity}"
    return primitive(arity + 1, plain)(call)


# callN(function address, N int64 arguments) -> int64
call1, call2, call3, call4 = (_make_call(n) for n in (1, 2, 3, 4))

_libc = ctypes.CDLL(None, use_errno=True)


def _plain_syscall(number: int, *args: int) -> int:
    _libc.syscall.restype = ctypes.c_long
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in args))
    return result if result != -1 else -ctypes.get_errno()


@primitive(7, _plain_syscall)
def syscall(builder, number, a, b, c, d, e, f):
    """A raw Linux system call: the result, or -errno. No libc, no errno, no GIL."""
    constraints = "={rax},{rax},{rdi},{rsi},{rdx},{r10},{r8},{r9},~{rcx},~{r11},~{memory}"
    return _asm(builder, I64, [number, a, b, c, d, e, f], "syscall", constraints)


@primitive(0, lambda: None, result=False)
def pause(builder):
    _asm(builder, VOID, [], "pause", "~{memory}")


@primitive(0, lambda: __import__("time").perf_counter_ns())
def rdtsc(builder):
    pair = ir.LiteralStructType([I64, I64])
    value = _asm(builder, pair, [], "rdtsc", "={rax},={rdx}")
    return builder.or_(builder.extract_value(value, 0), builder.shl(builder.extract_value(value, 1), I64(32)))
