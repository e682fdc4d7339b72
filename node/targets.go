package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"rfs"
	"rfs/chunkstore"
	"rfs/internal/config"
	"rfs/internal/vfs"
	"rfs/server"
)

// The state directory of a node:
//
//	node-id            its UUID
//	targets/DIR        one file a target directory, its name escaped: which target was there
//
// The latter tell a replaced disk from one that is not mounted: what stands empty
// where a target was is not formatted without being told (ForgetTarget).

// nodeID returns the node's id, which it makes once.
func nodeID(stateDir string) (rfs.NodeID, error) {
	if err := os.MkdirAll(stateDir, 0o750); err != nil {
		return rfs.NodeID{}, fmt.Errorf("node.state_dir: %w", err)
	}
	path := filepath.Join(stateDir, "node-id")
	b, err := os.ReadFile(path)
	if err == nil {
		id, err := rfs.ParseUUID(strings.TrimSpace(string(b)))
		if err != nil {
			return id, fmt.Errorf("%s: %w: restore the file, or remove it to be a new node", path, err)
		}
		return id, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return rfs.NodeID{}, fmt.Errorf("node.state_dir: %w", err)
	}
	id := rfs.NewUUID()
	return id, vfs.WriteFile(vfs.OS, stateDir, "node-id", []byte(id.String()+"\n"))
}

// openTargets opens the store of each target, and formats what is empty and new.
func openTargets(cfg []config.Target, stateDir string, cluster rfs.UUID, log *slog.Logger) (out []server.TargetOptions, err error) {
	defer func() {
		if err != nil {
			closeTargets(out)
			out = nil
		}
	}()
	for _, t := range cfg {
		store, err := openTarget(t, stateDir, cluster, log)
		if err != nil {
			return out, err
		}
		out = append(out, server.TargetOptions{Name: filepath.Base(t.Dir), Store: store})
	}
	return out, nil
}

func closeTargets(ts []server.TargetOptions) {
	for _, t := range ts {
		_ = t.Store.Close()
	}
}

func openTarget(t config.Target, stateDir string, cluster rfs.UUID, log *slog.Logger) (*chunkstore.Store, error) {
	id, err := chunkstore.ReadIdentity(nil, t.Dir)
	if errors.Is(err, chunkstore.ErrNotTarget) {
		id.Target, err = formatTarget(t, stateDir, cluster)
	}
	if err != nil {
		return nil, err
	}
	o := chunkstore.Options{Dir: t.Dir, ClusterID: cluster, TargetID: id.Target, Capacity: t.Capacity.Bytes, Log: log}
	s, err := chunkstore.Open(o)
	if err != nil {
		return nil, err
	}
	return s, rememberTarget(stateDir, t.Dir, id.Target)
}

// formatTarget makes a new target of an empty directory.
func formatTarget(t config.Target, stateDir string, cluster rfs.UUID) (rfs.TargetID, error) {
	was, err := recallTarget(stateDir, t.Dir)
	if err != nil {
		return was, err
	}
	if !was.IsZero() {
		return was, fmt.Errorf("target %s was target %v and is not any more: is its disk mounted? If it was replaced, `rfsd target forget %s` and start again",
			t.Dir, was, t.Dir)
	}
	id := rfs.NewUUID()
	return id, chunkstore.Format(chunkstore.Options{Dir: t.Dir, ClusterID: cluster, TargetID: id, Capacity: t.Capacity.Bytes})
}

// remembered is a file of targets/.
type remembered struct {
	Target rfs.TargetID `json:"target"`
}

func targetFile(dir string) string { return url.PathEscape(filepath.Clean(dir)) }

func rememberTarget(stateDir, dir string, id rfs.TargetID) error {
	if was, err := recallTarget(stateDir, dir); err == nil && was == id {
		return nil
	}
	folder := filepath.Join(stateDir, "targets")
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	b, err := json.Marshal(remembered{id})
	if err != nil {
		return err
	}
	return vfs.WriteFile(vfs.OS, folder, targetFile(dir), append(b, '\n'))
}

// recallTarget returns which target was in the directory, or zero.
func recallTarget(stateDir, dir string) (rfs.TargetID, error) {
	var r remembered
	path := filepath.Join(stateDir, "targets", targetFile(dir))
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return r.Target, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r.Target, fmt.Errorf("%s: %w: remove the file if the target in %s may be formatted anew", path, err, dir)
	}
	return r.Target, nil
}

// ForgetTarget lets the directory be formatted at the next start, if it is empty then.
func ForgetTarget(stateDir, dir string) error {
	err := os.Remove(filepath.Join(stateDir, "targets", targetFile(dir)))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("target %s is not known to %s: %w", dir, stateDir, rfs.ErrNotFound)
	}
	return err
}
