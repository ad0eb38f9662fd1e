#!/usr/bin/env bash
# clone.sh: a full of SIZE_GIB (default 20) is merged into its successor where files can share room, on XFS and on btrfs. Prints rows
# for run.sh's table, writes nothing; needs root for the mounts, and SIZE_GIB and a tenth below CLONE_DIR (default /var/tmp) for each, one after
# the other: this is no work for memory.
#
# The disk is nbdkit's pattern, of which no two blocks are the same, not compressed; 64 pieces of 1 MiB all over it have changed.
set -euo pipefail
cd "$(dirname "$0")/.."
SIZE_GIB=${SIZE_GIB:-20}
[ "$(id -u)" = 0 ] || { echo "clone.sh mounts images, which needs root" >&2; exit 1; }

. bench/common.sh "${CLONE_DIR:-/var/tmp}/sc.XXXX"
finish() { stop; umount -q "$work/at" 2>/dev/null || true; rm -rf "$work"; }
trap finish EXIT
used() { sync -f "$work/at"; echo $(($(stat -f -c '(%b - %f) * %S' "$work/at"))); }

mkdir -p "$work"/{at,vms}
for fs in "xfs -q -m reflink=1" "btrfs -q"; do
    name=${fs%% *}
    say "$name: a full of $SIZE_GIB GiB"
    truncate -s "$((SIZE_GIB + SIZE_GIB / 4 + 2))G" "$work/disk"
    # shellcheck disable=SC2086 # the options are words
    mkfs.$fs "$work/disk"
    mount -o loop "$work/disk" "$work/at"
    rm -f "$work/nbd.sock"
    nbdkit -f -U "$work/nbd.sock" --filter=cow pattern "${SIZE_GIB}G" & pids+=("$!")
    for _ in $(seq 200); do [ -S "$work/nbd.sock" ] && break; sleep 0.05; done
    ln -sfn "$work/at" "$work/repo"
    rm -rf "$work/hub"
    . bench/hub.sh
    sd source add nbd --name bulk --uri "nbd+unix:///?socket=$work/nbd.sock" > /dev/null 2>&1
    sd source discover bulk > /dev/null 2>&1
    vm=$(sd vm list --json | jq -r '.vms[0].vm_name')
    sd backup start "$vm" --repo main --type full --compression off --wait > /dev/null
    for n in $(seq 64); do
        echo "write -P $n $((n * SIZE_GIB * 1024 / 65))M 1M"
    done | qemu-io -f raw "nbd+unix:///?socket=$work/nbd.sock" > /dev/null
    sd backup start "$vm" --repo main --compression off --wait > /dev/null
    first=$(sd backup chain "$vm" --json | jq -r '.backups[0].backup_id')
    before=$(used) begun=$(date +%s.%N)
    sd backup merge "$first" --yes > /dev/null & merge=$!
    peak=$before
    while kill -0 "$merge" 2>/dev/null; do
        is=$(used); [ "$is" -le "$peak" ] || peak=$is
        sleep 0.2
    done
    wait "$merge"
    took=$(awk -v a="$begun" -v b="$(date +%s.%N)" 'BEGIN {print b - a}')
    limit_row "merging a full of $SIZE_GIB GiB into its successor, 64 changes of 1 MiB all over it, by clone on $name" "$took" s 60
    limit_row "room that it took meanwhile, $name" "$(awk -v a="$before" -v b="$peak" 'BEGIN {print (b - a) / 1048576}')" MiB 256
    stop
    umount "$work/at"
    rm "$work/disk"
done
