#!/usr/bin/env bash
# node-line.sh PROGRAM SECONDS: a hub and a node in two network namespaces, with a line between them that is cut in mid-transfer for so
# long. A cut within the node's lease (300 s) is gone on over; after a longer one the backup has failed, nothing of it is left, and the
# next one succeeds. Prints what happened; exit code 1 where that is not so. Needs root, iproute2 and openssl.
set -euo pipefail
program=$(realpath "$1") seconds=$2
. "$(dirname "$0")/two-sites.sh"

ip link add "h$$" netns "$hub" type veth peer name "n$$" netns "$node"
address_line
mkdir -p "$dir/site/vms/web"
head -c 100663296 /dev/urandom > "$dir/site/vms/web/disk0.raw"
begin --bandwidth 4MB

id=$(start)
until_true 60 has_moved "$id" || fail "nothing moves"
echo "cut for $seconds s in mid-transfer: $(state "$id")"
ip -n "$node" link set "n$$" down
sleep "$seconds"
ip -n "$node" link set "n$$" up
back=$SECONDS
until_true 180 has_ended "$id" || fail "the backup does not end"
echo "$((SECONDS - back)) s after the line is back: $(state "$id")"
if [ "$seconds" -lt 300 ]; then
    case $(state "$id") in *status=completed*) ;; *) fail "it did not go on";; esac
    compare "$id"
else
    case $(state "$id") in *status=failed*) ;; *) fail "it did not end";; esac
    until_true 60 sh -c "! find '$dir/repo' -name '*$id*' | grep -q ." || fail "something of it is left"
    until_true 120 admin source test images > /dev/null || fail "the node does not come back"
    id=$(start)
    until_true 180 has_ended "$id" || fail "the next backup does not end"
    case $(state "$id") in *status=completed*) ;; *) fail "the next backup fails";; esac
    compare "$id"
fi
[ -z "$(ls "$dir/node/journal")" ] || fail "the node's journal is not empty"
[ -z "$(ls "$dir/hub/transfers" 2>/dev/null)" ] || fail "a record is left"
echo "as it should be"
