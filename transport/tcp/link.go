package tcp

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rfs/transport/wire"
)

// A frame waits in a link's queue or is being written. It belongs to its owner,
// which must leave it alone until it was told that it is written.
type frame struct {
	next    *frame
	hdr     wire.FrameHeader
	msg     []byte // room for the header, then the body before the payload
	payload []byte // lent
	owner   frameOwner
	small   [wire.HeaderSize + 32]byte // msg of a control frame
}

// A frameOwner is told once for each frame that the link took. With an error
// the frame, or a part of it, may still have reached the peer.
type frameOwner interface {
	written(f *frame, err error)
}

// An endpoint is what a link's frames are for: a Conn or a session.
type endpoint interface {
	// receive handles one frame, whose body it reads from l. An error ends the link.
	receive(l *link, h *wire.FrameHeader) error
	goaway(l *link, g wire.Goaway)
	// linkGone comes last: nothing reads from or writes to lent memory any more.
	linkGone(l *link)
}

// How far send may go beyond the queue.
type sendMode int

const (
	queueOnly  sendMode = iota // for readers: never write
	tryWrite                   // write what the socket takes now
	blockWrite                 // write until the frame is out
)

const (
	maxQueued  = 8192 // frames: more means a peer that asks and does not read
	batchIOVs  = 64
	batchBytes = 1 << 20
	readBuffer = 16 << 10
	// A Unix socket that takes a whole shard wakes its writer less often: a
	// fifth less CPU than with the system's default of 208 KiB.
	unixBuffer = 1 << 20
)

var (
	errDead   = errors.New("peer is silent")
	errQueue  = errors.New("peer does not read what it asked for")
	errHangup = errors.New("this end hung up")
)

// link is one stream to a peer.
type link struct {
	t      *Transport
	nc     net.Conn
	raw    syscall.RawConn // nil under TLS
	unix   bool
	peer   string // for messages
	ep     endpoint
	stream int
	cookie uint64  // client's end: the server's memory behind this link
	srv    *server // server's end
	rd     reader
	hdr    wire.FrameHeader // the frame being received

	dead     atomic.Bool
	draining atomic.Bool
	gone     chan struct{} // closed last of all
	kick     chan struct{} // hands the writing to the writer goroutine
	timer    *time.Timer

	seen  uint64 // keepalive: reads at the last tick, and ticks without any
	quiet int

	mu         sync.Mutex
	idle       sync.Cond // signalled when a dead link is no longer being written
	head, tail *frame
	queued     int
	writing    bool // someone owns the batch
	free       *frame
	err        error // why it is dead
	closed     bool  // and hung up

	// The batch being written; owned by whoever set writing.
	batch    *frame
	iovs     []unix.Iovec
	next     int // first of iovs not wholly written
	blocking bool
	werr     error
	rawFn    func(fd uintptr) bool
	iovArray [batchIOVs]unix.Iovec
}

func (t *Transport) newLink(nc net.Conn, ep endpoint) *link {
	l := &link{t: t, nc: nc, ep: ep, unix: isUnix(nc), gone: make(chan struct{}), kick: make(chan struct{}, 1)}
	l.idle.L = &l.mu
	if sc, ok := nc.(syscall.Conn); ok {
		l.raw, _ = sc.SyscallConn()
	}
	l.rawFn = l.writev
	if uc, ok := nc.(*net.UnixConn); ok {
		_ = uc.SetWriteBuffer(unixBuffer) // as far as the system allows
	}
	l.rd = reader{nc: nc, buf: make([]byte, readBuffer)}
	return l
}

func (l *link) carrier() string {
	if l.unix {
		return "unix"
	}
	return "tcp"
}

// run carries the link until it breaks, on the caller's goroutine.
func (l *link) run() {
	up := &l.t.stats.linksTCP
	if l.unix {
		up = &l.t.stats.linksUnix
	}
	up.Add(1)
	var writer sync.WaitGroup
	writer.Go(func() {
		for range l.kick {
			l.flush(nil, true)
		}
	})
	l.mu.Lock()
	l.timer = time.AfterFunc(l.t.cfg.Keepalive, l.tick)
	l.mu.Unlock()

	l.fail(l.read())
	l.timer.Stop()
	left := l.retire()
	close(l.kick)
	writer.Wait()
	for f := left; f != nil; {
		f = l.finish(f, l.err)
	}
	up.Add(-1)
	l.ep.linkGone(l)
	close(l.gone)
}

