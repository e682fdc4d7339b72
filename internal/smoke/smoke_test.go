package smoke

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rfs/mount/mounttest"
)

func TestMain(m *testing.M) { mounttest.Main(m, nil) }

// patience bounds each program; they take seconds.
const patience = 3 * time.Minute

// run runs a program in a directory and returns what it printed.
func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	out, err := try(t, dir, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return out
}

func try(t *testing.T, dir, program string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is missing: install it with scripts/deps.sh test", program)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "LC_ALL=C",
		"GIT_AUTHOR_NAME=smoke", "GIT_AUTHOR_EMAIL=smoke@localhost", "GIT_COMMITTER_NAME=smoke", "GIT_COMMITTER_EMAIL=smoke@localhost")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// quiet runs a program that prints nothing when all is well.
func quiet(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	if out := run(t, dir, program, args...); strings.TrimSpace(out) != "" {
		t.Errorf("%s %s: %s", program, strings.Join(args, " "), out)
	}
}

// tree is a source tree that each machine with Go has.
func tree(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(strings.TrimSpace(run(t, ".", "go", "env", "GOROOT")), "src", name)
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mkdir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	mounttest.Check(t, os.MkdirAll(dir, 0o755))
	return dir
}

// TestPrograms is one story: what the first parts leave, the last reads with two targets gone.
func TestPrograms(t *testing.T) {
	server, root := mounttest.Shared(t)
	dir := mkdir(t, root, "smoke")
	t.Run("git", func(t *testing.T) { git(t, dir) })
	t.Run("tar", func(t *testing.T) { tar(t, dir) })
	t.Run("copy", func(t *testing.T) { copies(t, dir) })
	t.Run("fio", func(t *testing.T) { fio(t, dir) })
	t.Run("sqlite", func(t *testing.T) { sqlite(t, dir) })
	t.Run("two targets lost", func(t *testing.T) { loseTwo(t, server, dir) })
}

func git(t *testing.T, dir string) {
	src := t.TempDir()
	run(t, src, "git", "init", "-q", "-b", "main")
	for i := range 3 {
		for j := range 20 {
			path := filepath.Join(mkdir(t, src, fmt.Sprint("d", j%4)), fmt.Sprint("f", j))
			mounttest.Check(t, os.WriteFile(path, bytes.Repeat([]byte(fmt.Sprintln("line", i, j)), 1+j*j*i), 0o644))
		}
		run(t, src, "git", "add", "-A")
		run(t, src, "git", "commit", "-qm", fmt.Sprint("change ", i))
	}
	run(t, dir, "git", "clone", "-q", "file://"+src, "clone")
	clone := filepath.Join(dir, "clone")
	run(t, clone, "git", "fsck", "--full", "--strict")
	quiet(t, clone, "git", "status", "--porcelain")
	mounttest.Check(t, os.WriteFile(filepath.Join(clone, "new"), []byte("made on the mount\n"), 0o644))
	run(t, clone, "git", "add", "-A")
	run(t, clone, "git", "commit", "-qm", "on the mount")
	run(t, clone, "git", "gc", "-q")
	run(t, clone, "git", "fsck", "--full", "--strict")
	quiet(t, clone, "git", "status", "--porcelain")
}

func tar(t *testing.T, dir string) {
	src := tree(t, "encoding")
	run(t, dir, "tar", "-C", src, "-cf", "tree.tar", ".")
	to := mkdir(t, dir, "untarred")
	run(t, dir, "tar", "-C", to, "-xpf", "tree.tar")
	quiet(t, dir, "diff", "-r", src, to)
	quiet(t, to, "tar", "--compare", "-f", "../tree.tar")
}

func copies(t *testing.T, dir string) {
	src := tree(t, "archive")
	quiet(t, dir, "cp", "-a", src, "copied")
	quiet(t, dir, "diff", "-r", src, "copied")
	run(t, dir, "rsync", "-a", "copied/", "synced/")
	quiet(t, dir, "rsync", "-acn", "--itemize-changes", "copied/", "synced/")
	quiet(t, dir, "cp", "-a", "synced", "twice") // from the mount to itself: copy_file_range
	quiet(t, dir, "diff", "-r", "copied", "twice")
	quiet(t, dir, "rm", "-r", "synced", "twice")
}

