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
                      udftools jfsutils reiserfsprogs nilfs-tools genisoimage xorriso f2fs-tools squashfs-tools curl unzip fdisk lvm2 user-mode-linux busybox-static systemd cryptsetup-bin mount util-linux procps bsdutils kmod jq python3 \
                      openssl golang-go golang-github-vmware-govmomi-dev python3-pyvmomi tzdata ;;
        bench)   echo qemu-utils qemu-system-x86 libvirt-daemon-system libvirt-clients libnbd-bin nbdkit hyperfine restic \
                      virtnbdbackup jq time curl e2fsprogs xfsprogs f2fs-tools fdisk mount procps user-mode-linux lvm2 ;;
        fuzz)    echo g++ e2fsprogs btrfs-progs dosfstools mtools genisoimage ntfs-3g xfsprogs ;;
        *)       echo "deps.sh: no group '$1'" >&2; exit 2 ;;
    esac
}

# A kernel for a virtual machine, unpacked and not installed: installing one changes how this machine starts.
kernel=/var/cache/sendense-test/kernel
# nbdkit's plugin for VMware's library, which Debian has packaged since release 13: unpacked and not installed, too.
plugin=/var/cache/sendense-test/vddk-plugin

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
fetch=
if [[ " $* " == *" test "* ]] && [ ! -e "$plugin/nbdkit-vddk-plugin.so" ] &&
    ! compgen -G '/usr/lib/*/nbdkit/plugins/nbdkit-vddk-plugin.so' >/dev/null; then
    fetch=nbdkit-plugin-vddk
fi
[ -n "${missing[*]}$unpack$fetch" ] || exit 0
if [ -n "${DEPS_CHECK:-}" ]; then
    echo "missing Debian packages: ${missing[*]} ${unpack:+$unpack (unpacked in $kernel)} ${fetch:+$fetch (unpacked in $plugin)}" >&2
    exit 1
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "missing: ${missing[*]} $unpack $fetch; run 'scripts/deps.sh $*' as root" >&2; exit 1; }
    as_root=(sudo)
fi
echo "installing: ${missing[*]} $unpack $fetch"
# A mirror that stumbles once is not a reason to begin again.
patient=(-o Acquire::Retries=3)
"${as_root[@]}" apt-get "${patient[@]}" update -qq
# A qemu-utils from another release holds back qemu-system: then both are taken from this release, in one version.
extra=()
if installed qemu-utils && [[ " ${missing[*]} " == *" qemu-system-x86 "* ]]; then
    candidate=$(apt-cache policy qemu-system-x86 | awk '/Candidate:/ {print $2}')
    if [ "$(dpkg-query -W -f '${Version}' qemu-utils)" != "$candidate" ]; then
        # The data are the same for every architecture, and no rebuild for one (+bN) counts for them.
        extra=("qemu-utils=$candidate" "qemu-system-x86=$candidate" "qemu-system-common=$candidate" "qemu-system-data=${candidate%+b[0-9]*}")
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
if [ -n "$fetch" ]; then
    # Only this one package is taken, with apt's own checks of its signature, from the mirror that this system uses.
    mirror=$({ grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null || true; } |
        sed '1s/ //;1q')
    [ -n "$mirror" ] || { echo "deps.sh: apt's sources name no mirror of Debian; $fetch is needed from release 13" >&2; exit 1; }
    download=$(mktemp -d)
    chmod 755 "$download"
    mkdir -p "$download/lists/partial" "$download/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie contrib" >"$download/list"
    options=(-qq "${patient[@]}" -o "Dir::Etc::sourcelist=$download/list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$download/lists"
        -o "Dir::Cache=$download/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root -o Acquire::Languages=none)
    "${as_root[@]}" apt-get "${options[@]}" update
    (cd "$download" && "${as_root[@]}" apt-get "${options[@]}" download "$fetch" && "${as_root[@]}" dpkg-deb -x "$fetch"_*.deb root)
    "${as_root[@]}" mkdir -p "$plugin"
    "${as_root[@]}" find "$download/root" -name nbdkit-vddk-plugin.so -exec cp {} "$plugin/" ';'
    "${as_root[@]}" rm -rf "$download"
    [ -e "$plugin/nbdkit-vddk-plugin.so" ] || { echo "deps.sh: $fetch holds no plugin" >&2; exit 1; }
fi
