package placement

import (
	"fmt"
	"strconv"
	"strings"

	"rfs"
)

// A Scheme is how a stripe is protected: K data shards and M parity shards, of
// which any K give the data. K = 1 is replication in 1+M copies.
type Scheme struct {
	K uint8 // data shards
	M uint8 // parity shards
}

// ParseScheme reads "ec:4+2" (k+m) or "replica:3" (copies) and validates it.
func ParseScheme(s string) (Scheme, error) {
	kind, arg, _ := strings.Cut(s, ":")
	var k, m int
	var err1, err2 error
	switch kind {
	case "ec":
		a, b, ok := strings.Cut(arg, "+")
		if !ok {
			return Scheme{}, fmt.Errorf("scheme %q: want ec:K+M, as in ec:4+2", s)
		}
		k, err1 = strconv.Atoi(a)
		m, err2 = strconv.Atoi(b)
	case "replica":
		k = 1
		m, err1 = strconv.Atoi(arg)
		m--
	default:
		return Scheme{}, fmt.Errorf("scheme %q: want ec:K+M (as in ec:4+2) or replica:N (as in replica:3)", s)
	}
	if err1 != nil || err2 != nil {
		return Scheme{}, fmt.Errorf("scheme %q: want decimal numbers, as in ec:4+2 or replica:3", s)
	}
	if err := validate(k, m); err != nil {
		return Scheme{}, fmt.Errorf("scheme %q: %w", s, err)
	}
	return Scheme{uint8(k), uint8(m)}, nil
}

func validate(k, m int) error {
	switch {
	case k < 1:
		return fmt.Errorf("k is %d: a stripe needs at least 1 data shard", k)
	case m < 1:
		return fmt.Errorf("m is %d: a stripe needs at least 1 parity shard (or 2 copies) to outlive a target", m)
	case k+m > rfs.MaxShards:
		return fmt.Errorf("k+m is %d: at most %d shards", k+m, rfs.MaxShards)
	}
	return nil
}

// Validate reports what is wrong with s, if anything.
func (s Scheme) Validate() error {
	if err := validate(int(s.K), int(s.M)); err != nil {
		return fmt.Errorf("scheme %v: %w", s, err)
	}
	return nil
}

// Width returns k+m.
func (s Scheme) Width() int { return int(s.K) + int(s.M) }

// String is the inverse of ParseScheme.
func (s Scheme) String() string {
	if s.K == 1 {
		return fmt.Sprintf("replica:%d", s.Width())
	}
	return fmt.Sprintf("ec:%d+%d", s.K, s.M)
}

func (s Scheme) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s *Scheme) UnmarshalText(b []byte) (err error) {
	*s, err = ParseScheme(string(b))
	return err
}
