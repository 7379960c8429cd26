#!/usr/bin/env bash
# Runs all tests. Kernel tests need a Vulkan, Metal or DX12 adapter; where there is none, this installs Mesa's software
# Vulkan driver (Debian and Ubuntu).
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --locked
# Not a pipe: grep -q leaves at its first match, and the broken pipe would count as a failure.
adapters=$(./target/release/medfuse devices --json)
if [[ $adapters != *'"index"'* ]]; then
    if ! command -v apt-get >/dev/null; then
        echo "no GPU adapter: install a Vulkan driver for this machine, then run this again" >&2
        exit 1
    fi
    as_root=""
    [ "$(id -u)" -eq 0 ] || as_root="sudo"
    $as_root apt-get update -qq
    $as_root apt-get install -y -qq mesa-vulkan-drivers
fi
cargo test --release --locked
