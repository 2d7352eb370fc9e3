# shellcheck shell=bash
# From Debian's packages of Linux 6.12: the KVM selftests, and a kernel that has CUSE for the virtual machine.

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly source_package=linux-source-6.12

# What the exported headers and the KVM selftests are made of, and kvm_stat: a tenth of the tree.
readonly linux_parts=(Makefile Kbuild .gitignore COPYING arch/x86 include scripts usr/include tools/arch tools/build tools/include
    tools/lib tools/scripts tools/testing/selftests/Makefile tools/testing/selftests/lib.mk 'tools/testing/selftests/*.h'
    tools/kvm/kvm_stat tools/testing/selftests/kvm tools/testing/selftests/rseq Documentation/virt/kvm virt)

apt_version() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -v '(none)' || true; }

know_packages() {
    [[ -n $(apt_version "$source_package") ]] || step "package lists" as_root apt-get update -qq
}

unpack_linux() {
    local entry=$1 deb
    mkdir -p "$entry/tree"
    download "$entry" "$source_package"
    deb=$(echo "$entry"/*.deb)
    dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$source_package.tar.xz" | xz -dc |
        tar -x -C "$entry/tree" --strip-components=1 --wildcards "${linux_parts[@]/#/$source_package/}"
    rm "$deb"
}

linux_headers() { make -C "$1/tree" -s -j "$jobs" headers; }

build_selftests() {
    local entry=$1
    shift
    mkdir -p "$entry/selftests"
    # rseq's headers are found through the tree; OUTPUT keeps the programs out of it.
    make -C "$entry/tree/tools/testing/selftests/kvm" -s -j "$jobs" OUTPUT="$entry/selftests" "${@/#/$entry/selftests/}"
}

# linux_entry: set `linux` to the cache entry: tree/ unpacked, its headers exported to tree/usr/include.
linux_entry() {
    local version parts
    parts=$(printf '%s ' "${linux_parts[@]}")
    linux=$(find "$cache" -mindepth 2 -maxdepth 2 -path "$cache/linux-*/parts" -printf '%h\n' | sort -V | tail -n 1)
    is_stamped "$linux/parts" "$parts" && return
    know_packages
    version=$(apt_version "$source_package")
    [[ -n $version ]] || die "apt knows no $source_package; elsewhere, set KVMFS_LINUX and KVMFS_SELFTESTS and use pytest"
    linux=$cache/linux-$version
    # What is there of this version, selftests that have been built, stays.
    mkdir -p "$linux"
    step "Linux $version: source" unpack_linux "$linux"
    step "Linux $version: headers" linux_headers "$linux"
    echo "$parts" >"$linux/parts"
}

# selftests [PROGRAM...]: build the kernel's KVM selftests, or only the named ones.
selftests() {
    linux_entry
    [[ -f $linux/complete ]] && return
    if (($#)); then
        local program missing=()
        for program; do [[ -x $linux/selftests/$program ]] || missing+=("$program"); done
        ((${#missing[@]})) || return 0
        step "selftests: ${missing[*]##*/}" build_selftests "$linux" "${missing[@]}"
    else
        step "KVM selftests" build_selftests "$linux"
        touch "$linux/complete"
    fi
}

unpack_kernel() {
    local entry=$1 package=$2 deb
    download "$entry" "$package"
    deb=$(echo "$entry"/*.deb)
    dpkg-deb -x "$deb" "$entry/package"
    rm "$deb"
    rm -rf "$entry/modules"
    mv "$entry"/package/lib/modules/* "$entry/modules" 2>/dev/null || mv "$entry"/package/usr/lib/modules/* "$entry/modules"
    mv "$entry"/package/boot/vmlinuz-* "$entry/vmlinuz"
    "$venv/bin/python" -m tests.cuse.vm vmlinux "$entry/vmlinuz" "$entry/vmlinux"
    rm -rf "$entry/package"
}

# kernel_image KIND SERIES: the newest kernel image of a series that apt knows, unpacked in the cache as KIND-VERSION:
# vmlinuz, vmlinux, modules/; `kernel` is set to that. Nothing is installed.
kernel_image() {
    local kind=$1 series=$2 package
    kernel=$(newest_complete "$kind")
    [[ -n $kernel ]] && return
    know_packages
    # By name, for amd64, neither -dbg nor the -cloud and -rt flavours (these lack drivers that the VM needs).
    package=$(apt-cache pkgnames "linux-image-$series" |
        grep -E "^linux-image-${series//./\\.}\.[0-9]+([-+](deb)?[0-9]+)?-amd64-unsigned\$" | sort -V | tail -n 1)
    [[ -n $package ]] || die "apt knows no linux-image-$series*-amd64-unsigned for the virtual machines of the tests"
    kernel=$cache/$kind-${package#linux-image-}
    rm -rf "$kernel"
    mkdir -p "$kernel"
    (cd "$root" && step "$package" unpack_kernel "$kernel" "$package")
    touch "$kernel/complete"
}

# vm_kernel: what the virtual machine of the CUSE tests boots.
vm_kernel() { kernel_image kernel 6.12; }
