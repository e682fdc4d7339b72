//go:build !noasm && !appengine && !gccgo && !nopshufb

package erasure

// assembly says that reedsolomon's assembly is compiled in.
const assembly = true
