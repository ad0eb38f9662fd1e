# Sourced: starts a hub with the binary $sendense on images below $work/vms, and waits until it listens; adds its pid to $pids, and
# gives `sd`, the command line against it, and $url. $hub_args are more arguments for it, $repo_args for its repository.
: > "$work/hub.out" # it is looked into before the shell below has made it
"$sendense" hub --data-dir "$work/hub" --listen 127.0.0.1:0 --allow-path "$work" ${hub_args:-} > "$work/hub.out" 2> "$work/hub.log" &
hub=$!
pids+=("$hub")
for _ in $(seq 300); do
    url=$(sed -n 's/^listening on //p' "$work/hub.out"); [ -z "$url" ] || break
    kill -0 "$hub" || { cat "$work/hub.log" >&2; exit 1; }
    sleep 0.1
done
export SENDENSE_URL=$url SENDENSE_TOKEN_FILE=$work/hub/admin-token
sd() { "$sendense" "$@"; }
sd repo add local --name main --path "$work/repo" ${repo_args:-} > /dev/null
sd source add image --name images --path "$work/vms" > /dev/null 2>&1
sd source discover images > /dev/null 2>&1
