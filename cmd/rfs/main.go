// Rfs is the command of who uses an rfs cluster: it mounts it, copies files in
// and out without a mount, shows and changes pools, targets and metadata
// replicas, and runs a whole cluster in one process to play with.
//
// Called as mount.rfs it is the helper of mount(8): `mount -t rfs SOURCE DIR`.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"rfs/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	root := newRoot()
	if filepath.Base(os.Args[0]) == "mount.rfs" {
		root = newMountHelper()
	}
	os.Exit(cli.Execute(ctx, root))
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "rfs",
		Short: "An erasure-coded file system for the scratch space of HPC jobs",
		Long: `rfs mounts an rfs cluster, copies files in and out without a mount, and shows and
changes what the cluster consists of.

The cluster is found through a configuration file: --config, else $RFS_CONFIG, else
/etc/rfs/client.toml. It lists metadata replicas and names the cluster's key file.

` + cli.ExitHelp,
		Example: `  rfs dev --mount /mnt/rfs       # a cluster in this process, to play with
  rfs status
  mount -t rfs /etc/rfs/client.toml /scratch
  rfs put -r results /jobs/4711`,
	}
	o.flags(root)
	root.AddGroup(
		&cobra.Group{ID: "files", Title: "Files:"},
		&cobra.Group{ID: "cluster", Title: "The cluster:"},
		&cobra.Group{ID: "play", Title: "Trying it:"})
	group := func(id string, cs ...*cobra.Command) {
		for _, c := range cs {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("files", newMount(o), newUmount(o), newPut(o), newGet(o), newLs(o), newStat(o), newMkdir(o), newRm(o))
	group("cluster", newStatus(o), newPool(o), newTarget(o), newMeta(o), newConfig(o), newNet(o))
	group("play", newDev(), newDemo())
	root.AddCommand(newVersion(), cli.ManCommand("1"))
	return root
}
