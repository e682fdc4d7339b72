//go:build invariants || race

package invariants

// Enabled is true: the costly checks run.
const Enabled = true
