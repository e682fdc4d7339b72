package raftmeta

import (
	"encoding/json"
	"fmt"

	"rfs/placement"
)

// The cluster map is JSON, in the state and on the wire: it changes seldom, is
// read by people, and gains fields.

func encodeMap(m *placement.Map) ([]byte, error) { return json.Marshal(m) }

func decodeMap(b []byte) (*placement.Map, error) {
	m := new(placement.Map)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("cluster map of %d bytes does not decode: %w", len(b), err)
	}
	m.Index()
	return m, nil
}
