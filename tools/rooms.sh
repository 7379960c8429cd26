#!/usr/bin/env bash
# Fails where a room of src/ names a room that it must not know: rooms know only those further down in this list.
# Tests are left out: they may use everything.
set -euo pipefail
cd "$(dirname "$0")/.."

order=(
    cli
    bench verify
    train
    models
    device
    ops
    graph
    gpu cpu weights metrics diffusion
    imaging
    tensor files hash
)

declare -A rank
for i in "${!order[@]}"; do rank[${order[$i]}]=$i; done
status=0
while IFS= read -r file; do
    room=$(sed -E 's#^src/([a-z_]+).*#\1#' <<<"$file")
    [[ $room == lib || $room == main ]] && continue
    if [[ -z ${rank[$room]:-} ]]; then
        echo "$file: the room $room has no place in $0" >&2
        status=1
        continue
    fi
    # Unit tests stand at the bottom of their file, after `#[cfg(test)]` and `mod`.
    code=$(awk '/^#\[cfg\(test\)\]$/ { held = NR; next } held == NR - 1 && /^mod [a-z_]+ \{/ { exit } { print }' "$file")
    # Comments may name what they explain.
    named=$(sed -E 's#//.*##' <<<"$code" | grep -oE 'crate::[a-z_]+' | sort -u | sed 's/crate:://' || true)
    for other in $named; do
        [[ -n ${rank[$other]:-} ]] || continue
        if [[ $other != "$room" && ${rank[$other]} -lt ${rank[$room]} ]]; then
            echo "$file: $room must not know $other" >&2
            status=1
        fi
    done
done < <(git ls-files 'src/*.rs' | grep -vE '/(tests|testing)\.rs$')
exit "$status"
