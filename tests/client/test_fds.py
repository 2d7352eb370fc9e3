"""Descriptors that a client names by number."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import threading
from collections.abc import Iterator

import pytest

from kvmfs.client import fds
from tests.client.expect import raises_errno

ME = os.getpid()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def test_duplicate_is_the_same_file(eventfd: int) -> None:
    copy = fds.getfd(ME, eventfd)
    try:
        os.eventfd_write(copy, 5)
        assert os.eventfd_read(eventfd) == 5
        assert not os.get_inheritable(copy)
    finally:
        os.close(copy)


@pytest.mark.parametrize("number", [-1, -(1 << 40), 99999, 1 << 31, 1 << 40])
def test_bad_numbers(number: int) -> None:
    with raises_errno(errno.EBADF):
        fds.getfd(ME, number)


def test_dead_client() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for function in (fds.Pidfd, fds.Pidfd.of_process, fds.tgid_of):
        with pytest.raises(ProcessLookupError):
            function(process.pid)
    assert fds.threads_of(process.pid) == []


def test_pidfd_of_a_process_tells_its_end_and_outlives_it() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert process.stdin
    with fds.Pidfd.of_process(process.pid) as client:
        poll = select.poll()
        poll.register(client, select.POLLIN)
        assert not poll.poll(0)
        process.stdin.close()
        assert poll.poll(10_000)
        process.wait()
        with pytest.raises(ProcessLookupError):
            client.getfd(0)


def test_thread_knows_its_process() -> None:
    started, end = threading.Event(), threading.Event()
    tids = []

    def body() -> None:
        tids.append(threading.get_native_id())
        started.set()
        end.wait()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        started.wait()
        assert fds.tgid_of(tids[0]) == ME
        assert tids[0] in fds.threads_of(ME)
        with fds.Pidfd(tids[0]) as client:
            os.close(client.getfd(2))
    finally:
        end.set()
        thread.join()


def test_eventfds_are_told_apart(eventfd: int) -> None:
    copy, other, file = os.dup(eventfd), os.eventfd(0), os.memfd_create("no eventfd")
    try:
        assert fds.is_eventfd(eventfd)
        assert not fds.is_eventfd(file)
        assert fds.eventfd_id(copy) == fds.eventfd_id(eventfd) != fds.eventfd_id(other)
        with raises_errno(errno.EINVAL):
            fds.eventfd_id(file)
    finally:
        for fd in (copy, other, file):
            os.close(fd)


def test_same_inode() -> None:
    one, other = os.memfd_create("one"), os.memfd_create("other")
    copy = os.open(f"/proc/self/fd/{one}", os.O_RDONLY)
    try:
        assert fds.same_inode(one, copy)
        assert not fds.same_inode(one, other)
    finally:
        for fd in (one, other, copy):
            os.close(fd)
