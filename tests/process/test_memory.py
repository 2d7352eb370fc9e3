"""A client's memory, seen and taken over through broker and worker."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
from pathlib import Path

import pytest

from tests.process import fakecore_commands as commands
from tests.process.harness import Broker, Talk, create_vcpu, create_vm, errno_of, kvm_run, new_vm, open_kvm, run

pytestmark = pytest.mark.usefixtures("no_leaks")


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def ask(vm: int, cmd: int, *words: int) -> tuple[int, list[int]]:
    """An ioctl on an array of words: its result, and the words afterwards."""
    argument = array.array("Q", [*words, 0])
    return fcntl.ioctl(vm, cmd, argument), list(argument)


def test_adopted_memory_is_shared(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        memory = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[0x3000:0x3005] = b"bytes"
        struct.pack_into("<Q", memory, 0x8000, 41)
        assert ask(vm, commands.ADOPT, address_of(memory), len(memory), 0x8000)[0] == 0
        assert struct.unpack_from("<Q", memory, 0x8000)[0] == 42
        assert memory[0x3000:0x3005] == b"bytes"
        assert "memfd" in next(
            line
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.startswith(f"{address_of(memory):x}-")
        )

    run(broker.path, body)


def test_adoption_among_running_threads(broker: Broker) -> None:
    """Threads count in the memory that is adopted, and run vCPUs of two VMs: no count is lost, no run fails."""

    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        vms = [create_vm(kvm), create_vm(kvm)]
        vcpus = [create_vcpu(vm) for vm in vms]
        memory = mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        words = (ctypes.c_uint64 * 1024).from_buffer(memory)
        stop = threading.Event()
        counts = [0, 0]
        failures: list[int] = []

        def count(index: int) -> None:
            while not stop.is_set():
                words[index] += 1
                counts[index] += 1

        def go(vcpu: int) -> None:
            while not stop.is_set():
                if code := errno_of(kvm_run, vcpu):
                    failures.append(code)

        threads = [threading.Thread(target=count, args=(index,)) for index in range(2)]
        threads += [threading.Thread(target=go, args=(vcpu,)) for vcpu in vcpus]
        for thread in threads:
            thread.start()
        for part in range(8):
            start = address_of(memory) + part * (512 << 10)
            assert ask(vms[part % 2], commands.ADOPT, start, 512 << 10, 4096)[0] == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert list(words[:2]) == counts
        assert failures == []

    run(broker.path, body)


def test_what_cannot_be_adopted(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        shared = mmap.mmap(-1, 1 << 16)
        assert errno_of(ask, vm, commands.ADOPT, address_of(shared), 1 << 16, 0) == errno.EINVAL
        assert errno_of(ask, vm, commands.ADOPT, address_of(shared) + 1, 4096, 0) == errno.EINVAL
        assert kvm_run(create_vcpu(vm)) == 0

    run(broker.path, body)


def test_what_lies_behind_memory(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        memfd = os.memfd_create("guest")
        os.ftruncate(memfd, 1 << 16)
        shared = mmap.mmap(memfd, 1 << 15, offset=1 << 13)
        private = mmap.mmap(-1, 1 << 15, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        count, (kind, length, offset, writable) = ask(vm, commands.BACKING, address_of(shared) + 4096, 4096, 0)
        assert (count, commands.KINDS[kind], length, offset, writable) == (1, "SHARED", 4096, 3 << 12, 1)
        _, (kind, length, _, _) = ask(vm, commands.BACKING, address_of(private), 4096, 0)
        assert (commands.KINDS[kind], length) == ("ANONYMOUS", 4096)
        _, (kind, length, _, _) = ask(vm, commands.BACKING, 0, 4096, 0)
        assert (commands.KINDS[kind], length) == ("HOLE", 4096)

    run(broker.path, body)
