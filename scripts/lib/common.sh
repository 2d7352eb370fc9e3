# shellcheck shell=bash disable=SC2034  # the paths are for those who source this
# What the commands in scripts/ share: one line of progress per step, packages, the cache.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvmfs
venv=${KVMFS_VENV:-$root/.venv}
logs=$cache/logs
jobs=${JOBS:-$(nproc)}
mkdir -p "$logs"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

# step WHAT COMMAND...: run a command with its output in a log; on a terminal show that it lives.
# If it fails, show the end of the log and leave.
step() {
    local what=$1 started=$SECONDS status=0 pid log columns
    shift
    log=$logs/$(printf '%s' "$what" | tr -c '[:alnum:]\n' '-').log
    (
        set -euo pipefail
        "$@"
    ) >"$log" 2>&1 </dev/null &
    pid=$!
    if [[ -t 2 ]]; then
        columns=$(($(tput cols 2>/dev/null || echo 80) - ${#what} - 16))
        while kill -0 "$pid" 2>/dev/null; do
            printf '\r\033[K  %s … %d s  %.*s' "$what" $((SECONDS - started)) "$((columns > 0 ? columns : 0))" \
                "$(tail -c 400 "$log" | tr -c '[:print:]\n' ' ' | tail -n 1)" >&2
            sleep 0.3
        done
        printf '\r\033[K' >&2
    else
        printf '  %s …\n' "$what" >&2
    fi
    wait "$pid" || status=$?
    if ((status)); then
        say "  $what: failed (status $status); the end of $log:"
        tail -n 30 "$log" | cut -c 1-200 >&2
        exit "$status"
    fi
    say "  $what: $((SECONDS - started)) s"
}

# hash FILE...: one word that changes when any of the files does.
hash() { sha256sum -- "$@" | sha256sum | cut -c1-16; }

is_stamped() { [[ -f $1 && $(<"$1") == "$2" ]]; }

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -- "$@"; fi
}

# packages GROUP PACKAGE...: install what is missing.
packages() {
    local group=$1 missing=() package
    shift
    command -v dpkg-query >/dev/null ||
        die "this set-up knows Debian and Ubuntu only; elsewhere install what corresponds to: $*"
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || command -v sudo >/dev/null ||
        die "packages are missing and installing them takes root: apt-get install ${missing[*]}"
    step "package lists" as_root apt-get update -qq
    step "$group (${#missing[@]} packages)" \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${missing[@]}"
}

# download DIRECTORY PACKAGE: the .deb of a package, not installed.
download() {
    (cd "$1" && apt-get download -qq -o APT::Sandbox::User=root "$2")
}

# newest_complete KIND: the cache entry KIND-VERSION that was finished, the newest of them.
newest_complete() {
    find "$cache" -mindepth 2 -maxdepth 2 -path "$cache/$1-*/complete" -printf '%h\n' 2>/dev/null | sort -V | tail -n 1
}
