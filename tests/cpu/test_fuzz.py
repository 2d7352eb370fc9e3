"""A sample of scripts/fuzz-cpu: whole instructions next to the host and to Unicorn, byte strings next to iced-x86."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from kvmfs.jit.raw import PLAIN

from tests.support import paths

pytest.importorskip("iced_x86")
pytest.importorskip("unicorn")
if PLAIN:
    pytest.skip("tens of thousands of cases: for compiled code", allow_module_level=True)

from .fuzz import forms, report, states
from .fuzz import layout as L
from .fuzz.decoding import SYSTEMATIC, Decoding
from .fuzz.fuzzer import Fuzzer, data_of
from .fuzz.modes import report as modes_report
from .fuzz.modes.fuzzer import Fuzzer as ModesFuzzer

SEED = 2026


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    if shutil.which("gcc") is None:
        paths.missing("no gcc")
    with Fuzzer() as made:
        yield made


@pytest.mark.parametrize("number", range(6))
def test_as_this_processor(fuzzer: Fuzzer, number: int) -> None:
    outcome = fuzzer.batch(SEED, number)
    assert outcome.cases > 4000
    first = {mismatch.kind: mismatch for mismatch in outcome.mismatches}
    assert not first, "\n".join(report.text(report.minimised(fuzzer, mismatch)) for mismatch in first.values())


@pytest.fixture(scope="module")
def modes_fuzzer() -> ModesFuzzer:
    return ModesFuzzer()


@pytest.mark.parametrize("number", range(5))
def test_as_unicorn(modes_fuzzer: ModesFuzzer, number: int) -> None:
    """Real, virtual-8086 and protected mode, with system instructions and far transfers."""
    outcome = modes_fuzzer.batch(SEED, number)
    assert outcome.cases == 4096
    first = {mismatch.kind: mismatch for mismatch in outcome.mismatches}
    tell = lambda mismatch: modes_report.text(modes_report.minimised(modes_fuzzer, mismatch))  # noqa: E731
    assert not first, "\n".join(map(tell, first.values()))


def test_a_wrong_result_next_to_unicorn_is_found(modes_fuzzer: ModesFuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cases = modes_fuzzer.ours.run_cases

    def wrong(cases: np.ndarray, memory: np.ndarray) -> np.ndarray:
        results = run_cases(cases, memory)
        results["cr0"] |= 4
        return results

    monkeypatch.setattr(modes_fuzzer.ours, "run_cases", wrong)
    mismatch = modes_fuzzer.batch(SEED, 0).mismatches[0]
    small = modes_report.minimised(modes_fuzzer, mismatch)
    assert "cr0" in [what for what, *_ in small.differences]
    assert modes_report.unpacked(modes_fuzzer, modes_report.packed(small))
    monkeypatch.undo()
    assert not modes_report.unpacked(modes_fuzzer, modes_report.packed(small))


@pytest.mark.parametrize("number", [0, 1, 2, 12, 13, 15, 24, 27, 36, 39, SYSTEMATIC, SYSTEMATIC + 1, SYSTEMATIC + 2])
def test_decoded_as_by_iced(number: int) -> None:
    outcome = Decoding().batch(SEED, number)
    assert not outcome.mismatches, "\n".join(map(str, outcome.mismatches[:20]))


ONCE_WRONG = [
    (64, "26 4c 8e 1f", "MOV Sreg: REX.R names no other segment register"),
    (16, "8e 0e 47 65", "MOV CS: #UD comes before the operand is read"),
    (64, "0f 22 c8", "MOV CR1: #UD comes before #GP"),
    (64, "44 0f 23 80", "MOV DR8: no such register"),
    (32, "0f 22 60", "MOV CRn: there is no memory form, whatever mod says"),
    (16, "f2 0f 38 f1 c5", "CRC32 of a 16-bit operand"),
    (64, "66 f2 0f 38 f1 c5", "CRC32 of a 16-bit operand"),
    (64, "65 48 a7", "CMPS with a segment override"),
    (32, "36 a5", "MOVS with a segment override"),
    (32, "66 a5", "MOVS: the source's faults come first"),
    (32, "66 0f 01 d0 90 90 90 90 90 90 90 90 90 90 90", "XGETBV with 66"),
    (16, "66 0f c3 5b c6 90 90 90 90 90 90 90 90 90 90", "MOVNTI with 66"),
    (64, "f2 0f 38 82 10 90 90 90 90 90 90 90 90 90 90", "INVPCID with F2"),
    (64, "f2 0f ae 08 90 90 90 90 90 90 90 90 90 90 90", "FXRSTOR with F2"),
    (32, "f2 0f c7 fd 90 90 90 90 90 90 90 90 90 90 90", "RDSEED with F2"),
    (32, "f3 0f c7 4e 0a", "CMPXCHG8B with F3"),
    (16, "c8 35 a3 40", "ENTER: the new top of the stack is in SS"),
    (64, "64 66 0f 38 30 94 8d 01 89 01 87", "an override makes a bad address #GP, RBP or not"),
    (16, "f2 66 6e", "OUTS: I/O permission matters with rCX 0 too"),
    (16, "f2 61", "POPA reads upwards"),
    (64, "49 0f 01 d1", "XSETBV: REX.B is ignored"),
    (64, "dd 1f", "FST: the operand is checked, also when an exception keeps it from being written"),
    (32, "66 0f c7 68 81 90 90 90 90 90 90 90 90 90 90", "XSAVES with 66"),
    (64, "f3 0f 38 f0 00 90 90 90 90 90 90 90 90 90 90", "MOVBE with F3"),
    (64, "d8 45 00", "#GP and #SS for an address come before #AC"),
    (64, "db 38", "FSTP m80: #AC at multiples of 8"),
    (64, "0f ae 08", "FXRSTOR: reserved bits of FCW, ES of FSW"),
    (16, "63 12", "ARPL: the operand has to be writable only if it is written"),
    (32, "c4 c1 b9 2e f3 51 d2 08 fd 7f 7f d9 81 1a 70", "VEX.vvvv has four bits outside 64-bit mode too"),
    (32, "66 0f 01 e8 bc 80 3b 01 6e b0 10 04 03 43 3f", "SERIALIZE with 66"),
    (64, "c4 03 7d 1d 75 65 10", "VCVTPS2PH: faults of its operand come before its exceptions"),
    (64, "c4 02 55 2e 30", "VMASKMOV: no #AC"),
    (64, "c4 61 ff e6 dd", "VCVTPD2DQ: PE with overflow unmasked"),
    (64, "c4 e2 f5 98 c2", "VFMADD132PD: PE with overflow and underflow"),
    (64, "c4 e3 7d 1d c0 04", "VCVTPS2PH: PE with overflow and underflow"),
    (32, "c4 01", "LES: the offset is read before the selector is looked for"),
    (64, "43 0f 02 e2", "LAR: bits 19 to 16 of the limit"),
    (64, "ff 28", "far JMP: the offset is read first"),
    (64, "cf", "IRET: the flags are read first, the outer stack before CS is looked at"),
    (16, "0f ae 66 00", "XSAVE: the limit covers what RFBM asks for"),
    (64, "0f ae 28", "XRSTOR: the legacy region is looked at"),
    (64, "0f ae 00", "FXSAVE: 512 bytes"),
    (32, "c4 e3 f9 16 e3 25", "VPEXTRQ: #UD outside 64-bit mode"),
    (32, "c4 e3 f9 22 e3 25", "VPINSRQ: #UD outside 64-bit mode"),
    (64, "0f ae 21", "XSAVE: the whole area can be written before any of it is"),
    (16, "2e 0f ae b8 1f 1f", "CLFLUSH of execute-only code"),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "code", "what"), ONCE_WRONG)
def test_what_was_wrong_once(fuzzer: Fuzzer, bits: int, code: str, what: str) -> None:
    raw = bytes.fromhex(code)
    form = forms.known(what, raw, bits, (0 if bits == 16 else L.CODE) + L.PAGE - len(raw))
    before = states.make(np.random.default_rng(len(code)), [form], 400)
    mismatches = fuzzer.check([form], 400, before, data_of(SEED, 0)).mismatches
    assert not mismatches, report.text(report.minimised(fuzzer, mismatches[0]))


def test_a_wrong_result_is_found(fuzzer: Fuzzer) -> None:
    """What would be a bug: the host adds where ours subtracts. It is found, made small, and found again by its word."""
    form = forms.known("add", bytes.fromhex("4801d8"), 64, L.CODE)
    state = np.zeros(1, L.STATE)
    state["gpr"] = np.arange(16) + 5
    state["segment"], state["rip"], state["length"] = [0, L.USER64_CS, L.USER_DS, 0, 0, 0], L.CODE, 3
    state["flags"], state["mxcsr"], state["fcw"], state["code"][0, :3] = 0x202, 0x1F80, 0x37F, list(form.code)
    assert not fuzzer.check([form], 1, state, data_of(0, 0)).mismatches
    run_cases = fuzzer.ours.run_cases

    def wrong(states: np.ndarray, data: np.ndarray) -> np.ndarray:
        results = run_cases(states, data)
        results["gpr"][:, 0] = states["gpr"][:, 0] - states["gpr"][:, 3]
        return results

    fuzzer.ours.run_cases = wrong  # type: ignore[method-assign]
    try:
        (mismatch,) = fuzzer.check([form], 1, state, data_of(0, 0)).mismatches
        small = report.minimised(fuzzer, mismatch)
        assert [what for what, *_ in small.differences] == ["rax"]
        assert np.count_nonzero(small.before["gpr"]) < 3
        assert "add rax,rbx" in report.text(small)
        assert report.unpacked(fuzzer, report.packed(small))
    finally:
        fuzzer.ours.run_cases = run_cases  # type: ignore[method-assign]
    assert not report.unpacked(fuzzer, report.packed(small))
