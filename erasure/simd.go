package erasure

import (
	"runtime"

	"github.com/klauspost/cpuid/v2"
)

// SIMD names the instructions by which this processor multiplies in GF(2^8).
func SIMD() string {
	c := &cpuid.CPU
	switch {
	case !assembly:
		return "portable Go (" + runtime.GOARCH + ", built without assembly)"
	case c.Supports(cpuid.AVX512F, cpuid.GFNI, cpuid.AVX512DQ):
		return "GFNI+AVX512"
	case c.Supports(cpuid.AVX, cpuid.GFNI):
		return "GFNI+AVX"
	case c.Supports(cpuid.AVX2):
		return "AVX2"
	case c.Supports(cpuid.SSSE3):
		return "SSSE3"
	case c.Supports(cpuid.SVE):
		return "SVE"
	case c.Supports(cpuid.ASIMD):
		return "NEON"
	}
	return "portable Go (" + runtime.GOARCH + ")"
}
