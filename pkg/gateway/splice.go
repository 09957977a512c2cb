package gateway

import (
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is how much one splice moves at most. A reader that stalls leaves so
	// much in the kernel, besides what its socket holds.
	pipeSize = 256 << 10
	// copySize is the same where there is no pipe.
	copySize = 32 << 10
	// idlePipes is how many pipes are kept for reuse.
	idlePipes = 64
)

// pipe holds what is on its way from one socket to another: in the kernel, or in
// user space where the process or the system has no pipe left.
type pipe struct {
	r, w int
	buf  []byte // nil where r and w are open
	held int    // bytes on their way
	from int    // where they begin in buf
}

// fill takes up what a socket has. That it took nothing means end of file.
func (p *pipe) fill(fd int) error {
	for {
		var n int64
		var err error
		if p.buf == nil {
			n, err = unix.Splice(fd, nil, p.w, nil, pipeSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		} else {
			var read int
			read, err = unix.Read(fd, p.buf)
			n = int64(read)
		}
		if err == nil {
			p.held, p.from = int(n), 0
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// drain gives to a socket what it takes.
func (p *pipe) drain(fd int) (n int, err error) {
	for p.held > 0 {
		var n64 int64
		if p.buf == nil {
			n64, err = unix.Splice(p.r, nil, fd, nil, p.held, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		} else {
			var written int
			written, err = unix.Write(fd, p.buf[p.from:p.from+p.held])
			n64 = int64(written)
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case n64 == 0:
			return n, io.ErrShortWrite
		default:
			p.held -= int(n64)
			p.from += int(n64)
			n += int(n64)
		}
	}
	return n, nil
}

func (p *pipe) close() {
	if p.buf == nil {
		unix.Close(p.r)
		unix.Close(p.w)
	}
}

// pipes lends out pipes and keeps some.
type pipes struct {
	mu   sync.Mutex
	free []*pipe
	// open makes a pipe's two ends; tests have it fail.
	open func(ends []int, flags int) error
}

func (s *pipes) get() *pipe {
	s.mu.Lock()
	if n := len(s.free); n > 0 {
		p := s.free[n-1]
		s.free = s.free[:n-1]
		s.mu.Unlock()
		return p
	}
	s.mu.Unlock()
	var ends [2]int
	if err := s.open(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		// Running connections go on, slower, when file descriptors run out.
		return &pipe{buf: make([]byte, copySize)}
	}
	// Where the size is refused, for a user who has many pipes, what there is does.
	_, _ = unix.FcntlInt(uintptr(ends[0]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{r: ends[0], w: ends[1]}
}

// put takes a pipe back. One that is not empty belongs to a broken connection.
func (s *pipes) put(p *pipe) {
	if p.held == 0 && p.buf == nil {
		s.mu.Lock()
		if len(s.free) < idlePipes {
			s.free = append(s.free, p)
			p = nil
		}
		s.mu.Unlock()
	}
	if p != nil {
		p.close()
	}
}

// closeFree closes the pipes that are not lent out.
func (s *pipes) closeFree() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.free {
		p.close()
	}
	s.free = nil
}

// splice moves bytes from src to dst until src ends, and tells moved of what dst
// has taken. Unlike io.Copy between two TCP connections, which splices as well, it
// has a pipe only while there is something to move, so that a quiet connection
// costs two file descriptors and not six, and its progress can be seen.
func (s *pipes) splice(dst, src *net.TCPConn, moved func(n int)) error {
	in, err := src.SyscallConn()
	if err != nil {
		return err
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	var p *pipe
	defer func() {
		if p != nil {
			s.put(p)
		}
	}()
	var moveErr error
	fill := func(fd uintptr) bool {
		if p == nil {
			p = s.get()
		}
		moveErr = p.fill(int(fd))
		if moveErr == unix.EAGAIN {
			s.put(p)
			p = nil
			return false
		}
		return true
	}
	drain := func(fd uintptr) bool {
		var n int
		n, moveErr = p.drain(int(fd))
		moved(n)
		return moveErr != unix.EAGAIN
	}
	for {
		if err := in.Read(fill); err != nil {
			return err
		}
		if moveErr != nil {
			return fmt.Errorf("read from %v: %w", src.RemoteAddr(), moveErr)
		}
		if p.held == 0 {
			return nil
		}
		if err := out.Write(drain); err != nil {
			return err
		}
		if moveErr != nil {
			return fmt.Errorf("write to %v: %w", dst.RemoteAddr(), moveErr)
		}
	}
}
