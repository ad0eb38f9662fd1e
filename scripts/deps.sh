#!/usr/bin/env bash
# deps.sh GROUP…: installs the Debian packages of the groups that are missing, and nothing else.
# Groups: build, demo, libvirt, test, bench, fuzz. With DEPS_CHECK=1 it only lists what is missing and fails if something is.
set -euo pipefail

packages() {
    case "$1" in
        build)   echo gcc libc6-dev make ca-certificates ;;
        demo)    echo qemu-utils e2fsprogs jq ;;
        libvirt) echo qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-clients ;;
        test)    echo qemu-system-x86 ovmf qemu-utils qemu-block-extra libvirt-daemon-system libvirt-clients nbdkit libnbd-bin \
                      python3-libnbd nbd-client fio mariadb-server postgresql e2fsprogs xfsprogs btrfs-progs ntfs-3g attr dosfstools exfatprogs mtools \
                      udftools jfsutils reiserfsprogs nilfs-tools genisoimage xorriso f2fs-tools squashfs-tools curl unzip fdisk lvm2 user-mode-linux busybox-static cryptsetup-bin mount util-linux procps bsdutils kmod jq python3 \
                      openssl golang-go golang-github-vmware-govmomi-dev python3-pyvmomi tzdata ;;
        bench)   echo qemu-utils qemu-system-x86 libvirt-daemon-system libvirt-clients libnbd-bin nbdkit hyperfine restic \
                      virtnbdbackup jq time curl e2fsprogs xfsprogs f2fs-tools fdisk mount procps user-mode-linux lvm2 ;;
        fuzz)    echo g++ e2fsprogs btrfs-progs dosfstools mtools genisoimage ntfs-3g xfsprogs ;;
        *)       echo "deps.sh: no group '$1'" >&2; exit 2 ;;
    esac
}

# A kernel for a virtual machine, unpacked and not installed: installing one changes how this machine starts.
kernel=/var/cache/sendense-test/kernel

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for group in "$@"; do
    for package in $(packages "$group"); do
        installed "$package" || missing+=("$package")
    done
done
unpack=
if [[ " $* " == *" test "* ]] && [ ! -e "$kernel/complete" ]; then
    unpack=linux-image-cloud-amd64
fi
[ -n "${missing[*]}$unpack" ] || exit 0
if [ -n "${DEPS_CHECK:-}" ]; then
    echo "missing Debian packages: ${missing[*]} ${unpack:+$unpack (unpacked in $kernel)}" >&2
    exit 1
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "missing: ${missing[*]} $unpack; run 'scripts/deps.sh $*' as root" >&2; exit 1; }
    as_root=(sudo)
fi
echo "installing: ${missing[*]} $unpack"
# A mirror that stumbles once is not a reason to begin again.
patient=(-o Acquire::Retries=3)
"${as_root[@]}" apt-get "${patient[@]}" update -qq
# A qemu-utils from another release holds back qemu-system: then both are taken from this release, in one version.
extra=()
if installed qemu-utils && [[ " ${missing[*]} " == *" qemu-system-x86 "* ]]; then
    candidate=$(apt-cache policy qemu-system-x86 | awk '/Candidate:/ {print $2}')
    if [ "$(dpkg-query -W -f '${Version}' qemu-utils)" != "$candidate" ]; then
        extra=("qemu-utils=$candidate" "qemu-system-x86=$candidate" "qemu-system-common=$candidate" "qemu-system-data=$candidate")
    fi
fi
if [ "${#missing[@]}" -gt 0 ]; then
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get "${patient[@]}" install -y -qq --no-install-recommends --allow-downgrades "${missing[@]}" ${extra[@]+"${extra[@]}"} >/dev/null
fi
if [ -n "$unpack" ]; then
    package=$(apt-cache depends "$unpack" | awk '/Depends: linux-image-/ {print $2; exit}')
    download=$(mktemp -d)
    chmod 755 "$download"
    (cd "$download" && apt-get "${patient[@]}" download -qq "$package")
    "${as_root[@]}" rm -rf "$kernel"
    "${as_root[@]}" mkdir -p "$kernel"
    "${as_root[@]}" dpkg -x "$download"/*.deb "$kernel"
    "${as_root[@]}" depmod -b "$kernel" "${package#linux-image-}"
    "${as_root[@]}" touch "$kernel/complete"
    rm -rf "$download"
fi