// retire waits until nobody writes, and takes what is left of the queue.
func (l *link) retire() *frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.writing {
		l.idle.Wait()
	}
	left := l.head
	l.head, l.tail = nil, nil
	return left
}

// drain waits until all that was queued is out, but for no longer than limit.
func (l *link) drain(limit time.Duration) {
	defer time.AfterFunc(limit, func() { l.fail(errHangup) }).Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.writing {
		l.idle.Wait()
	}
}

// fail ends the link: the reader and whoever writes return soon.
func (l *link) fail(err error) {
	l.mu.Lock()
	hangUp := !l.closed
	l.closed = true
	l.mu.Unlock()
	l.die(err)
	if hangUp {
		_ = l.nc.Close()
	}
}

// broke ends the link after a failed write. What the peer said before it went
// is still read: there may be answers, or its reason.
func (l *link) broke(err error) {
	l.die(err)
	_ = l.nc.SetReadDeadline(time.Now().Add(l.t.cfg.CancelWait))
}

// die takes note of why the link ends: nothing more is written.
func (l *link) die(err error) {
	l.mu.Lock()
	first := l.err == nil
	if first {
		l.err = err
		l.dead.Store(true)
	}
	l.mu.Unlock()
	if !first || errors.Is(err, errHangup) {
		return
	}
	l.t.stats.linkErrors.Add(1)
	if errors.Is(err, wire.ErrCRC) || errors.Is(err, wire.ErrMagic) || errors.Is(err, wire.ErrFrame) || errors.Is(err, wire.ErrVersion) {
		l.t.stats.badFrames.Add(1)
		l.t.cfg.Log.Warn("transport: link dropped: what came does not check", "peer", l.peer, "carrier", l.carrier(), "err", err)
		return
	}
	l.t.cfg.Log.Debug("transport: link ended", "peer", l.peer, "carrier", l.carrier(), "err", err)
}

// tick pings a silent peer and gives up on one that stays silent.
func (l *link) tick() {
	if l.dead.Load() {
		return
	}
	if n := l.rd.reads.Load(); n != l.seen {
		l.seen, l.quiet = n, 0
	} else {
		l.quiet++
	}
	if time.Duration(l.quiet)*l.t.cfg.Keepalive >= l.t.cfg.Dead {
		l.fail(fmt.Errorf("%w for %v", errDead, l.t.cfg.Dead))
		return
	}
	if l.quiet > 0 {
		l.control(wire.TypePing, 0, queueOnly)
	}
	l.mu.Lock()
	l.timer.Reset(l.t.cfg.Keepalive)
	l.mu.Unlock()
}

// read receives frames until the link breaks.
func (l *link) read() error {
	h := &l.hdr
	for {
		b, err := l.rd.message(wire.HeaderSize)
		if err != nil {
			return err
		}
		if err := h.Parse(b); err != nil {
			return err
		}
		l.t.stats.framesIn.Add(1)
		l.t.stats.bytesIn.Add(wire.HeaderSize + int64(h.Length))
		l.t.sawEpoch(h.MapEpoch)
		switch h.Type {
		case wire.TypePing, wire.TypePong:
			if _, err = l.body(h); err == nil && h.Type == wire.TypePing {
				l.control(wire.TypePong, 0, queueOnly)
			}
		case wire.TypeGoaway:
			var g wire.Goaway
			if b, err = l.body(h); err == nil {
				err = g.Parse(b)
			}
			if err == nil {
				l.ep.goaway(l, g)
			}
		default:
			err = l.ep.receive(l, h)
		}
		if err != nil {
			return err
		}
	}
}

// body reads a frame's whole body, which must be a message, and checks it. It is valid until the next read.
func (l *link) body(h *wire.FrameHeader) ([]byte, error) {
	if h.Length > readBuffer-wire.HeaderSize {
		return nil, fmt.Errorf("%w: %v with a body of %d bytes", wire.ErrFrame, h.Type, h.Length)
	}
	b, err := l.rd.message(int(h.Length))
	if err == nil && wire.CRC(0, b) != h.BodyCRC {
		err = fmt.Errorf("%v: %w", h.Type, wire.ErrCRC)
	}
	return b, err
}

