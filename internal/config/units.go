package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// unitError says that text is not a number with a unit.
type unitError struct{ what, text, like string }

func (e *unitError) Error() string {
	return fmt.Sprintf("%s %q: want a string of a number and a unit, like %s", e.what, e.text, e.like)
}

// Size is a number of bytes that is written with a unit: "64MiB", "1.5TB", "0".
type Size struct{ Bytes int64 }

var units = []struct {
	name  string
	bytes int64
}{
	{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

// ParseSize is the inverse of Size.String.
func ParseSize(s string) (Size, error) {
	if s == "0" {
		return Size{}, nil
	}
	for _, u := range units {
		n, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n = strings.TrimSpace(n)
		if v, err := strconv.ParseInt(n, 10, 64); err == nil && v >= 0 && v <= (1<<63-1)/u.bytes {
			return Size{v * u.bytes}, nil
		}
		if v, err := strconv.ParseFloat(n, 64); err == nil && v >= 0 && v*float64(u.bytes) < 1<<62 {
			return Size{int64(v * float64(u.bytes))}, nil
		}
	}
	return Size{}, &unitError{"size", s, `"64MiB" or "1.5TB"`}
}

func (s Size) String() string {
	if s.Bytes == 0 {
		return "0"
	}
	for _, u := range units {
		if s.Bytes%u.bytes == 0 {
			return strconv.FormatInt(s.Bytes/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(s.Bytes, 10) + "B"
}

func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s *Size) UnmarshalText(b []byte) (err error) {
	*s, err = ParseSize(string(b))
	return err
}

// Duration is a time that is written with a unit: "6s", "100ms", "1m30s".
type Duration struct{ time.Duration }

// Seconds returns n seconds.
func Seconds(n int) Duration { return Duration{time.Duration(n) * time.Second} }

func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return &unitError{"duration", string(b), `"6s" or "100ms"`}
	}
	d.Duration = v
	return nil
}
