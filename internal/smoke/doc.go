// Package smoke runs real programs on a mounted cluster and checks what they leave there: git, tar, cp,
// rsync, fio and sqlite3, and all of it again when two targets are gone. It has no code, only tests.
//
//	program ---> kernel ---> mount, client, 7 targets in another process (mount/mounttest)
//
// scripts/deps.sh installs the programs; one that is missing fails its test.
package smoke
