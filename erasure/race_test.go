//go:build race

package erasure

// The race detector makes sync.Pool forget at random.
const raceEnabled = true
