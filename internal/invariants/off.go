//go:build !invariants && !race

// Package invariants says whether costly checks of invariants run: with the
// build tag "invariants" and under the race detector. Enabled is a constant,
// so that checks behind it cost nothing elsewhere.
package invariants

// Enabled is false: the costly checks are compiled out.
const Enabled = false