// payload reads the rest of a frame's body into dst, where crc covers what came
// before it. With FlagOwnCRC the body CRC ends before the payload.
func (l *link) payload(h *wire.FrameHeader, crc uint32, dst []byte) error {
	own := h.Flags&wire.FlagOwnCRC != 0
	if own && crc != h.BodyCRC {
		return fmt.Errorf("%v: %w", h.Type, wire.ErrCRC)
	}
	crc, err := l.rd.full(dst, crc, !own)
	if err == nil && !own && crc != h.BodyCRC {
		err = fmt.Errorf("%v: %w", h.Type, wire.ErrCRC)
	}
	return err
}

// discard reads n bytes of payload that nobody wants any more.
func (l *link) discard(h *wire.FrameHeader, crc uint32, n int) error {
	own := h.Flags&wire.FlagOwnCRC != 0
	for n > 0 {
		b, err := l.rd.message(min(n, readBuffer/2))
		if err != nil {
			return err
		}
		if !own {
			crc = wire.CRC(crc, b)
		}
		n -= len(b)
	}
	if crc != h.BodyCRC {
		return fmt.Errorf("%v: %w", h.Type, wire.ErrCRC)
	}
	return nil
}

// reader reads messages through a small buffer, and payload past it.
type reader struct {
	nc    net.Conn
	buf   []byte
	r, w  int
	reads atomic.Uint64 // for the keepalive
}

// message returns the next n bytes, at most the buffer's; valid until the next call.
func (d *reader) message(n int) ([]byte, error) {
	if d.r == d.w {
		d.r, d.w = 0, 0
	}
	if len(d.buf)-d.r < n {
		d.w = copy(d.buf, d.buf[d.r:d.w])
		d.r = 0
	}
	for d.w-d.r < n {
		m, err := d.nc.Read(d.buf[d.w:])
		d.w += m
		d.reads.Add(1)
		if err != nil && d.w-d.r < n {
			return nil, err
		}
	}
	d.r += n
	return d.buf[d.r-n : d.r], nil
}

// full fills dst: what the buffer has is copied, the rest is read in place. It
// continues crc, piece by piece while each is hot in the cache.
func (d *reader) full(dst []byte, crc uint32, check bool) (uint32, error) {
	n := copy(dst, d.buf[d.r:d.w])
	d.r += n
	if check {
		crc = wire.CRC(crc, dst[:n])
	}
	for n < len(dst) {
		m, err := d.nc.Read(dst[n:])
		d.reads.Add(1)
		if check {
			crc = wire.CRC(crc, dst[n:n+m])
		}
		n += m
		if err != nil && n < len(dst) {
			return crc, err
		}
	}
	return crc, nil
}

// control sends a frame of the link's own, with an empty body.
func (l *link) control(typ wire.Type, id wire.RequestID, mode sendMode) {
	l.send(l.small(typ, id, 0), mode)
}

// small returns a control frame whose body of n bytes, at most 32, is to be filled in.
func (l *link) small(typ wire.Type, id wire.RequestID, n int) *frame {
	l.mu.Lock()
	f := l.free
	if f != nil {
		l.free = f.next
	}
	l.mu.Unlock()
	if f == nil {
		f = &frame{}
	}
	f.hdr = l.t.header(typ)
	f.hdr.ID = id
	f.msg = f.small[:wire.HeaderSize+n]
	return f
}

func (l *link) sendRange(typ wire.Type, id wire.RequestID, r wire.Range, mode sendMode) {
	f := l.small(typ, id, wire.RangeSize)
	r.Put(f.msg[wire.HeaderSize:])
	l.send(f, mode)
}

func (l *link) sendGrant(g wire.Grant) {
	f := l.small(wire.TypeCredit, 0, wire.GrantSize)
	f.hdr.Credits = uint16(g.Messages)
	g.Put(f.msg[wire.HeaderSize:])
	l.send(f, queueOnly)
}

func (l *link) sendGoaway(reason wire.Reason, text string) {
	g := wire.Goaway{Major: wire.Major, Minor: wire.Minor, Reason: reason, Text: text}
	l.send(&frame{hdr: l.t.header(wire.TypeGoaway), msg: g.Append(make([]byte, wire.HeaderSize))}, tryWrite)
}

// send takes f, or reports false if the link is dead. In mode blockWrite f may
// still be under way when it returns, if another was writing.
func (l *link) send(f *frame, mode sendMode) bool {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return false
	}
	f.next = nil
	if l.tail == nil {
		l.head = f
	} else {
		l.tail.next = f
	}
	l.tail = f
	l.queued++
	overrun := l.queued > maxQueued
	mine := !l.writing
	l.writing = true
	l.mu.Unlock()
	switch {
	case overrun:
		l.fail(errQueue)
		fallthrough
	case mine && (mode == queueOnly || l.raw == nil):
		if mine {
			l.kick <- struct{}{}
		}
	case mine:
		l.flush(f, mode == blockWrite)
	}
	return true
}

