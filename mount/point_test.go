package mount

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindMount(t *testing.T) {
	const info = `22 1 0:21 / /proc rw,nosuid - proc proc rw
36 22 0:50 / /mnt/my\040dir rw,nosuid,nodev shared:5 - fuse.rfs rfs:demo rw,user_id=0
37 36 0:51 / /mnt/my\040dir rw - tmpfs none rw
garbage
`
	m, ok := findMount(strings.NewReader(info), "/mnt/my dir")
	if want := (mounted{"0:51", "/mnt/my dir", "tmpfs", "none"}); !ok || m != want {
		t.Errorf("the topmost mount is %+v, %v, want %+v", m, ok, want)
	}
	if _, ok := findMount(strings.NewReader(info), "/mnt"); ok {
		t.Error("a directory above a mount point counts as one")
	}
}

func TestPreparePoint(t *testing.T) {
	dir := t.TempDir()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := preparePoint(dir + "/link"); err != nil || got != real {
		t.Errorf("a link to a directory: %q, %v", got, err)
	}
	for point, remedy := range map[string]string{
		"":                    "no directory given",
		dir + "/none":         "mkdir -p " + dir + "/none",
		dir + "/it's missing": `mkdir -p '` + dir + `/it'\''s missing'`,
		dir + "/file":         "is not a directory",
		"/proc":               "umount /proc",
	} {
		if _, err := preparePoint(point); err == nil || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%q: %v; want it to say %q", point, err, remedy)
		}
	}
}

func TestHolders(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	hs := holders(dir)
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(hs) != 1 || hs[0].pid != cmd.Process.Pid || !strings.Contains(hs[0].String(), "works in it") {
		t.Errorf("holders: %v, want cat (pid %d)", hs, cmd.Process.Pid)
	}
}
