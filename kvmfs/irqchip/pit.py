"""The i8254 (arch/x86/kvm/i8254.c). All with the board's lock held; `scratch`: 16 bytes for the clock."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi.irqchip import KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON, PitChannelState
from kvmfs.abi.layout import offset_of
from kvmfs.irqchip.timer import MIN_PERIOD, NSEC, arm, clock, muldiv
from kvmfs.irqchip.words import Board
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import load8, load16, load32, load64, store8, store16, store32, store64

FREQUENCY: Final = 1193181  # Hz
CHANNELS, FLAGS, PERIOD, PERIODIC = Board.PIT_CHANNELS, Board.PIT_FLAGS, Board.PIT_PERIOD, Board.PIT_PERIODIC
DEADLINE, EXPIRES, PENDING, ACKED = Board.PIT_DEADLINE, Board.PIT_EXPIRES, Board.PIT_PENDING, Board.PIT_ACKED
CHANNEL_SIZE: Final = 24
COUNT, LATCHED_COUNT, COUNT_LATCHED = (
    offset_of(PitChannelState, f) for f in ("count", "latched_count", "count_latched")
)
STATUS_LATCHED, STATUS = offset_of(PitChannelState, "status_latched"), offset_of(PitChannelState, "status")
READ_STATE, WRITE_STATE, WRITE_LATCH, RW_MODE = (
    offset_of(PitChannelState, f) for f in ("read_state", "write_state", "write_latch", "rw_mode")
)
MODE, BCD, GATE, LOADED = (offset_of(PitChannelState, f) for f in ("mode", "bcd", "gate", "count_load_time"))
LSB, MSB, WORD0, WORD1 = 1, 2, 3, 4
HPET_LEGACY, SPEAKER_ON = KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON


@compiled
def channel_at(board, number):
    return board + CHANNELS + CHANNEL_SIZE * number


@compiled
def ticks(board, number, scratch):
    """How many have passed since the channel was loaded."""
    now = clock(scratch)
    if number == 0:
        if load64(board + PERIOD) == 0:
            return 0
        elapsed = load64(board + PERIOD) - (load64(board + EXPIRES) - now)
    else:
        elapsed = now - load64(channel_at(board, number) + LOADED)
    return muldiv(max(elapsed, 0), FREQUENCY, NSEC)


@compiled
def read_count(board, number, scratch):
    """pit_get_count."""
    channel, passed = channel_at(board, number), ticks(board, number, scratch)
    count, mode = max(load32(channel + COUNT), 1), load8(channel + MODE)
    if mode == 0 or mode == 1 or mode == 4 or mode == 5:
        return (count - passed) & 0xFFFF
    if mode == 3:
        return count - 2 * passed % count
    return count - passed % count


@compiled
def output(board, number, scratch):
    """pit_get_out."""
    channel, passed = channel_at(board, number), ticks(board, number, scratch)
    count, mode = max(load32(channel + COUNT), 1), load8(channel + MODE)
    if mode == 1:
        return 1 if passed < count else 0
    if mode == 2:
        return 1 if passed % count == 0 and passed != 0 else 0
    if mode == 3:
        return 1 if passed % count < (count + 1) >> 1 else 0
    if mode == 4 or mode == 5:
        return 1 if passed == count else 0
    return 1 if passed >= count else 0


@compiled
def reset_reinject(board):
    """kvm_pit_reset_reinject: no tick is owed."""
    store64(board + PENDING, 0)
    store64(board + ACKED, 1)


@compiled
def start(board, count, periodic, scratch):
    """create_pit_timer."""
    if load64(board + FLAGS) & HPET_LEGACY:
        return
    interval = muldiv(count, NSEC, FREQUENCY)
    store64(board + PERIOD, max(interval, MIN_PERIOD) if periodic else interval)
    store64(board + PERIODIC, periodic)
    reset_reinject(board)
    deadline = clock(scratch) + interval
    store64(board + EXPIRES, deadline)
    store64(board + DEADLINE, deadline)
    arm(board, deadline)


@compiled
def load(board, number, count, scratch):
    """pit_load_count; 0 is the full range."""
    channel = channel_at(board, number)
    count = 0x10000 if count == 0 else count
    store32(channel + COUNT, count)
    if number != 0:
        store64(channel + LOADED, clock(scratch))
        return
    mode = load8(channel + MODE)
    if mode == 0 or mode == 1 or mode == 4:
        start(board, count, 0, scratch)
    elif mode == 2 or mode == 3:
        start(board, count, 1, scratch)
    else:
        store64(board + DEADLINE, 0)


@compiled
def due(board, now):
    """Whether channel 0 has fired by now; periodic ones are owed each tick."""
    fired = 0
    while load64(board + DEADLINE) != 0 and load64(board + DEADLINE) <= now:
        fired += 1
        following = load64(board + DEADLINE) + load64(board + PERIOD)
        if load64(board + PERIODIC) == 0:
            store64(board + DEADLINE, 0)
        else:
            store64(board + DEADLINE, following)
            store64(board + EXPIRES, following)
    return fired


# Ports -----


@compiled
def latch_count(board, number, scratch):
    channel = channel_at(board, number)
    if load8(channel + COUNT_LATCHED) == 0:
        store16(channel + LATCHED_COUNT, read_count(board, number, scratch))
        store8(channel + COUNT_LATCHED, load8(channel + RW_MODE))


@compiled
def latch_status(board, number, scratch):
    channel = channel_at(board, number)
    if load8(channel + STATUS_LATCHED) == 0:
        status = output(board, number, scratch) << 7 | load8(channel + RW_MODE) << 4
        store8(channel + STATUS, status | load8(channel + MODE) << 1 | load8(channel + BCD))
        store8(channel + STATUS_LATCHED, 1)


@compiled
def command(board, value, scratch):
    """The control word."""
    number = value >> 6
    if number == 3:  # read-back
        for each in range(3):
            if value & 2 << each:
                if value & 0x20 == 0:
                    latch_count(board, each, scratch)
                if value & 0x10 == 0:
                    latch_status(board, each, scratch)
        return
    channel, access = channel_at(board, number), value >> 4 & 3
    if access == 0:
        latch_count(board, number, scratch)
        return
    mode = value >> 1 & 7
    store8(channel + RW_MODE, access)
    store8(channel + READ_STATE, access)
    store8(channel + WRITE_STATE, access)
    store8(channel + MODE, mode - 4 if mode > 5 else mode)
    store8(channel + BCD, value & 1)


@compiled
def write_port(board, port, value, scratch):
    """pit_ioport_write; `port` 0 to 3."""
    if port == 3:
        command(board, value, scratch)
        return
    channel = channel_at(board, port)
    state = load8(channel + WRITE_STATE)
    if state == MSB:
        load(board, port, value << 8, scratch)
    elif state == WORD0:
        store8(channel + WRITE_LATCH, value)
        store8(channel + WRITE_STATE, WORD1)
    elif state == WORD1:
        load(board, port, load8(channel + WRITE_LATCH) | value << 8, scratch)
        store8(channel + WRITE_STATE, WORD0)
    else:
        load(board, port, value, scratch)


@compiled
def read_port(board, port, scratch):
    """pit_ioport_read; `port` 0 to 2."""
    channel = channel_at(board, port)
    if load8(channel + STATUS_LATCHED):
        store8(channel + STATUS_LATCHED, 0)
        return load8(channel + STATUS)
    latched = load8(channel + COUNT_LATCHED)
    if latched != 0:
        count = load16(channel + LATCHED_COUNT)
        store8(channel + COUNT_LATCHED, MSB if latched == WORD0 else 0)
        return count >> 8 if latched == MSB else count & 0xFF
    count, state = read_count(board, port, scratch), load8(channel + READ_STATE)
    if state in (WORD0, WORD1):
        store8(channel + READ_STATE, WORD1 if state == WORD0 else WORD0)
    return count >> 8 & 0xFF if state in (MSB, WORD1) else count & 0xFF


@compiled
def write_speaker(board, value, scratch):
    """Port 61: gate of channel 2, and the speaker's switch."""
    flags, channel = load64(board + FLAGS), channel_at(board, 2)
    store64(board + FLAGS, flags | SPEAKER_ON if value & 2 else flags & ~SPEAKER_ON)
    mode, gate = load8(channel + MODE), value & 1
    if (mode == 1 or mode == 2 or mode == 3 or mode == 5) and load8(channel + GATE) < gate:
        store64(channel + LOADED, clock(scratch))
    store8(channel + GATE, gate)


@compiled
def read_speaker(board, scratch):
    refresh = clock(scratch) >> 14 & 1  # toggles each 15 us or so
    on = 2 if load64(board + FLAGS) & SPEAKER_ON else 0
    return on | load8(channel_at(board, 2) + GATE) | output(board, 2, scratch) << 5 | refresh << 4
