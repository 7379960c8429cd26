#!/usr/bin/env bash
# Fails when a source file has more than 800 lines, or Rust and WGSL outside tests have more than 29,000.
set -euo pipefail
cd "$(dirname "$0")/.."

total=0
status=0
while IFS= read -r file; do
    lines=$(wc -l <"$file")
    if [ "$lines" -gt 800 ]; then
        echo "$file has $lines lines; the limit is 800" >&2
        status=1
    fi
    # Unit tests stand at the bottom of their file, after `#[cfg(test)]` and `mod tests`.
    counted=$(awk '/^#\[cfg\(test\)\]$/ { held = 1; next } held && /^mod tests \{/ { exit } { n += 1 + held; held = 0 } END { print n + 0 }' "$file")
    total=$((total + counted))
done < <(git ls-files '*.rs' '*.wgsl' | grep -vE '^tests/|/(tests|testing)\.rs$')
echo "Rust and WGSL outside tests: $total lines of 29000"
[ "$total" -le 29000 ] || status=1
exit "$status"
