"""A device without a mount: seccomp user notification, for places that have neither /dev/fuse nor root.

A command under `kvmfs run --transport seccomp` has a filter whose notifications come to the broker: opens, KVM's
ioctls, fallocate. What it gets for an open of /dev/kvm is a memfd that stands for the file; what it asks of that is put
to the broker, or to the VM's worker, as the FUSE requests that the kernel would have made of it. So all of kvmfs behind
the wire is the same.

    filter     what of the command's system calls is notified
    listener   the notifications' file
    handles    the descriptors that clients hold
    link       a FUSE connection whose other side is not the kernel
    signals    whether somebody whose ioctl is under way has got a signal
    opens      which opens are of our files
    carrier    notifications become requests, replies become results; how the broker's VMs use it

Nothing here knows KVM but for the type of its ioctls.
"""
