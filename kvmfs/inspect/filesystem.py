"""The tree as a file system: pyfuse3 with trio. Read-only; nothing in it is cached, so every look is a fresh one."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from typing import Any, Final

import pyfuse3
import trio

from kvmfs.inspect.tree import Node, Path, Tree

_BLOCK: Final = 4096


class Filesystem(pyfuse3.Operations):  # type: ignore[misc]
    """Asking brokers may take a while: that is done in threads, so that one VM's folder never waits for another's."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self._tree = tree
        self._paths: dict[int, Path] = {pyfuse3.ROOT_INODE: ()}
        self._inodes: dict[Path, int] = {(): pyfuse3.ROOT_INODE}
        self._lookups: dict[int, int] = {}
        self._next = itertools.count(pyfuse3.ROOT_INODE + 1)
        self._open: dict[int, Node] = {}
        self._listed: dict[int, tuple[Path, list[str]]] = {}
        self._handles = itertools.count(1)

    async def _node(self, path: Path) -> Node:
        try:
            return await trio.to_thread.run_sync(self._tree.node, path)
        except OSError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    def _inode(self, path: Path) -> int:
        inode = self._inodes.get(path)
        if inode is None:
            inode = self._inodes[path] = next(self._next)
            self._paths[inode] = path
        return inode

    def _attributes(self, inode: int, node: Node) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode, entry.st_uid, entry.st_gid = node.mode, node.uid, node.gid
        entry.st_size = node.size or 0
        entry.st_nlink = 1
        entry.st_blksize = _BLOCK
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = int(node.time * 1e9)
        entry.entry_timeout = entry.attr_timeout = 0
        entry.generation = 0
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
        path = (*self._paths[parent], os.fsdecode(name))
        node = await self._node(path)
        inode = self._inode(path)
        self._lookups[inode] = self._lookups.get(inode, 0) + 1
        return self._attributes(inode, node)

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            left = self._lookups.get(inode, 0) - count
            if left > 0:
                self._lookups[inode] = left
            elif inode != pyfuse3.ROOT_INODE:
                self._lookups.pop(inode, None)
                if (path := self._paths.pop(inode, None)) is not None:
                    del self._inodes[path]

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        return self._attributes(inode, await self._node(self._paths[inode]))

    async def statfs(self, ctx: Any) -> Any:
        result = pyfuse3.StatvfsData()
        result.f_bsize = result.f_frsize = _BLOCK
        result.f_namemax = 255
        return result

    # Folders

    async def opendir(self, inode: int, ctx: Any) -> int:
        path = self._paths[inode]
        try:
            names = await trio.to_thread.run_sync(self._tree.names, path)
        except OSError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None
        handle = next(self._handles)
        self._listed[handle] = (path, names)
        return handle

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        path, names = self._listed[fh]
        for index in range(start_id, len(names)):
            inner = (*path, names[index])
            try:
                node = await self._node(inner)
            except pyfuse3.FUSEError:
                continue  # gone meanwhile
            inode = self._inode(inner)
            if not pyfuse3.readdir_reply(token, os.fsencode(names[index]), self._attributes(inode, node), index + 1):
                return
            self._lookups[inode] = self._lookups.get(inode, 0) + 1

    async def releasedir(self, fh: int) -> None:
        del self._listed[fh]

    # Files

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        handle = next(self._handles)
        self._open[handle] = await self._node(self._paths[inode])
        return pyfuse3.FileInfo(fh=handle, direct_io=True, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        read = self._open[fh].read
        if read is None:
            raise pyfuse3.FUSEError(errno.EISDIR)
        try:
            return await trio.to_thread.run_sync(read, off, size)
        except OSError as error:
            raise pyfuse3.FUSEError(errno.ESTALE if error.errno == errno.ENOENT else errno.EIO) from None

    async def release(self, fh: int) -> None:
        del self._open[fh]


def mount(tree: Tree, directory: str, *, everybody: bool) -> None:
    """Mount on a directory. `everybody`: others than us may look, as modes and owners have it. RuntimeError."""
    options = {"fsname=kvmfs", "subtype=kvmfs", "ro", "default_permissions"}
    if everybody:
        options.add("allow_other")
    pyfuse3.init(Filesystem(tree), directory, options)


async def serve(ready: Callable[[], None]) -> None:
    """Serve what mount() mounted until it is unmounted, or until cancelled; it is unmounted then."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            ready()
    finally:
        pyfuse3.close(unmount=True)