// flush writes the queue. The caller owns the writing; it gives it up when the
// queue is empty, or hands it to the writer goroutine: when own, its frame, is
// out, or when it must not block and the socket is full.
func (l *link) flush(own *frame, block bool) {
	ownOut := false
	for {
		if l.batch == nil && !l.nextBatch(ownOut) {
			return
		}
		if !l.writeBatch(block) {
			l.kick <- struct{}{}
			return
		}
		err := l.werr
		if err != nil {
			l.broke(err)
		}
		f := l.batch
		l.batch, l.werr = nil, nil
		for f != nil {
			if f == own {
				ownOut, own = true, nil
			}
			f = l.finish(f, err)
		}
	}
}

// nextBatch takes frames from the queue and lays them out. It reports false if
// the caller is done: the queue is empty, the link dead, or the rest handed on.
func (l *link) nextBatch(handOn bool) bool {
	l.mu.Lock()
	if l.head == nil || l.err != nil {
		l.writing = false
		l.idle.Broadcast()
		l.mu.Unlock()
		return false
	}
	if handOn {
		l.mu.Unlock()
		l.kick <- struct{}{}
		return false
	}
	l.batch = l.head
	last, iovs, bytes := l.head, 0, 0
	for f := l.head; f != nil && iovs+2 <= batchIOVs && bytes < batchBytes; f = f.next {
		iovs, bytes, last = iovs+2, bytes+len(f.msg)+len(f.payload), f
		l.queued--
	}
	l.head = last.next
	if l.head == nil {
		l.tail = nil
	}
	last.next = nil
	l.mu.Unlock()
	l.layOut()
	return true
}

// layOut stamps the batch's headers and lists its memory.
func (l *link) layOut() {
	l.iovs, l.next = l.iovArray[:0], 0
	frames, bytes := int64(0), int64(0)
	for f := l.batch; f != nil; f = f.next {
		crc := wire.CRC(0, f.msg[wire.HeaderSize:])
		if f.hdr.Flags&wire.FlagOwnCRC == 0 {
			crc = wire.CRC(crc, f.payload)
		}
		f.hdr.BodyCRC = crc
		f.hdr.Length = uint32(len(f.msg) - wire.HeaderSize + len(f.payload))
		f.hdr.Put(f.msg)
		l.addIOV(f.msg)
		if len(f.payload) > 0 {
			l.addIOV(f.payload)
		}
		frames++
		bytes += int64(len(f.msg) + len(f.payload))
	}
	l.t.stats.framesOut.Add(frames)
	l.t.stats.bytesOut.Add(bytes)
}

func (l *link) addIOV(b []byte) {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	l.iovs = append(l.iovs, v)
}

// writeBatch reports whether the batch is out, or failed with werr.
func (l *link) writeBatch(block bool) bool {
	if l.raw == nil {
		for i := range l.iovs {
			if _, err := l.nc.Write(unsafe.Slice(l.iovs[i].Base, l.iovs[i].Len)); err != nil {
				l.werr = err
				break
			}
		}
		return true
	}
	l.blocking = block
	if err := l.raw.Write(l.rawFn); err != nil && l.werr == nil {
		l.werr = err
	}
	return l.werr != nil || l.next == len(l.iovs)
}

// writev writes what the socket takes; it is called again when the socket takes more.
func (l *link) writev(fd uintptr) bool {
	for l.next < len(l.iovs) {
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&l.iovs[l.next])), uintptr(len(l.iovs)-l.next))
		switch errno {
		case 0:
			l.advance(uint64(n))
		case unix.EINTR:
		case unix.EAGAIN:
			return !l.blocking
		default:
			l.werr = errno
			return true
		}
	}
	return true
}

func (l *link) advance(n uint64) {
	for n > 0 {
		v := &l.iovs[l.next]
		if n < v.Len {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(v.Len - n))
			return
		}
		n -= v.Len
		*v = unix.Iovec{}
		l.next++
	}
}

// finish tells f's owner, and returns the frame after it.
func (l *link) finish(f *frame, err error) *frame {
	next := f.next
	f.next = nil
	if f.owner != nil {
		f.owner.written(f, err)
		return next
	}
	l.mu.Lock()
	f.next, l.free = l.free, f
	l.mu.Unlock()
	return next
}
