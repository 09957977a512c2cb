package main

import (
	"encoding/binary"
	"net"
	"testing"

	"golang.org/x/net/ipv4"
	"google.golang.org/protobuf/proto"

	echov1 "github.com/flatmesh/flatmesh/api/echo/v1"
	"github.com/flatmesh/flatmesh/pkg/probe"
)

// request makes the packet in which an agent's echo arrives.
func request(t *testing.T, port uint16, m *echov1.Echo) []byte {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	h := &ipv4.Header{
		Version: 4, Len: ipv4.HeaderLen, TotalLen: ipv4.HeaderLen + 8 + len(body), TTL: 64, Protocol: 17,
		Src: net.IPv4(198, 19, 0, 1), Dst: net.IPv4(198, 19, 0, 2),
	}
	b, err := h.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b = binary.BigEndian.AppendUint16(b, 4000)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(body)))
	b = binary.BigEndian.AppendUint16(b, 0)
	return append(b, body...)
}

func TestAnswer(t *testing.T) {
	echo := &echov1.Echo{Kind: &echov1.Echo_Request{Request: &echov1.Request{Sequence: 7}}}
	got, ok := answer(request(t, probe.Port, echo), 99)
	if !ok {
		t.Fatal("no answer")
	}
	h, err := ipv4.ParseHeader(got)
	if err != nil || h.TotalLen != len(got) || h.Src.String() != "198.19.0.2" || h.Dst.String() != "198.19.0.1" || h.Protocol != 17 {
		t.Fatalf("header %v, %v, of %d bytes", h, err, len(got))
	}
	if checksum(got[:ipv4.HeaderLen]) != 0 {
		t.Error("the header's checksum is wrong")
	}
	u := got[ipv4.HeaderLen:]
	if from, to, n := binary.BigEndian.Uint16(u), binary.BigEndian.Uint16(u[2:]), binary.BigEndian.Uint16(u[4:]); from != probe.Port || to != 4000 || int(n) != len(u) {
		t.Errorf("UDP from %d to %d, %d of %d bytes", from, to, n, len(u))
	}
	var m echov1.Echo
	if err := proto.Unmarshal(u[8:], &m); err != nil || m.GetReply().GetSequence() != 7 || m.GetReply().GetApplied() != 99 {
		t.Errorf("reply %v, %v", &m, err)
	}

	for name, b := range map[string][]byte{
		"other port": request(t, probe.Port+1, echo),
		"a reply":    request(t, probe.Port, &echov1.Echo{Kind: &echov1.Echo_Reply{Reply: &echov1.Reply{Sequence: 7}}}),
		"cut short":  request(t, probe.Port, echo)[:ipv4.HeaderLen+4],
		"nothing":    {},
	} {
		if _, ok := answer(b, 99); ok {
			t.Errorf("%s was answered", name)
		}
	}
}
