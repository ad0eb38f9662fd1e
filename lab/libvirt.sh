#!/bin/sh
# A libvirt daemon of its own in a folder: beside the system's, unprivileged, with nothing shared but the programs.
#
#   lab/libvirt.sh start DIR    starts it and prints its URI; DIR must not exist and its path must be short (sockets lie in it)
#   lab/libvirt.sh restart DIR  starts the daemon of DIR again, after it died; its domains have gone on meanwhile
#   lab/libvirt.sh stop DIR     ends its domains and the daemon, and removes DIR
#   lab/libvirt.sh run DIR      start, then wait for the end of standard input, then stop: nothing outlives the caller
#
# Needs the Debian packages libvirt-daemon-system, libvirt-clients and qemu-system-x86. As root the daemon runs as the user
# libvirt-qemu (a privileged daemon would use the system's own folders); images for its domains must be readable for it.
# LIBVIRT_CAPABILITIES=FOLDER keeps what the daemon learns about QEMU, which takes it seconds.
set -eu

usage() {
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 64
}

need() {
    command -v "$1" >/dev/null || { echo "lab/libvirt.sh: $1 is missing: install the package $2" >&2; exit 69; }
}

environment() {
    export XDG_RUNTIME_DIR="$dir/run" XDG_CONFIG_HOME="$dir/config" XDG_CACHE_HOME="$dir/cache" XDG_DATA_HOME="$dir/data"
    export HOME="$dir" LC_ALL=C
}

qemu_user() {
    if id libvirt-qemu >/dev/null 2>&1; then echo libvirt-qemu; else echo nobody; fi
}

# Starts the daemon and waits until it answers.
daemon() {
    as=
    if [ "$(id -u)" = 0 ]; then
        user=$(qemu_user)
        as="setpriv --reuid=$(id -u "$user") --regid=$(id -g "$user") --clear-groups --no-new-privs --"
    fi
    # shellcheck disable=SC2086 # $as is words
    $as libvirtd --timeout 0 </dev/null >"$dir/libvirtd.out" 2>&1 &
    echo $! >"$dir/libvirtd.pid"
    uri="qemu:///session?socket=$dir/run/libvirt/libvirt-sock"
    tries=0
    until virsh --quiet --connect "$uri" version >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 300 ] || ! kill -0 "$(cat "$dir/libvirtd.pid")" 2>/dev/null; then
            cat "$dir/libvirtd.out" "$dir/libvirtd.log" >&2 || true
            echo "lab/libvirt.sh: libvirtd does not answer" >&2
            stop
            exit 70
        fi
        sleep 0.05
    done
}

restart() {
    PATH="$PATH:/usr/sbin:/sbin"
    environment
    daemon
}

start() {
    PATH="$PATH:/usr/sbin:/sbin"
    need libvirtd libvirt-daemon-system
    need virsh libvirt-clients
    need qemu-system-x86_64 qemu-system-x86
    mkdir -m 755 "$dir"
    environment
    mkdir -p "$dir/run" "$dir/config/libvirt" "$dir/cache" "$dir/data" "$dir/images" "$dir/scratch"
    # No log daemon beside it, and no authentication but that of the folder.
    echo 'stdio_handler = "file"' >"$dir/config/libvirt/qemu.conf"
    cat >"$dir/config/libvirt/libvirtd.conf" <<-END
	auth_unix_rw = "none"
	log_outputs = "3:file:$dir/libvirtd.log"
	END
    if [ -d "${LIBVIRT_CAPABILITIES:-}/libvirt" ]; then cp -r "$LIBVIRT_CAPABILITIES/libvirt" "$dir/cache/"; fi
    if [ "$(id -u)" = 0 ]; then chown -R "$(qemu_user)" "$dir"; fi
    daemon
    if [ -n "${LIBVIRT_CAPABILITIES:-}" ] && [ ! -d "$LIBVIRT_CAPABILITIES" ]; then
        # Another one may do the same just now; whoever is first wins.
        copy=$(mktemp -d "$LIBVIRT_CAPABILITIES.XXXXXX")
        cp -r "$dir/cache/libvirt" "$copy/" && mv -T "$copy" "$LIBVIRT_CAPABILITIES" 2>/dev/null || rm -rf "$copy"
    fi
    echo "$uri"
}

stop() {
    daemon=$(cat "$dir/libvirtd.pid" 2>/dev/null || true)
    # The daemon first, so that it starts nothing new; it may be stopped by a signal and must wake to die.
    [ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null || true
    for pidfile in "$dir"/run/libvirt/qemu/run/*.pid; do
        [ -f "$pidfile" ] || continue
        pid=$(cat "$pidfile")
        # Only a QEMU whose files lie in this folder.
        if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$dir/"; then kill -KILL "$pid" 2>/dev/null || true; fi
    done
    rm -rf "$dir"
}

[ $# -eq 2 ] || usage
case $2 in /*) dir=$2 ;; *) dir=$PWD/$2 ;; esac
case $1 in
start) start ;;
restart) restart ;;
stop) stop ;;
run)
    trap '' INT TERM HUP
    start
    cat >/dev/null || true
    stop
    ;;
*) usage ;;
esac
