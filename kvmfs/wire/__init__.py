"""The kernel's FUSE and CUSE protocol (linux/fuse.h), and the mounts and device nodes behind which it speaks.

Nothing here knows KVM.

    fuse_h       opcodes, flags and structs of include/uapi/linux/fuse.h, as data
    request      bytes from the kernel -> typed requests
    reply        replies and notifications -> bytes for the kernel
    connection   one /dev/fuse or /dev/cuse file: handshake, reading, replying
    aio          the same for a trio task
    mount        detached mounts, bind mounts, private mount namespaces
    device       a device node that clients open: FUSE root file or CUSE character device
"""
