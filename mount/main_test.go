package mount_test

import (
	"os/exec"
	"testing"

	"rfs/mount/mounttest"
)

func TestMain(m *testing.M) {
	mounttest.Main(m, map[string]func() error{"mmap": mmapRole, "lock": lockRole, "append": appendRole})
}

func sharedMount(t *testing.T) string {
	t.Helper()
	_, dir := mounttest.Shared(t)
	return dir
}

func play(_ *testing.T, role string, args ...string) *exec.Cmd { return mounttest.Play(role, args...) }

func check(t *testing.T, err error) {
	t.Helper()
	mounttest.Check(t, err)
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	mounttest.Eventually(t, what, cond)
}
