#!/usr/bin/env bash
# usage: scripts/fuzz.sh FUZZTIME   gives each fuzz target of the tree that many inputs (3000x) or seconds (30s).
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${1:-3000x}
git grep -hn --full-name -E '^func Fuzz[A-Za-z0-9_]+\(' -- '*_test.go' >/dev/null || { echo "fuzz: no targets"; exit 0; }
while IFS=: read -r file name; do
	dir=./$(dirname "$file")
	printf 'fuzz %s %s\n' "$dir" "$name"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime" -fuzzminimizetime 1x -timeout 10m "$dir"
done < <(git grep -E '^func Fuzz[A-Za-z0-9_]+\(' -- '*_test.go' | sed -E 's/:func (Fuzz[A-Za-z0-9_]+).*/:\1/')
