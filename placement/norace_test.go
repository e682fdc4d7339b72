//go:build !race

package placement

const manySlots = 100_000
