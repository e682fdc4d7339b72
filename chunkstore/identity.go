package chunkstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"rfs"
	"rfs/internal/vfs"
)

const (
	identityName = "rfs-target"
	lockName     = "LOCK"
	cleanName    = "clean"
	bootName     = "boot"
	segmentsDir  = "segments"
	indexDir     = "index"

	// FormatVersion is the version of everything below a target's directory. A
	// store of a newer one is refused.
	FormatVersion = 1
)

// Identity is what the file rfs-target of a directory says, as JSON.
type Identity struct {
	Format      int          `json:"format"`
	Cluster     rfs.UUID     `json:"cluster"`
	Target      rfs.TargetID `json:"target"`
	SegmentSize int64        `json:"segment_size"` // bytes
	Capacity    int64        `json:"capacity"`     // bytes
}

// The errors of opening a directory; each comes wrapped in a message that
// names the directory and the remedy.
var (
	ErrLocked    = errors.New("in use by another process")
	ErrForeign   = errors.New("belongs to another cluster or target")
	ErrNotEmpty  = errors.New("directory is not empty")
	ErrNotTarget = errors.New("not a target directory")
	ErrNewer     = errors.New("written by a newer rfs")
	ErrBadIndex  = errors.New("index cannot be read")
)

// ReadIdentity says whose the target directory is. It takes no lock.
func ReadIdentity(fsys vfs.FS, dir string) (Identity, error) {
	var id Identity
	if fsys == nil {
		fsys = vfs.OS
	}
	b, err := vfs.ReadFile(fsys, dir+"/"+identityName)
	if errors.Is(err, fs.ErrNotExist) {
		return id, fmt.Errorf("target %s: no file %s: %w: format it first, or correct the path", dir, identityName, ErrNotTarget)
	} else if err != nil {
		return id, diskError("read identity", err)
	}
	if err := json.Unmarshal(b, &id); err != nil {
		return id, fmt.Errorf("target %s: file %s: %w: %w: restore it from a copy, or format the directory anew and let the cluster refill it",
			dir, identityName, err, ErrNotTarget)
	}
	if id.Format > FormatVersion {
		return id, fmt.Errorf("target %s: format %d, this rfs knows %d: %w: upgrade rfsd", dir, id.Format, FormatVersion, ErrNewer)
	}
	if id.Format < 1 || id.SegmentSize < minSegment || id.SegmentSize%minSegment != 0 || id.SegmentSize > maxSegment || id.Capacity < id.SegmentSize {
		return id, fmt.Errorf("target %s: file %s has format %d, segments of %d bytes, capacity %d: %w: restore it from a copy",
			dir, identityName, id.Format, id.SegmentSize, id.Capacity, ErrNotTarget)
	}
	return id, nil
}

func (id Identity) check(dir string, cluster rfs.UUID, target rfs.TargetID) error {
	if !cluster.IsZero() && cluster != id.Cluster {
		return fmt.Errorf("target %s: of cluster %v, not %v: %w: give this daemon another directory, or empty that one",
			dir, id.Cluster, cluster, ErrForeign)
	}
	if !target.IsZero() && target != id.Target {
		return fmt.Errorf("target %s: is target %v, not %v: %w: correct the id in the configuration",
			dir, id.Target, target, ErrForeign)
	}
	return nil
}

// diskError wraps an error of the disk with the error of the root package that it amounts to.
func diskError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("chunkstore: %s: %w: %w", op, rfs.ErrNoSpace, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("chunkstore: %s: %w: %w: remount the disk read-write, or drain the target", op, rfs.ErrReadOnly, err)
	}
	return fmt.Errorf("chunkstore: %s: %w", op, err)
}
