#!/usr/bin/env bash
# Compiles the library for browsers: WebGPU, no features of the command.
set -euo pipefail
cd "$(dirname "$0")/.."

target=wasm32-unknown-unknown
if ! rustc --print target-libdir --target "$target" | xargs test -d; then
    rustup target add "$target"
fi
cargo build --lib --locked --no-default-features --features webgpu --target "$target"
