# shellcheck shell=bash
# The virtual environment and the jit cache.

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# python_environment EXTRA: kvmfs and what it needs, in the virtual environment; EXTRA is "" or "dev".
python_environment() {
    local extra=$1 stamp=$venv/.kvmfs-installed want base
    base=$(command -v python3) || die "no python3"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or later is needed; $base is $("$base" -V)"
    want="$(hash "$root/pyproject.toml") $("$base" -V)"
    # What tests need contains what running needs.
    is_stamped "$stamp" "dev $want" || is_stamped "$stamp" "$extra $want" && return
    "$venv/bin/python" -c '' 2>/dev/null || step "virtual environment" "$base" -m venv --clear "$venv"
    step "Python packages" "$venv/bin/python" -m pip install --disable-pip-version-check \
        --quiet --progress-bar off -e "$root${extra:+[$extra]}"
    echo "$extra $want" >"$stamp"
}

# jit_cache WHAT [NAME=VALUE...]: compile what `kvmfs` runs as machine code, in the given environment.
jit_cache() {
    local what=$1 key stamp
    shift
    key=$(cd "$root" && find jit kvmfs -name '*.py' -print0 | sort -z | xargs -0 sha256sum |
        sha256sum - "$venv/.kvmfs-installed" <(grep -m 2 -E '^(model name|flags)' /proc/cpuinfo) | sha256sum | cut -c1-16)
    stamp=$venv/.kvmfs-warm-${what//[^[:alnum:]]/-}
    is_stamped "$stamp" "$key" && return
    step "$what" env "$@" "$venv/bin/kvmfs" warm
    echo "$key" >"$stamp"
}
