"""A client's VM from KVM_CREATE_VM to its last descriptor."""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import random
import resource
import select
import struct
from pathlib import Path

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.exits import Exit
from kvmfs.abi.run import Run
from tests.process import fakecore_commands as commands
from tests.process.harness import (
    Broker,
    Talk,
    client,
    create_vcpu,
    create_vm,
    errno_of,
    kvm_run,
    map_raw,
    map_run,
    new_vcpu,
    new_vm,
    open_kvm,
    run,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


def command(page: mmap.mmap, number: int) -> None:
    struct.pack_into("<Q", page, Run.cr8.offset, number)


def exit_reason(page: mmap.mmap) -> int:
    return int(struct.unpack_from("<I", page, Run.exit_reason.offset)[0])


def test_vm_vcpu_run(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        assert fcntl.ioctl(kvm, ioctls.KVM_GET_API_VERSION.number) == 12
        vm = create_vm(kvm)
        vcpu = create_vcpu(vm)
        assert fcntl.fcntl(vm, fcntl.F_GETFD) == fcntl.fcntl(vcpu, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
        page = map_run(vcpu)
        for _ in range(100):
            assert kvm_run(vcpu) == 0
            assert exit_reason(page) == Exit.IO
            struct.pack_into("<I", page, Run.exit_reason.offset, 0)

    run(broker.path, body)


def test_run_page_is_shared_both_ways(broker: Broker) -> None:
    """SERVICE adds one to a word of the page in the worker, in Python; the client changes it in between."""

    def body(path: Path, talk: Talk) -> None:
        vcpu = new_vcpu(path)
        page = map_run(vcpu)
        for value in (0, 7, 1 << 40):
            struct.pack_into("<Q", page, Run.apic_base.offset, value)
            command(page, commands.SERVICE)
            assert kvm_run(vcpu) == 0
            assert struct.unpack_from("<Q", page, Run.apic_base.offset)[0] == value + 1

    run(broker.path, body)


def test_arguments_travel_through_client_memory(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vcpu = new_vcpu(path)
        sent = array.array("B", random.Random(1).randbytes(144))
        assert fcntl.ioctl(vcpu, ioctls.KVM_SET_REGS.number, sent) == 0
        got = array.array("B", bytes(144))
        assert fcntl.ioctl(vcpu, ioctls.KVM_GET_REGS.number, got) == 0
        assert got == sent
        assert errno_of(fcntl.ioctl, vcpu, ioctls.KVM_GET_REGS.number, 8) == errno.EFAULT
        assert errno_of(fcntl.ioctl, vcpu, ioctls.KVM_SET_REGS.number, 8) == errno.EFAULT

    run(broker.path, body)


def test_immediate_exit(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vcpu = new_vcpu(path)
        page = map_run(vcpu)
        command(page, commands.BLOCK)
        page[Run.immediate_exit.offset] = 1
        assert errno_of(kvm_run, vcpu) == errno.EINTR
        assert exit_reason(page) == Exit.INTR

    run(broker.path, body)


def test_kvm_run_takes_no_argument(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vcpu = new_vcpu(path)
        assert errno_of(fcntl.ioctl, vcpu, ioctls.KVM_RUN.number, 1) == errno.EINVAL

    run(broker.path, body)


def test_descriptors_behave_like_anonymous_inodes(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        vcpu = create_vcpu(vm)
        if broker.pages == "seccomp":  # memfds (docs/transports.md)
            assert errno_of(os.read, vm, 1) == errno.EBADF
            assert errno_of(os.write, vm, b"x") == errno.EPERM
            assert errno_of(map_raw, vm, 4096) == errno.EACCES
            assert errno_of(os.ftruncate, vm, 4096) == errno.EPERM
            again = os.open(f"/proc/self/fd/{vm}", os.O_RDWR)
            assert errno_of(fcntl.ioctl, again, 0xAEFF) == errno.ENOTTY
            return
        assert errno_of(os.read, vm, 1) == errno.EINVAL
        for fd in (vm, vcpu):
            assert errno_of(os.write, fd, b"x") == errno.EINVAL
            assert errno_of(os.open, f"/proc/self/fd/{fd}", os.O_RDWR) == errno.ENXIO
            assert errno_of(os.ftruncate, fd, 0) == errno.EINVAL
            poll = select.poll()
            poll.register(fd, select.POLLIN | select.POLLOUT)
            assert poll.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]
        assert errno_of(map_raw, vm, 4096) == errno.ENODEV
        assert errno_of(fcntl.ioctl, vm, 0xAEFF) == errno.ENOTTY
        assert errno_of(fcntl.ioctl, vcpu, 0xAEFF) == errno.EINVAL

    run(broker.path, body)


def test_the_device_behaves_like_a_character_device(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        memfd = broker.pages == "seccomp"
        assert errno_of(os.read, kvm, 1) == (errno.EBADF if memfd else errno.EINVAL)
        assert errno_of(os.write, kvm, b"x") == (errno.EPERM if memfd else errno.EINVAL)
        assert errno_of(map_raw, kvm, 4096) == (errno.EACCES if memfd else errno.ENODEV)
        poll = select.poll()
        poll.register(kvm, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(kvm, select.POLLIN | select.POLLOUT)]
        again = os.open(f"/proc/self/fd/{kvm}", os.O_RDWR)
        assert fcntl.ioctl(again, ioctls.KVM_GET_API_VERSION.number) == 12

    run(broker.path, body)


def test_many_vms_closed_in_any_order(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        talk.say("opened")
        talk.hear()
        fds = []
        for number in range(20):
            vm = create_vm(kvm)
            vcpu = create_vcpu(vm, number)
            assert kvm_run(vcpu) == 0
            fds += [vm, vcpu]
        assert len(set(fds)) == 40
        talk.say("made")
        talk.hear()
        random.Random(2).shuffle(fds)
        for fd in fds:
            os.close(fd)
        talk.say("closed")
        talk.hear()

    with client(broker.path, body) as process:
        process.hear()
        before = broker.descriptors
        process.talk.say("go on")
        process.hear()
        wait_until(lambda: len(broker.workers) == 20, "every VM has a worker")
        process.talk.say("go on")
        process.hear()
        wait_until(lambda: not broker.workers, "workers of closed VMs end")
        wait_until(lambda: broker.descriptors <= before, "the broker keeps nothing of them")
        process.talk.say("go on")
        process.result()


def test_two_clients_at_once(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> int:
        kvm = open_kvm(path)
        talk.hear()
        runs = 0
        for number in range(5):
            vcpu = create_vcpu(create_vm(kvm), number)
            page = map_run(vcpu)
            for _ in range(200):
                assert kvm_run(vcpu) == 0
                assert exit_reason(page) == Exit.IO
                runs += 1
        return runs

    with client(broker.path, body) as one, client(broker.path, body) as other:
        one.talk.say("go")
        other.talk.say("go")
        assert one.result() == other.result() == 1000


def test_descriptors_outlive_duplicates_and_processes(broker: Broker) -> None:
    """dup, fork and SCM_RIGHTS make more descriptors of one open file: the VM ends with the last of them."""

    # We have no filter, so that ours is a memfd and nothing else.
    foreign = errno.ENOTTY if broker.pages == "seccomp" else errno.EIO

    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        vcpu = create_vcpu(vm)
        copy = os.dup(vcpu)
        os.close(vcpu)
        assert kvm_run(copy) == 0
        child = os.fork()
        if child == 0:
            # KVM compares the mm: none but the VM's own process may use it.
            codes = [errno_of(kvm_run, copy), errno_of(create_vcpu, vm, 1)]
            os._exit(0 if codes == [errno.EIO] * 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert kvm_run(copy) == 0
        talk.say("take it", (vm,))
        talk.hear()
        for fd in (vm, copy):
            os.close(fd)
        talk.say("closed")
        talk.hear()

    with client(broker.path, body) as process:
        _, (vm,) = process.talk.hear_fds()
        try:
            process.talk.say("go on")
            process.hear()
            assert len(broker.workers) == 1
            assert errno_of(fcntl.ioctl, vm, ioctls.KVM_CREATE_VCPU.number, 7) == foreign
            process.talk.say("go on")
            process.result()
            # Its mm is gone: nobody can do anything with the VM, and nothing must be left that reaches for its pid.
            wait_until(lambda: not broker.workers, "the worker ends with its client")
            assert errno_of(fcntl.ioctl, vm, ioctls.KVM_CREATE_VCPU.number, 7) == foreign
        finally:
            os.close(vm)


def test_no_room_for_a_descriptor(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        vm = create_vm(kvm)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (vm + 1, hard))
        assert errno_of(create_vm, kvm) == errno.EMFILE
        assert errno_of(create_vcpu, vm) == errno.EMFILE
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert kvm_run(create_vcpu(vm)) == 0
        talk.say("done")
        talk.hear()

    with client(broker.path, body) as process:
        process.hear()
        wait_until(lambda: len(broker.workers) == 1, "the VM that could not be installed ends")
        process.talk.say("go on")
        process.result()


def test_create_vm_fails_as_the_core_says(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        assert errno_of(create_vm, kvm, commands.REFUSED_BY_SYSTEM) == errno.EINVAL
        assert errno_of(create_vm, kvm, commands.REFUSED_BY_WORKER) == errno.EDOM

    run(broker.path, body)


def test_failure_after_an_install(broker: Broker) -> None:
    """The thread is held then; its ioctl fails all the same."""

    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        assert errno_of(fcntl.ioctl, vm, commands.FAIL_AFTER_INSTALL, 3) == errno.EDOM
        assert kvm_run(create_vcpu(vm, 4)) == 0

    run(broker.path, body)


def test_descriptors_that_the_client_names(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        one, other = os.eventfd(0), os.eventfd(0)
        identity = fcntl.ioctl(vm, commands.EVENTFD, one)
        assert fcntl.ioctl(vm, commands.EVENTFD, os.dup(one)) == identity
        assert fcntl.ioctl(vm, commands.EVENTFD, other) != identity
        assert os.eventfd_read(one) == 2
        assert errno_of(fcntl.ioctl, vm, commands.EVENTFD, vm) == errno.EINVAL
        assert errno_of(fcntl.ioctl, vm, commands.EVENTFD, 4000) == errno.EBADF
        assert errno_of(fcntl.ioctl, vm, commands.EVENTFD, -1) == errno.EBADF

    run(broker.path, body)
