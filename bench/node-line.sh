#!/usr/bin/env bash
# node-line.sh [MIB]: how full a node keeps a line of 100 Mbit/s at 150 ms, from the request to the published point, with noise and with text.
# The line is the delaying proxy of the end-to-end tests; 200 MiB if nothing is said.
set -euo pipefail
cd "$(dirname "$0")/.."
SENDENSE_LINE_MIB=${1:-200} cargo test --locked --release -p sendense --test e2e a_long_line_is_filled -- --nocapture --test-threads 1 |
    grep -F "of 100 Mbit/s at 150 ms"
