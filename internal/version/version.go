// Package version says what was built: the version and commit that the Makefile
// hands the linker, or else what the go command recorded.
package version

import (
	"runtime"
	"runtime/debug"
)

// Set by the linker: -X rfs/internal/version.version=...
var version, commit string

// Info describes a build.
type Info struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Tags    string `json:"tags"` // build tags, separated by commas
	CGO     bool   `json:"cgo"`
}

// Get returns what this binary was built from.
func Get() Info {
	i := Info{Version: version, Commit: commit, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	b, ok := debug.ReadBuildInfo()
	if ok {
		for _, s := range b.Settings {
			switch s.Key {
			case "-tags":
				i.Tags = s.Value
			case "CGO_ENABLED":
				i.CGO = s.Value == "1"
			case "vcs.revision":
				if i.Commit == "" {
					i.Commit = s.Value
				}
			}
		}
	}
	if i.Version == "" {
		i.Version = "devel"
	}
	return i
}

func (i Info) String() string {
	if len(i.Commit) >= 12 && i.Version != i.Commit[:min(len(i.Version), len(i.Commit))] {
		return i.Version + " (" + i.Commit[:12] + ")"
	}
	return i.Version
}
