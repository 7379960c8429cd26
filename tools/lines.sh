#!/usr/bin/env bash
# Prints the lines of code of each room, without blank lines, comments and tests; fails where a file has over 800 lines.
set -euo pipefail
cd "$(dirname "$0")/.."

code() { # of one file
    awk '
        /^#\[cfg\(test\)\]$/ { held = 1; next }
        held && /^(pub )?mod [a-z_]+ \{/ { exit }
        { held = 0 }
        !/^[[:space:]]*(\/\/.*)?$/ { n += 1 }
        END { print n + 0 }' "$1"
}

declare -A lines
status=0
while IFS= read -r file; do
    if [ "$(wc -l <"$file")" -gt 800 ]; then
        echo "$file has more than 800 lines" >&2
        status=1
    fi
    case $file in
    tests/* | benches/* | */tests.rs | */testing.rs) continue ;;
    src/*/*) room=$(cut -d/ -f2 <<<"$file") ;;
    *) room=$(cut -d/ -f1 <<<"$file") ;;
    esac
    lines[$room]=$((${lines[$room]:-0} + $(code "$file")))
done < <(git ls-files '*.rs' '*.wgsl')
total=0
for room in "${!lines[@]}"; do
    printf '%8d %s\n' "${lines[$room]}" "$room"
    total=$((total + lines[$room]))
done | sort -rn
for room in "${!lines[@]}"; do total=$((total + lines[$room])); done
printf '%8d in all\n' "$total"
exit "$status"
