#!/usr/bin/env bash
# node-line.sh PROGRAM SECONDS: a hub and a node in two network namespaces, with a line between them that is cut in mid-transfer for so
# long. A cut within the node's lease (300 s) is gone on over; after a longer one the backup has failed, nothing of it is left, and the
# next one succeeds. Prints what happened; exit code 1 where that is not so. Needs root, iproute2 and openssl.
set -euo pipefail
program=$(realpath "$1") seconds=$2
dir=$(mktemp -d /tmp/sendense-line.XXXXXX)
hub=sd-hub-$$ node=sd-node-$$
pids=()
tidy() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    ip netns del "$hub" 2>/dev/null || true
    ip netns del "$node" 2>/dev/null || true
    [ -n "${KEEP:-}" ] || rm -rf "$dir"
}
trap tidy EXIT
fail() { echo "FAILED: $*" >&2; tail -n 20 "$dir"/*.log >&2; exit 1; }
until_true() { # SECONDS COMMAND...
    local end=$((SECONDS + $1)); shift
    until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}

ip netns add "$hub"; ip netns add "$node"
ip link add "h$$" netns "$hub" type veth peer name "n$$" netns "$node"
ip -n "$hub" addr add 10.99.0.1/24 dev "h$$"; ip -n "$node" addr add 10.99.0.2/24 dev "n$$"
for side in "$hub h$$" "$node n$$"; do
    # shellcheck disable=SC2086
    set -- $side
    ip -n "$1" link set lo up; ip -n "$1" link set "$2" up
done

mkdir -p "$dir/repo" "$dir/site/vms/web"
head -c 100663296 /dev/urandom > "$dir/site/vms/web/disk0.raw"
ip netns exec "$hub" "$program" hub --listen 10.99.0.1:8082 --data-dir "$dir/hub" --allow-path "$dir" > "$dir/hub.out" 2> "$dir/hub.log" &
pids+=($!)
until_true 60 grep -q '^listening on' "$dir/hub.out" || fail "the hub does not start"
admin() {
    ip netns exec "$hub" env SENDENSE_URL=https://10.99.0.1:8082 SENDENSE_TOKEN_FILE="$dir/hub/admin-token" \
        SENDENSE_CA_FILE="$dir/hub/tls/certificate.pem" "$program" "$@"
}
fingerprint=$(openssl x509 -noout -fingerprint -sha256 -in "$dir/hub/tls/certificate.pem" | cut -d= -f2)
admin repo add local --name main --path "$dir/repo" > /dev/null
code=$(admin node pair --name SITE-A 2>/dev/null)
ip netns exec "$node" "$program" node enrol --hub https://10.99.0.1:8082 --code "$code" --fingerprint "$fingerprint" --data-dir "$dir/node"
ip netns exec "$node" "$program" node --data-dir "$dir/node" --allow-path "$dir/site" --bandwidth 4MB > "$dir/node.out" 2> "$dir/node.log" &
pids+=($!)
until_true 60 grep -q '^node SITE-A' "$dir/node.out" || fail "the node does not start"
admin source add image --name images --path "$dir/site/vms" --node SITE-A > /dev/null
admin source discover images > /dev/null

state() { admin backup show "$1" --json | sed -n 's/^ *"\(status\|bytes_read\|error_message\)": "\{0,1\}\([^",]*\).*/\1=\2/p' | sort -u | tr '\n' ' '; }
start() { admin backup start web --repo main --type full --json | sed -n 's/^ *"backup_id": "\(.*\)",*/\1/p' | head -n 1; }
has_ended() { case $(state "$1") in *status=completed*|*status=failed*|*status=cancelled*) return 0;; *) return 1;; esac; }
has_moved() { [ "$(state "$1" | sed -n 's/.*bytes_read=\([0-9]*\).*/\1/p')" -gt 16777216 ] 2>/dev/null; }
compare() {
    admin restore disk "$1" --to "$dir/out-$1" --wait > /dev/null
    cmp "$dir/out-$1" "$dir/site/vms/web/disk0.raw" || fail "the point is not the disk"
    rm "$dir/out-$1"
}

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
