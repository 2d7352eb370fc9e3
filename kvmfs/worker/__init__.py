"""A VM's own process: serves the FUSE connection whose files are the VM's fds, and runs its vCPUs.

    zygote       the process that workers are forked from, with everything imported and compiled code loaded
    process      a worker's life: setting up, hardening, reader threads, the end
    harden       what a worker gives up before guest code can run; seccomp: what it may still ask of the kernel
    channel      messages between broker and worker; broker_link: the worker's end
    caller       the client thread whose request is being served
    nodes        the files that the connection shows
    dispatch     every FUSE request except the run path
    readers      the threads that read the connection
    loop         the run path: numba, no GIL; block: the memory it shares with Python

A worker is untrusted from the moment it runs guest code. What it cannot do itself, the broker does on request, for this
worker's client and mount only.
"""
