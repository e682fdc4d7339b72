// Package vfs is the file system as the stores of rfs use it, so that a test
// can put a simulated disk under them.
//
//	chunkstore, raftmeta
//	   |          \
//	   |           Pebble, through FS.Pebble
//	   v           v
//	  FS --- OS    the operating system's: pread, pwrite, O_DIRECT, fallocate, flock
//	    \--- Disk  a simulated disk: knows what was flushed, loses and tears the
//	               rest in a crash, fails on demand
//
// What is durable is what POSIX promises and no more: bytes after Sync of their
// file, names after SyncDir of their directory.
//
// Errors are *os.PathError or *os.LinkError around an errno, on both, so that
// errors.Is(err, fs.ErrNotExist) and errors.Is(err, syscall.ENOSPC) work.
package vfs

import (
	"errors"
	"io"
	"os"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// SectorSize is what a disk writes whole, in bytes: a crash may lose any sector
// that was not flushed, one by one.
const SectorSize = 512

// DirectAlign is what O_DIRECT asks of memory, offset and length, in bytes.
const DirectAlign = 4096

// Mode says how to open a file.
type Mode uint8

// Modes.
const (
	ReadOnly Mode = iota
	ReadWrite
	// Direct is ReadWrite past the page cache (O_DIRECT): memory, offsets and
	// lengths must be multiples of DirectAlign. A file system that has no such
	// thing fails the Open with syscall.EINVAL.
	Direct
)

// FS is a file system. Its methods may be called from any goroutine.
type FS interface {
	// Create makes a file, or empties the one that is there, and opens it ReadWrite.
	Create(name string) (File, error)
	Open(name string, m Mode) (File, error)
	// Mkdir makes a directory and those above it; one that exists is no error.
	Mkdir(name string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Rename puts a file in the place of another, atomically.
	Rename(oldname, newname string) error
	Link(oldname, newname string) error
	// List returns the names in a directory, sorted.
	List(dir string) ([]string, error)
	Stat(name string) (os.FileInfo, error)
	// SyncDir makes the names in a directory durable: what was created in it,
	// renamed into it or removed from it.
	SyncDir(dir string) error
	// Lock takes the lock of the named file, which it makes if need be, without
	// waiting: syscall.EWOULDBLOCK if another process, or another caller in this
	// one, has it. It is held until Close or the end of the process.
	Lock(name string) (io.Closer, error)
	// Usage returns the size of the disk below dir.
	Usage(dir string) (Usage, error)
	// BootID changes when what was not flushed may be lost: it names the run of
	// the machine whose memory caches the disk.
	BootID() string
	// Pebble returns the same file system as Pebble wants it.
	Pebble() vfs.FS
}

// Usage is the size of a disk, in bytes.
type Usage struct {
	Total, Avail int64
	// Sparse is set where preallocation would take memory rather than disk: tmpfs.
	Sparse bool
}

// File is an open file. ReadAt and WriteAt may be called from any goroutine.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the file's bytes, and its length, durable (fdatasync). After
	// it has failed once nothing is known of any byte written before.
	Sync() error
	Truncate(size int64) error
	// Allocate makes room for n bytes from off, which read as zeros if never
	// written, and lengthens the file if need be. Where the file system cannot
	// reserve room it only lengthens the file.
	Allocate(off, n int64) error
	// PunchHole gives the room of n bytes from off back; they read as zeros. A
	// file system that cannot returns an error wrapping errors.ErrUnsupported.
	PunchHole(off, n int64) error
	Size() (int64, error)
}

// WriteFile makes a small file durable in one step: under a temporary name
// first, then renamed, then its directory synced. A crash leaves the old one or the new.
func WriteFile(fsys FS, dir, name string, data []byte) error {
	tmp := dir + "/" + name + ".tmp"
	f, err := fsys.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, dir+"/"+name)
	}
	if err != nil {
		_ = fsys.Remove(tmp)
		return err
	}
	return fsys.SyncDir(dir)
}

// ReadFile returns the bytes of a file.
func ReadFile(fsys FS, name string) ([]byte, error) {
	f, err := fsys.Open(name, ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// Aligned reports whether O_DIRECT would take the transfer.
func Aligned(p []byte, off int64) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%DirectAlign == 0 && len(p)%DirectAlign == 0 && off%DirectAlign == 0
}
