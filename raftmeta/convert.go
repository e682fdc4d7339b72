package raftmeta

import (
	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport"
)

// Conversions between the Go shapes of this package and metapb's.

func tagToPB(t rfs.Tag) *metapb.Tag {
	if t.IsZero() {
		return nil
	}
	return &metapb.Tag{Hlc: t.HLC, Session: uint32(t.Session), Seq: t.Seq}
}

func tagFromPB(t *metapb.Tag) rfs.Tag {
	return rfs.Tag{HLC: t.GetHlc(), Session: rfs.SessionID(t.GetSession()), Seq: t.GetSeq()}
}

func layoutToPB(l rfs.Layout) *metapb.Layout {
	if l == (rfs.Layout{}) {
		return nil
	}
	return &metapb.Layout{Pool: uint32(l.Pool), Start: uint32(l.Start), K: uint32(l.K), M: uint32(l.M), Unit: l.Unit, Cell: l.Cell}
}

func layoutFromPB(l *metapb.Layout) rfs.Layout {
	return rfs.Layout{
		Pool: rfs.PoolID(l.GetPool()), Start: rfs.SlotID(l.GetStart()),
		K: uint8(l.GetK()), M: uint8(l.GetM()), Unit: l.GetUnit(), Cell: l.GetCell(),
	}
}

func attrToPB(a *Attr) *metapb.Attr {
	p := &metapb.Attr{
		Inode: uint64(a.Inode), Mode: a.Mode, Nlink: a.Nlink, Uid: a.UID, Gid: a.GID, Rdev: a.Rdev,
		Size: a.Size, Atime: a.Atime, Mtime: a.Mtime, Ctime: a.Ctime, Btime: a.Btime,
		Parent: uint64(a.Parent), Layout: layoutToPB(a.Layout), Change: a.Change, Writers: a.Writers,
	}
	for _, t := range a.Trims {
		p.Trims = append(p.Trims, &metapb.Trim{Size: t.Size, Tag: tagToPB(t.Tag), Swept: t.Swept})
	}
	return p
}

func attrFromPB(p *metapb.Attr) Attr {
	a := Attr{
		Inode: rfs.InodeID(p.GetInode()), Mode: p.GetMode(), Nlink: p.GetNlink(), UID: p.GetUid(), GID: p.GetGid(), Rdev: p.GetRdev(),
		Size: p.GetSize(), Atime: p.GetAtime(), Mtime: p.GetMtime(), Ctime: p.GetCtime(), Btime: p.GetBtime(),
		Parent: rfs.InodeID(p.GetParent()), Layout: layoutFromPB(p.GetLayout()), Change: p.GetChange(), Writers: p.GetWriters(),
	}
	for _, t := range p.GetTrims() {
		a.Trims = append(a.Trims, Trim{Size: t.GetSize(), Tag: tagFromPB(t.GetTag()), Swept: t.GetSwept()})
	}
	return a
}

func lockToPB(l LockSpec) *metapb.LockSpec {
	return &metapb.LockSpec{
		Owner: l.Owner, Flock: l.Flock, Type: uint32(l.Type), Start: l.Start, End: l.End, Pid: l.PID, Session: uint32(l.Session),
	}
}

func lockFromPB(p *metapb.LockSpec) LockSpec {
	return LockSpec{
		Owner: p.GetOwner(), Flock: p.GetFlock(), Type: LockType(p.GetType()), Start: p.GetStart(), End: p.GetEnd(),
		PID: p.GetPid(), Session: rfs.SessionID(p.GetSession()),
	}
}

func addrToPB(a transport.Addr) *metapb.Addr {
	return &metapb.Addr{Network: a.Network, Address: a.Address, Local: a.Local, HostId: a.HostID}
}

func addrFromPB(p *metapb.Addr) transport.Addr {
	return transport.Addr{Network: p.GetNetwork(), Address: p.GetAddress(), Local: p.GetLocal(), HostID: p.GetHostId()}
}

func uuidFrom(b []byte) (u rfs.UUID) {
	copy(u[:], b)
	return u
}

func nodeToPB(n placement.Node) *metapb.RegisterNode {
	return &metapb.RegisterNode{Id: n.ID[:], Name: n.Name, Domain: n.Domain, Addr: addrToPB(transport.Addr(n.Addr))}
}

func nodeFromPB(p *metapb.RegisterNode) placement.Node {
	return placement.Node{ID: uuidFrom(p.GetId()), Name: p.GetName(), Domain: p.GetDomain(), Addr: placement.Addr(addrFromPB(p.GetAddr()))}
}

func membersToPB(ms []Member) (out []*metapb.Member) {
	for _, m := range ms {
		out = append(out, &metapb.Member{Id: m.ID, Addr: addrToPB(m.Addr), Learner: m.Learner})
	}
	return out
}

func membersFromPB(ms []*metapb.Member) (out []Member) {
	for _, m := range ms {
		out = append(out, Member{ID: m.GetId(), Addr: addrFromPB(m.GetAddr()), Learner: m.GetLearner()})
	}
	return out
}

func replicaFromPB(p *metapb.ReplicaStatus) ReplicaStatus {
	s := ReplicaStatus{
		Cluster: uuidFrom(p.GetCluster()), ID: p.GetId(), Role: p.GetRole(), Leader: p.GetLeader(), Term: p.GetTerm(),
		Commit: p.GetCommit(), Applied: p.GetApplied(), First: p.GetFirst(), Last: p.GetLast(),
		Members: membersFromPB(p.GetMembers()), MapEpoch: rfs.Epoch(p.GetMapEpoch()), Sessions: p.GetSessions(),
		Inodes: p.GetInodes(), PurgeQueue: p.GetPurgeQueue(), Made: p.GetMade(),
	}
	for _, x := range p.GetProgress() {
		s.Progress = append(s.Progress, Progress{ID: x.GetId(), Match: x.GetMatch(), State: x.GetState(), Active: x.GetActive()})
	}
	return s
}
