# two-sites.sh: to be sourced with `program` set. A hub and a node in two network namespaces, and what a script does with them. The sourcing
# script makes the line between them (`link`: devices h$$ in namespace $hub, n$$ in $node, see `address_line`), then calls `begin [ARGUMENT OF THE NODE...]`.
# Needs root, iproute2 and openssl.
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
address_line() {
    ip -n "$hub" addr add 10.99.0.1/24 dev "h$$"; ip -n "$node" addr add 10.99.0.2/24 dev "n$$"
    for side in "$hub h$$" "$node n$$"; do
        # shellcheck disable=SC2086
        set -- $side
        ip -n "$1" link set lo up; ip -n "$1" link set "$2" up
    done
}

admin() {
    ip netns exec "$hub" env SENDENSE_URL=https://10.99.0.1:8082 SENDENSE_TOKEN_FILE="$dir/hub/admin-token" \
        SENDENSE_CA_FILE="$dir/hub/tls/certificate.pem" "$program" "$@"
}
begin() {
    mkdir -p "$dir/repo" "$dir/site/vms/web"
    ip netns exec "$hub" "$program" hub --listen 10.99.0.1:8082 --data-dir "$dir/hub" --allow-path "$dir" > "$dir/hub.out" 2> "$dir/hub.log" &
    pids+=($!)
    until_true 60 grep -q '^listening on' "$dir/hub.out" || fail "the hub does not start"
    local fingerprint code
    fingerprint=$(openssl x509 -noout -fingerprint -sha256 -in "$dir/hub/tls/certificate.pem" | cut -d= -f2)
    admin repo add local --name main --path "$dir/repo" > /dev/null
    code=$(admin node pair --name SITE-A 2>/dev/null)
    ip netns exec "$node" "$program" node enrol --hub https://10.99.0.1:8082 --code "$code" --fingerprint "$fingerprint" --data-dir "$dir/node"
    ip netns exec "$node" "$program" node --data-dir "$dir/node" --allow-path "$dir/site" "$@" > "$dir/node.out" 2> "$dir/node.log" &
    pids+=($!)
    until_true 60 grep -q '^node SITE-A' "$dir/node.out" || fail "the node does not start"
    admin source add image --name images --path "$dir/site/vms" --node SITE-A > /dev/null
    admin source discover images > /dev/null
}

state() { admin backup show "$1" --json | sed -n 's/^ *"\(status\|bytes_read\|error_message\)": "\{0,1\}\([^",]*\).*/\1=\2/p' | sort -u | tr '\n' ' '; }
start() { admin backup start web --repo main --type full --json | sed -n 's/^ *"backup_id": "\(.*\)",*/\1/p' | head -n 1; }
has_ended() { case $(state "$1") in *status=completed*|*status=failed*|*status=cancelled*) return 0;; *) return 1;; esac; }
has_moved() { [ "$(state "$1" | sed -n 's/.*bytes_read=\([0-9]*\).*/\1/p')" -gt 16777216 ] 2>/dev/null; }
compare() {
    admin restore disk "$1" --to "$dir/out-$1" --wait > /dev/null
    cmp "$dir/out-$1" "$dir/site/vms/web/disk0.raw" || fail "the point is not the disk"
    rm "$dir/out-$1"
}