// fioArgs are for a job that writes and reads back, in a file of its own.
func fioArgs(name, rw, bs, size string, more ...string) []string {
	return append([]string{
		"--name=" + name, "--rw=" + rw, "--bs=" + bs, "--size=" + size, "--verify=crc32c", "--verify_fatal=1",
		"--do_verify=1", "--ioengine=psync", "--fallocate=none", "--output-format=terse", "--randseed=7",
	}, more...)
}

func fio(t *testing.T, dir string) {
	run(t, dir, "fio", fioArgs("sequential", "write", "1M", "96M", "--end_fsync=1")...)
	run(t, dir, "fio", fioArgs("random", "randwrite", "4k", "6M", "--numjobs=2")...)
	run(t, dir, "fio", fioArgs("mixed", "randrw", "16k", "8M", "--rwmixread=60", "--direct=1")...)
	run(t, dir, "fio", fioArgs("odd", "write", "5000", "4M", "--fsync=100")...)
}

const fill = `CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT UNIQUE);
WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 5000) INSERT INTO t(v) SELECT hex(n*7919) || '-' || n FROM c;
CREATE INDEX i ON t(v);
UPDATE t SET v = v || 'x' WHERE id % 3 = 0;
DELETE FROM t WHERE id % 5 = 0;
`

func sqlite(t *testing.T, dir string) {
	for _, mode := range []string{"wal", "delete"} {
		db := "db." + mode
		if got := strings.TrimSpace(run(t, dir, "sqlite3", db, "PRAGMA journal_mode="+mode)); got != mode {
			t.Errorf("the journal mode is %q, want %q: are shared mappings missing?", got, mode)
		}
		run(t, dir, "sqlite3", db, fill)
		var writers sync.WaitGroup
		for w := range 3 {
			writers.Go(func() {
				for i := range 5 {
					insert := fmt.Sprintf("BEGIN IMMEDIATE; INSERT INTO t(v) VALUES('w%d-%d'); COMMIT;", w, i)
					if out, err := try(t, dir, "sqlite3", "-cmd", ".timeout 60000", db, insert); err != nil {
						t.Errorf("%s: %v: %s", insert, err, out)
					}
				}
			})
		}
		writers.Wait()
		integrity(t, dir, db)
	}
}

func integrity(t *testing.T, dir, db string) {
	t.Helper()
	if got := strings.TrimSpace(run(t, dir, "sqlite3", "-cmd", ".timeout 60000", db, "PRAGMA integrity_check; SELECT count(*) FROM t;")); got != "ok\n4015" {
		t.Errorf("%s: %s, want ok and 4015 rows", db, got)
	}
}

// loseTwo stops a target while fio writes, and a second one, as many as the pool's m, for reading. (A write to
// a slot needs k+1 of its members.)
func loseTwo(t *testing.T, server *mounttest.Server, dir string) {
	var writer sync.WaitGroup
	writer.Go(func() {
		out, err := try(t, dir, "fio", fioArgs("degraded", "write", "256k", "64M", "--rate=24M")...)
		if err != nil {
			t.Errorf("fio: %v\n%s", err, out)
		}
	})
	mounttest.Eventually(t, "fio writes", func() bool {
		st, err := os.Stat(filepath.Join(dir, "degraded.0.0"))
		return err == nil && st.Size() > 8<<20
	})
	mounttest.Check(t, server.Do(mounttest.Request{Op: "stop", Target: 1}))
	writer.Wait()
	quiet(t, dir, "cp", "-a", "copied", "copied degraded")
	mounttest.Check(t, server.Do(mounttest.Request{Op: "stop", Target: 4}))
	for _, job := range [][]string{
		fioArgs("sequential", "read", "1M", "96M"),
		fioArgs("degraded", "read", "256k", "64M"),
	} {
		run(t, dir, "fio", job...)
	}
	run(t, filepath.Join(dir, "clone"), "git", "fsck", "--full", "--strict")
	quiet(t, dir, "diff", "-r", tree(t, "encoding"), "untarred")
	quiet(t, dir, "diff", "-r", "copied", "copied degraded")
	for _, i := range []int{1, 4} {
		mounttest.Check(t, server.Do(mounttest.Request{Op: "start", Target: i}))
	}
	integrity(t, dir, "db.wal")
	integrity(t, dir, "db.delete")
	quiet(t, dir, "cp", "-a", "copied", "copied after")
	quiet(t, dir, "diff", "-r", "copied degraded", "copied after")
	quiet(t, dir, "rm", "-r", "clone", "untarred", "copied", "copied degraded", "copied after")
}
