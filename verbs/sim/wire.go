package sim

import (
	"time"

	"rfs/verbs"
)

// qpair is an RC queue pair. A send request is at the head of sq from its post to
// its completion; its place in the queue pair's life:
//
//	posted -> head -> attempt -> answered: completed if signalled
//	                     |  lost: again after the timeout, RetryCount times
//	                     |  receiver not ready: again after its timer, RNRRetry times
//	                     +- refused: completed with the status, queue pair to ERR, the rest flushed
type qpair struct {
	p          *domain
	num        uint32
	cap        verbs.QPCap
	send, recv *cqueue
	state      verbs.QPState
	dead       bool
	access     verbs.Access

	// the path, from RTR and RTS
	sgid, dgid       verbs.GID
	dest             uint32
	mtu              int
	rqPSN, sqPSN     uint32 // expected next; of the head
	serve, reads     uint8
	timeout          uint8
	rnrTimer         uint8
	retries          int
	rnrRetries       int
	tried, rnr, made int // of the head: retries taken, pauses taken, attempts made
	waiting          bool
	running          bool
	timer            *time.Timer
	epoch            int // rises with each reset: a timer or runner of an older one does nothing

	sq []sendReq
	rq []recvReq
}

func (q *qpair) reset() {
	q.stop()
	q.epoch++
	q.state, q.sq, q.rq = verbs.QPReset, nil, nil
	q.tried, q.rnr, q.made = 0, 0, 0
}

func (q *qpair) stop() {
	if q.timer != nil && q.timer.Stop() {
		q.p.d.f.work.Done()
	}
	q.timer, q.waiting = nil, false
}

// fail takes the queue pair to ERR, with an event unless it is 0.
func (q *qpair) fail(e verbs.EventType) {
	if q.state == verbs.QPReset {
		return
	}
	if q.state != verbs.QPError && e != 0 {
		q.p.d.event(verbs.EventProvided{Type: e, QPN: q.num})
	}
	q.stop()
	q.epoch++
	q.state = verbs.QPError
	q.flush()
}

// flush completes everything, the unsignalled too.
func (q *qpair) flush() {
	for i := range q.sq {
		q.send.complete(q.num, q.sq[i].ID, verbs.StatusFlush, 0, 0, nil)
	}
	for i := range q.rq {
		q.recv.complete(q.num, q.rq[i].id, verbs.StatusFlush, 0, 0, nil)
	}
	q.sq, q.rq = nil, nil
}

// kick makes the queue pair send what it has. The network's lock is held.
func (q *qpair) kick() {
	switch {
	case q.state == verbs.QPError:
		q.flush()
	case q.state == verbs.QPRTS && !q.running && !q.waiting && len(q.sq) > 0:
		q.running = true
		q.p.d.f.work.Add(1)
		go q.run(q.epoch)
	}
}

// run sends from the head until the queue is empty or has to wait. Between two
// messages others may have the network.
func (q *qpair) run(epoch int) {
	f := q.p.d.f
	defer f.work.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	for q.epoch == epoch && !q.waiting && len(q.sq) > 0 {
		q.attempt()
		f.mu.Unlock()
		f.mu.Lock()
	}
	q.running = false
	if q.epoch != epoch {
		q.kick() // reset and used again meanwhile
	}
}

// again sends the head once more after d.
func (q *qpair) again(d time.Duration) {
	q.waiting = true
	epoch, f := q.epoch, q.p.d.f
	f.work.Add(1)
	q.timer = time.AfterFunc(d, func() {
		defer f.work.Done()
		f.mu.Lock()
		defer f.mu.Unlock()
		if q.epoch == epoch && q.waiting {
			q.waiting, q.timer = false, nil
			q.kick()
		}
	})
}

