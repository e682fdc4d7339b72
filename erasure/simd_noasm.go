//go:build noasm || appengine || gccgo || nopshufb

package erasure

const assembly = false
