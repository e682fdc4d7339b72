//go:build race

package placement

// manySlots is fewer under the race detector, which has nothing to find in
// code without goroutines and makes it ten times slower.
const manySlots = 10_000
