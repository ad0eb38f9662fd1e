#!/usr/bin/env bash
# test.sh [ARGUMENT…]: runs the tests, with what is given to cargo besides.
# Some of them mount file systems, make loop devices or run a database as somebody else. Who is not root builds them as
# oneself, and has sudo run them.
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "the tests need root: install sudo, or run 'make test' as root" >&2; exit 1; }
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${host}_RUNNER=sudo --preserve-env env PATH=$PATH"
fi
exec cargo test --locked --workspace --no-fail-fast "$@"
