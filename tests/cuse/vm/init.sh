#!/bin/busybox sh
# The first process of the virtual machine: the host's root under an overlay, the job, its status, the end.
# shellcheck shell=dash
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr

while read -r module; do
    insmod "/modules/$module.ko" || echo "insmod $module failed"
done </modules/order

mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host /mnt/host || echo "no host file system"
mount -t tmpfs -o mode=755 overlay /mnt/overlay
mkdir /mnt/overlay/upper /mnt/overlay/work
mount -t overlay -o lowerdir=/mnt/host,upperdir=/mnt/overlay/upper,workdir=/mnt/overlay/work,metacopy=off,xino=off \
    root /mnt/root || echo "no overlay"
mkdir -p /mnt/root/dev /mnt/root/proc /mnt/root/sys /mnt/root/run
mount -t tmpfs run /mnt/root/run
mkdir /mnt/root/run/vm
cp /bin/busybox /job /mnt/root/run/vm/
cat >/mnt/root/run/vm/stage2 <<'X'
echo VM-JOB-STARTS
/bin/sh /run/vm/job </dev/null
status=$?
# On a line of its own, whatever the job printed last.
echo
echo "VM-JOB-STATUS=$status"
# isa-debug-exit: QEMU ends at once with this value in its exit status.
/run/vm/busybox printf '\001' | /run/vm/busybox dd of=/dev/port bs=1 count=1 seek=244 2>/dev/null
/run/vm/busybox poweroff -f
X
for directory in dev proc sys; do mount --move "/$directory" "/mnt/root/$directory"; done
# Not chroot: in a chroot nobody may create a user namespace.
[ -e /systemd ] || exec switch_root /mnt/root /run/vm/busybox sh /run/vm/stage2
mkdir -p /mnt/root/run/systemd/system
# It would empty /tmp, where the host has things that are wanted.
ln -s /dev/null /mnt/root/run/systemd/system/systemd-tmpfiles-setup.service
cat >/mnt/root/run/systemd/system/vm-job.service <<'X'
[Unit]
Requires=basic.target
After=basic.target
[Service]
Type=oneshot
ExecStart=/run/vm/busybox sh /run/vm/stage2
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
X
exec switch_root /mnt/root /lib/systemd/systemd --unit=vm-job.service --show-status=no --log-target=journal
