package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The fields of DeltaDiscoveryResponse.
const (
	responseResources protowire.Number = 2
	responseNonce     protowire.Number = 5
)

// adsPath is the method of ADS in the delta protocol.
const adsPath = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

// grpcHeader is what precedes each message of gRPC: a flag and a length.
const grpcHeader = 5

// deltaStream is one stream of ADS in the delta protocol on a connection of its
// own, at the level of HTTP/2 frames: on a machine that they share, thousands of
// clients must cost less than the server that is measured. It skips resources
// without looking at them.
type deltaStream struct {
	conn   net.Conn
	framer *http2.Framer
	// data is what is unread of the last frame, credit what the server may send
	// before the windows are opened again.
	data   []byte
	credit int
}

const (
	streamID   = 1
	fullWindow = 1<<31 - 1 // the largest (RFC 9113, section 6.9.1)
)

// openDeltaStream starts ADS on a connection.
func openDeltaStream(conn net.Conn) (*deltaStream, error) {
	s := &deltaStream{conn: conn, framer: http2.NewFramer(conn, bufio.NewReaderSize(conn, 4<<10)), credit: fullWindow}
	s.framer.SetReuseFrames()
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4<<10, nil)
	var fields bytes.Buffer
	enc := hpack.NewEncoder(&fields)
	var errs []error
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", adsPath}, {":authority", "controlplane"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		errs = append(errs, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	_, err := io.WriteString(conn, http2.ClientPreface)
	errs = append(errs, err,
		s.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: fullWindow}),
		s.framer.WriteWindowUpdate(0, fullWindow-(1<<16-1)),
		s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: streamID, BlockFragment: fields.Bytes(), EndHeaders: true}))
	return s, errors.Join(errs...)
}

// send sends a request.
func (s *deltaStream) send(r *discovery.DeltaDiscoveryRequest) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, grpcHeader, 256), r)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-grpcHeader))
	// Servers take frames of 16 KiB. They open the window again as they read, which
	// is not looked at here: no request may be larger than the first one of 64 KiB.
	const frame = 16 << 10
	for len(b) > 0 {
		n := min(len(b), frame)
		if err := s.framer.WriteData(streamID, false, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// receive reads the next response and returns how many resources it has.
func (s *deltaStream) receive(nonce []byte) (resources int, _ []byte, err error) {
	var header [grpcHeader]byte
	if _, err := io.ReadFull(s, header[:]); err != nil {
		return 0, nil, err
	}
	nonce = nonce[:0]
	for left := int(binary.BigEndian.Uint32(header[1:])); left > 0; {
		tag, n, err := s.varint()
		if err != nil {
			return 0, nil, err
		}
		number, kind := protowire.DecodeTag(tag)
		if kind != protowire.BytesType {
			return 0, nil, fmt.Errorf("field %d of a response is of type %d", number, kind)
		}
		size, m, err := s.varint()
		if err != nil {
			return 0, nil, err
		}
		left -= n + m + int(size)
		if number == responseResources {
			resources++
		}
		if number == responseNonce {
			nonce = append(nonce, make([]byte, size)...)
			_, err = io.ReadFull(s, nonce)
		} else {
			err = s.skip(int(size))
		}
		if err != nil {
			return 0, nil, err
		}
	}
	return resources, nonce, nil
}

func (s *deltaStream) varint() (v uint64, n int, err error) {
	for shift := 0; ; shift += 7 {
		var b [1]byte
		if _, err := s.Read(b[:]); err != nil {
			return 0, 0, err
		}
		n++
		v |= uint64(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			return v, n, nil
		}
	}
}

func (s *deltaStream) skip(n int) error {
	for n > 0 {
		if err := s.fill(); err != nil {
			return err
		}
		m := min(n, len(s.data))
		s.data, n = s.data[m:], n-m
	}
	return nil
}

// Read reads what the stream carries.
func (s *deltaStream) Read(b []byte) (int, error) {
	if err := s.fill(); err != nil {
		return 0, err
	}
	n := copy(b, s.data)
	s.data = s.data[n:]
	return n, nil
}

// fill waits until there is something unread.
func (s *deltaStream) fill() error {
	for len(s.data) == 0 {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			return err
		}
		switch f := frame.(type) {
		case *http2.DataFrame:
			s.data = f.Data()
			err = s.opened(int(f.Length))
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = s.framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = s.framer.WritePing(true, f.Data)
			}
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				err = fmt.Errorf("the server ended the stream: %v", f.RegularFields())
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			err = fmt.Errorf("the server ended the stream: %v", frame.Header())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// opened lets the server send on.
func (s *deltaStream) opened(received int) error {
	s.credit -= received
	if s.credit > fullWindow/2 {
		return nil
	}
	more := uint32(fullWindow - s.credit)
	s.credit = fullWindow
	return errors.Join(s.framer.WriteWindowUpdate(0, more), s.framer.WriteWindowUpdate(streamID, more))
}
