#!/usr/bin/env bash
# node-far.sh PROGRAM [MIB [LOSS [CONGESTION]]]: how full a node keeps a line of 100 Mbit/s at 150 ms of round trip, with real TCP on both sides of
# it: two network namespaces with `line.py` between them. A disk of MIB (512) of noise and then of text is backed up in full and restored;
# printed is its size over the time from the request to the published point, as a share of the line. LOSS 0.001 loses one packet in a
# thousand; CONGESTION is cubic, as Debian has it, or bbr. Needs root, iproute2, openssl and python3.
set -euo pipefail
program=$(realpath "$1") mib=${2:-512} loss=${3:-0} congestion=${4:-cubic}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/two-sites.sh"

"$here/line.py" "h$$" "n$$" 100 150 "$loss" > "$dir/line.out" 2> "$dir/line.log" &
pids+=($!)
until_true 10 grep -q ready "$dir/line.out" || fail "there is no line"
ip link set "h$$" netns "$hub"; ip link set "n$$" netns "$node"
address_line
ip -n "$hub" route replace 10.99.0.0/24 dev "h$$" src 10.99.0.1 congctl "$congestion"
ip -n "$node" route replace 10.99.0.0/24 dev "n$$" src 10.99.0.2 congctl "$congestion"
begin

disk=$dir/site/vms/web/disk0.raw
for content in noise text; do
    if [ $content = noise ]; then
        head -c "${mib}M" /dev/urandom > "$disk"
    else
        # No two lines are the same, and every block shrinks to a fifth or so.
        awk -v bytes=$((mib << 20)) 'BEGIN { while (n < bytes) { line = sprintf("%d %x some words of a log, %d\n", n, n * 7919, rand() * 1e9); n += length(line); printf "%s", line } }' > "$disk"
        truncate -s "${mib}M" "$disk"
    fi
    admin source discover images > /dev/null
    id=$(start)
    until_true 1800 has_ended "$id" || fail "the backup does not end"
    case $(state "$id") in *status=completed*) ;; *) fail "the backup fails: $(state "$id")";; esac
    times=$(admin backup show "$id" --json | sed -n 's/^ *"\(created_at\|completed_at\)": "\(.*\)",*/\2/p' | sort -u)
    seconds=$(printf '%s\n' "$times" | xargs -I{} date -d {} +%s.%N | paste -sd' ' | awk '{ print $2 - $1 }')
    awk -v mib="$mib" -v s="$seconds" -v what="$content" -v loss="$loss" -v tcp="$congestion" 'BEGIN {
        printf "%s, %d MiB, loss %s, %s: %.1f s, %.0f %% of 100 Mbit/s at 150 ms, from the request to the published point\n",
            what, mib, loss, tcp, s, mib * 1048576 / s / 125000 }'
    compare "$id"
done
