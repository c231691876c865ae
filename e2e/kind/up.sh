#!/usr/bin/env bash
# A kind cluster with the chart, an Underlay and a tenant in it, to look around in until Ctrl-C. From another terminal
# e2e/kind/in.sh runs commands there.
set -euo pipefail
cd "$(dirname "$0")/../.."
make --no-print-directory kind-parts
exec target/debug/lab kind test --stay
