#!/usr/bin/env bash
# build.sh DIR: makes what the vSphere tests stand on, unless DIR has it already:
#   DIR/vcsim                  govmomi's simulator (Debian's package) with disks and change tracking of our own
#   DIR/libvixDiskLib.so.8     a VDDK of our own making that reads the simulator's disks; for tests only, never shipped
#   DIR/nbdkit-vddk-plugin.so  nbdkit's real plugin: the system's, or what scripts/deps.sh has unpacked
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
exec 9>"$dir/lock"
flock 9

need() { command -v "$1" >/dev/null || { echo "lab/vsphere: $1 is missing: install the package $2" >&2; exit 1; }; }
need go golang-go
need nbdkit nbdkit
need rustc 'rustup (scripts/rust.sh)'
gocode=/usr/share/gocode/src/github.com/vmware/govmomi
[ -d "$gocode/simulator" ] || { echo "lab/vsphere: install the package golang-github-vmware-govmomi-dev" >&2; exit 1; }

# A build is named by what went into it; nothing is built twice.
stamp=$(cat "$0" "$here"/vcsim/*.go "$here"/vddk/*.rs <(go version) <(rustc --version) | sha256sum | cut -c1-16)
[ "$(cat "$dir/stamp" 2>/dev/null)" != "$stamp" ] || exit 0

work=$(mktemp -d "$dir/work-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/go/src/sendense/vcsim"
cp "$here/vcsim/main.go" "$work/go/src/sendense/vcsim/"
# The simulator takes every disk for a flat file, and would fall over a raw device.
patched=$work/virtual_machine.go
sed 's/^\t\tdiskBacking := disk\.Backing\.(\*types\.VirtualDiskFlatVer2BackingInfo)$/\t\tdiskBacking, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)\n\t\tif !ok {\n\t\t\tcontinue\n\t\t}/' \
    "$gocode/simulator/virtual_machine.go" >"$patched"
! cmp -s "$patched" "$gocode/simulator/virtual_machine.go" || { echo "lab/vsphere: this govmomi's disks are not as they were" >&2; exit 1; }
printf '{"Replace":{"%s/simulator/zz_cbt.go":"%s/vcsim/cbt.go","%s/simulator/virtual_machine.go":"%s"}}' \
    "$gocode" "$here" "$gocode" "$patched" >"$work/overlay.json"
GOCACHE=${GOCACHE:-$dir/go-cache} GOFLAGS= GO111MODULE=off GOPATH=/usr/share/gocode:$work/go \
    go build -overlay "$work/overlay.json" -o "$work/vcsim" sendense/vcsim
rustc --edition 2024 -O --crate-type cdylib --crate-name vixdisklib -o "$work/libvixDiskLib.so.8" "$here/vddk/vixdisklib.rs"

plugin=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')/nbdkit-vddk-plugin.so
[ -e "$plugin" ] || plugin=/var/cache/sendense-test/vddk-plugin/nbdkit-vddk-plugin.so
[ -e "$plugin" ] || { echo "lab/vsphere: nbdkit-vddk-plugin.so is missing: run scripts/deps.sh test" >&2; exit 1; }
cp "$plugin" "$work/nbdkit-vddk-plugin.so"
mv "$work/vcsim" "$work/libvixDiskLib.so.8" "$work/nbdkit-vddk-plugin.so" "$dir/"
echo "$stamp" >"$dir/stamp"
