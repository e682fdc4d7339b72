package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/cockroachdb/pebble/v2/vfs"

	"rfs"
)

// Names are linearizable: what clients see of them, while leaders come and go,
// could have happened one after the other.

type nameOp struct {
	verb string // create, unlink, lookup
	name string
}

// nameResult is an inode, or 0 if there was none (create: there was one already).
type nameResult struct {
	inode rfs.InodeID
}

var nameModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (out [][]porcupine.Operation) {
		by := map[string][]porcupine.Operation{}
		for _, op := range history {
			n := op.Input.(nameOp).name
			by[n] = append(by[n], op)
		}
		for _, ops := range by {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return rfs.InodeID(0) },
	Step: func(state, input, output any) (bool, any) {
		at, op, res := state.(rfs.InodeID), input.(nameOp), output.(nameResult)
		switch op.verb {
		case "create":
			if res.inode == 0 {
				return at != 0, at
			}
			return at == 0, res.inode
		case "unlink":
			if res.inode == 0 {
				return at == 0, at
			}
			return at != 0, rfs.InodeID(0)
		}
		return at == res.inode, at
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprint(input, " -> ", output) },
}

func TestNamesAreLinearizable(t *testing.T) {
	t.Parallel()
	rnd := seeded(t)
	c := began(t, 3, nil)
	const clients, each = 4, 60
	began := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var wg sync.WaitGroup
	ctx := c.ctx()
	for i := range clients {
		cl := c.session(Events{})
		r := rand.New(rand.NewPCG(rnd.Uint64(), 0))
		wg.Go(func() {
			for range each {
				op := nameOp{[]string{"create", "unlink", "lookup"}[r.IntN(3)], fmt.Sprint("n", r.IntN(3))}
				call := time.Since(began)
				res, err := tryName(ctx, cl, op)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: i, Input: op, Call: int64(call), Output: res, Return: int64(time.Since(began))})
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for range 2 {
		l := c.leader()
		c.stop(l)
		c.leader()
		c.start(l, false)
	}
	<-done
	if res, _ := porcupine.CheckOperationsVerbose(nameModel, history, patience); res != porcupine.Ok {
		t.Fatalf("%d operations are not linearizable: %v", len(history), res)
	}
}

// tryName does op. A command is applied once, so its answer is what it did.
func tryName(ctx context.Context, cl *Client, op nameOp) (nameResult, error) {
	var a Attr
	var err error
	switch op.verb {
	case "create":
		a, err = cl.Mknod(ctx, rfs.RootInode, op.name, MknodSpec{Mode: TypeFIFO})
	case "unlink":
		a, err = cl.Unlink(ctx, rfs.RootInode, op.name)
	default:
		a, err = cl.Lookup(ctx, rfs.RootInode, op.name)
	}
	if errors.Is(err, rfs.ErrExist) || errors.Is(err, rfs.ErrNotFound) {
		return nameResult{}, nil
	}
	return nameResult{inode: a.Inode}, err
}

// What was acknowledged is there after a power loss, whatever of the rest the disk kept.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	rnd := seeded(t)
	disk := vfs.NewCrashableMem()
	c := newCluster(t, 1, func(o *Options) { o.FS, o.LogEntries = disk, 40 })
	cl := c.client()
	must[rfs.UUID](t)(cl.ClusterInit(c.ctx()))
	must[rfs.SessionID](t)(cl.OpenSession(c.ctx(), "s", Events{}))
	var mu sync.Mutex
	acked := 0
	ctx, cancel := context.WithCancel(c.ctx())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := cl.Mkdir(ctx, rfs.RootInode, fmt.Sprint("d", i), 0o755, 0, 0); err == nil {
				mu.Lock()
				acked = i + 1
				mu.Unlock()
			}
		}
	})
	type crash struct {
		disk  *vfs.MemFS
		acked int
	}
	var crashes []crash
	for i := range 5 {
		c.eventually("directories", func() bool { mu.Lock(); defer mu.Unlock(); return acked >= 30*(i+1) })
		mu.Lock()
		n := acked
		mu.Unlock()
		crashes = append(crashes, crash{disk.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: rnd.IntN(101), RNG: rand.New(rand.NewPCG(rnd.Uint64(), 0)),
		}), n})
	}
	cancel()
	wg.Wait()
	c.stop(0)
	for _, x := range crashes {
		disk = x.disk
		c.start(0, false)
		ents, _, err := c.client().Readdir(c.ctx(), rfs.RootInode, 0, 0, false)
		ok(t, err)
		if len(ents) < x.acked {
			t.Errorf("%d directories are there, %d were acknowledged", len(ents), x.acked)
		}
		c.stop(0)
	}
}