// attempt sends the head once.
func (q *qpair) attempt() {
	f, r := q.p.d.f, &q.sq[0]
	a := Attempt{Device: q.p.d.cfg.Name, QPN: q.num, PSN: q.sqPSN, Opcode: r.Opcode, ID: r.ID, Length: r.length(), Attempt: q.made}
	var v Verdict
	if f.fault != nil {
		v = f.fault(a)
	}
	q.made++
	if v.Delay > 0 {
		q.again(v.Delay)
		return
	}
	if v.Status != 0 {
		q.refused(v.Status)
		return
	}
	if a.Length > int(q.p.d.cfg.MaxMsg) {
		q.refused(verbs.StatusLocLen)
		return
	}
	// What this side sends must be in its own regions.
	want := verbs.Access(0)
	if r.Opcode == verbs.OpRead {
		want = verbs.LocalWrite
	}
	local := [][]byte{r.inline}
	if !r.isInline {
		var ok bool
		if local, ok = q.p.scatter(r.sge, want); !ok {
			q.refused(verbs.StatusLocProt)
			return
		}
	}
	if r.Opcode == verbs.OpRead && q.reads == 0 {
		q.refused(verbs.StatusLocQPOp)
		return
	}
	peer := q.peer()
	if v.Drop || peer == nil {
		q.lost()
		return
	}
	ans := peer.arrive(q, r, local, v.Flip)
	if v.Repeat && ans == ack {
		ans = peer.arrive(q, r, local, 0)
	}
	switch {
	case ans == silence || v.DropAck && ans == ack:
		q.lost()
	case ans == outOfOrder:
		if q.tried++; q.tried > q.retries {
			q.refused(verbs.StatusRetryExc)
		}
	case ans == notReady:
		if q.rnr++; q.rnr > q.rnrRetries && q.rnrRetries != 7 {
			q.refused(verbs.StatusRNRRetryExc)
			return
		}
		q.again(rnrPause(peer.rnrTimer))
	case ans == ack:
		q.done(a.Length)
	default:
		q.refused(verbs.Status(ans))
	}
}

// peer returns the queue pair at the other end if it can answer this one.
func (q *qpair) peer() *qpair {
	if !q.p.d.up {
		return nil
	}
	for _, d := range q.p.d.f.devs {
		if !d.up {
			continue
		}
		p := d.qps[q.dest]
		if p == nil || p.sgid != q.dgid || p.dgid != q.sgid || p.dest != q.num {
			continue
		}
		if p.state == verbs.QPRTR || p.state == verbs.QPRTS {
			return p
		}
	}
	return nil
}

// lost waits for the timeout that sends the head again, or gives up.
func (q *qpair) lost() {
	if q.tried++; q.tried > q.retries {
		q.refused(verbs.StatusRetryExc)
		return
	}
	q.again(4096 * time.Nanosecond << q.timeout)
}

// refused completes the head with an error, and flushes the rest.
func (q *qpair) refused(st verbs.Status) {
	r := q.sq[0]
	q.sq = q.sq[1:]
	q.send.complete(q.num, r.ID, st, 0, 0, nil)
	q.fail(0)
}

// done completes the head.
func (q *qpair) done(n int) {
	r := q.sq[0]
	q.sq = q.sq[1:]
	if len(q.sq) == 0 {
		q.sq = nil
	}
	q.sqPSN = (q.sqPSN + q.packets(n)) & psnMask
	q.tried, q.rnr, q.made = 0, 0, 0
	if r.Flags&verbs.Signaled != 0 {
		q.send.complete(q.num, r.ID, verbs.StatusSuccess, wcOpcode[r.Opcode], n, nil)
	}
}

var wcOpcode = map[uint32]uint32{
	verbs.OpSend: verbs.WCSend, verbs.OpSendImm: verbs.WCSend, verbs.OpWrite: verbs.WCWrite, verbs.OpWriteImm: verbs.WCWrite, verbs.OpRead: verbs.WCRead,
}

const psnMask = 1<<24 - 1

// packets returns how many PSNs a message of n bytes takes.
func (q *qpair) packets(n int) uint32 { return max(1, uint32((n+q.mtu-1)/q.mtu)) }

func (r *sendReq) length() int {
	n := 0
	for _, s := range r.sge {
		n += int(s.Length)
	}
	return n
}

// An answer of a responder is one of these, or the status for a refusal.
type answer int

const (
	ack answer = -1 - iota
	silence
	outOfOrder
	notReady
)

// arrive executes a request at its responder.
func (p *qpair) arrive(q *qpair, r *sendReq, local [][]byte, flip int) answer {
	n := r.length()
	if ahead := (q.sqPSN - p.rqPSN) & psnMask; ahead != 0 {
		if ahead < 1<<23 {
			return outOfOrder
		}
		// A duplicate: answered, and executed only if it reads.
		if r.Opcode == verbs.OpRead {
			return p.read(r, local, n)
		}
		return ack
	}
	var ans answer
	switch r.Opcode {
	case verbs.OpRead:
		ans = p.read(r, local, n)
	case verbs.OpWrite:
		ans = p.write(r, local, n, flip)
	case verbs.OpWriteImm:
		if len(p.rq) == 0 {
			return notReady
		}
		if ans = p.write(r, local, n, flip); ans == ack {
			p.received(verbs.StatusSuccess, verbs.WCRecvWriteImm, n, &r.Imm)
		}
	default:
		ans = p.receive(r, local, n, flip)
	}
	if ans == ack {
		p.rqPSN = (p.rqPSN + q.packets(n)) & psnMask
	}
	return ans
}

func (p *qpair) read(r *sendReq, local [][]byte, n int) answer {
	if p.serve == 0 {
		p.fail(verbs.EventQPReqError)
		return answer(verbs.StatusRemInvReq)
	}
	src, ok := p.p.reach(r.RKey, r.RemoteAddr, n, verbs.RemoteRead)
	if n > 0 && (!ok || p.access&verbs.RemoteRead == 0) {
		p.fail(verbs.EventQPAccess)
		return answer(verbs.StatusRemAccess)
	}
	for _, b := range local {
		src = src[copy(b, src):]
	}
	return ack
}

func (p *qpair) write(r *sendReq, local [][]byte, n, flip int) answer {
	dst, ok := p.p.reach(r.RKey, r.RemoteAddr, n, verbs.RemoteWrite)
	if n > 0 && (!ok || p.access&verbs.RemoteWrite == 0) {
		p.fail(verbs.EventQPAccess)
		return answer(verbs.StatusRemAccess)
	}
	fill([][]byte{dst}, local, flip)
	return ack
}

func (p *qpair) receive(r *sendReq, local [][]byte, n, flip int) answer {
	if len(p.rq) == 0 {
		return notReady
	}
	dst, ok := p.p.scatter(p.rq[0].sge, verbs.LocalWrite)
	room := 0
	for _, b := range dst {
		room += len(b)
	}
	switch {
	case !ok:
		p.received(verbs.StatusLocProt, 0, 0, nil)
		p.fail(verbs.EventQPFatal)
		return answer(verbs.StatusRemOp)
	case n > room:
		p.received(verbs.StatusLocLen, 0, 0, nil)
		p.fail(verbs.EventQPReqError)
		return answer(verbs.StatusRemInvReq)
	}
	fill(dst, local, flip)
	var imm *uint32
	if r.Opcode == verbs.OpSendImm {
		imm = &r.Imm
	}
	p.received(verbs.StatusSuccess, verbs.WCRecv, n, imm)
	return ack
}

// received completes the oldest receive.
func (p *qpair) received(st verbs.Status, opcode uint32, n int, imm *uint32) {
	id := p.rq[0].id
	p.rq = p.rq[1:]
	p.recv.complete(p.num, id, st, opcode, n, imm)
}

// fill copies src's pieces into dst's, turning one bit if asked.
func fill(dst, src [][]byte, flip int) {
	at := 0
	for len(dst) > 0 && len(src) > 0 {
		n := copy(dst[0], src[0])
		if bit := flip - 1; bit >= at*8 && bit < (at+n)*8 {
			dst[0][bit/8-at] ^= 1 << (bit % 8)
		}
		at += n
		dst[0], src[0] = dst[0][n:], src[0][n:]
		if len(src[0]) == 0 {
			src = src[1:]
			continue
		}
		if len(dst[0]) == 0 {
			dst = dst[1:]
		}
	}
}

// rnrPause decodes an RNR timer (InfiniBand Architecture Specification 1, table 45).
func rnrPause(code uint8) time.Duration {
	us := [32]int{655360, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920, 2560, 3840, 5120, 7680, 10240,
		15360, 20480, 30720, 40960, 61440, 81920, 122880, 163840, 245760, 327680, 491520}
	return time.Duration(us[code&31]) * time.Microsecond
}
