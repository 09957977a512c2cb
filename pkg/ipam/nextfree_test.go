package ipam

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestNextFree(t *testing.T) {
	for _, tt := range []struct {
		supernet string
		bits     int
		taken    string
		want     string // a prefix, or a part of the error
	}{
		{"10.0.0.0/8", 16, "", "10.0.0.0/16"},
		{"10.0.0.0/8", 8, "", "10.0.0.0/8"},
		{"10.0.0.0/8", 16, "10.0.0.0/16 10.1.0.0/16 10.3.0.0/16", "10.2.0.0/16"},
		{"10.0.0.0/8", 16, "10.1.0.0/16", "10.0.0.0/16"},
		{"10.0.0.0/8", 16, "10.0.0.0/12", "10.16.0.0/16"},
		{"10.0.0.0/8", 16, "10.0.255.255/32 10.1.0.7/32", "10.2.0.0/16"},
		{"10.0.0.0/8", 16, "10.0.0.0/9 10.0.0.0/16 10.127.0.0/16 10.5.5.0/24 10.128.0.0/16", "10.129.0.0/16"},
		{"10.0.0.0/8", 28, "10.0.0.0/9", "10.128.0.0/28"},
		{"10.0.0.0/8", 16, "11.0.0.0/8 9.0.0.0/8 fd00::/8", "10.0.0.0/16"},
		{"10.0.0.0/8", 16, "10.0.1.2/16 10.1.2.3/20", "10.2.0.0/16"}, // bits set behind the length
		{"10.0.0.0/8", 16, "10.3.0.0/16 10.9.9.9/9", "10.128.0.0/16"},
		{"10.1.0.0/16", 24, "10.0.0.0/8", "no /24 is free in 10.1.0.0/16"},
		{"10.1.0.0/16", 24, "0.0.0.0/0", "no /24 is free"},
		{"10.1.0.0/16", 17, "10.1.0.0/32 10.1.255.255/32", "no /17 is free"},
		{"223.255.255.0/24", 25, "223.255.255.0/24", "no /25 is free"},
		{"10.0.0.0/30", 32, "10.0.0.0/32 10.0.0.1/32 10.0.0.3/32", "10.0.0.2/32"},
		{"fd00::/48", 64, "fd00::/64 fd00:0:0:1::/112", "fd00:0:0:2::/64"},
		{"fd00::/8", 128, "fd00::/9", "fd80::/128"},
		{"fdff:ffff:ffff::/48", 49, "fdff:ffff:ffff:8000::/49", "fdff:ffff:ffff::/49"},
		{"10.0.0.0/8", 7, "", "a /7 does not fit into 10.0.0.0/8: want a length of /8 to /32"},
		{"10.0.0.0/8", 33, "", "a /33 does not fit"},
		{"fd00::/8", 129, "", "want a length of /8 to /128"},
		{"10.0.0.0/8", -1, "", "a /-1 does not fit"},
		{"10.0.0.1/8", 16, "", "did you mean 10.0.0.0/8?"},
		{"::ffff:10.0.0.0/104", 112, "", "write an IPv4 range in its own form"},
		{"10.0.0.0/8", 16, "10.0.0.0/16 ::ffff:10.0.0.0/104", "taken[1]: ::ffff:10.0.0.0/104: want"},
	} {
		got, err := NextFree(netip.MustParsePrefix(tt.supernet), tt.bits, prefixes(tt.taken))
		text := got.String()
		if err != nil {
			text = err.Error()
		}
		if text != tt.want && (err == nil || !strings.Contains(text, tt.want)) {
			t.Errorf("/%d in %s beside %q: got %q, want %q", tt.bits, tt.supernet, tt.taken, text, tt.want)
		}
		if full := strings.Contains(tt.want, "is free in") || strings.HasSuffix(tt.want, "is free"); full != errors.Is(err, ErrExhausted) {
			t.Errorf("/%d in %s beside %q: error %v", tt.bits, tt.supernet, tt.taken, err)
		}
	}
	if _, err := NextFree(netip.Prefix{}, 16, nil); err == nil {
		t.Error("no error for a supernet that is none")
	}
	if _, err := NextFree(netip.MustParsePrefix("10.0.0.0/8"), 16, []netip.Prefix{{}}); err == nil {
		t.Error("no error for a taken prefix that is none")
	}
}

// FuzzNextFree compares with trying every block in turn.
func FuzzNextFree(f *testing.F) {
	f.Add(uint8(24), uint8(28), []byte{0, 28, 16, 28, 40, 30})
	f.Add(uint8(22), uint8(22), []byte{3, 32})
	f.Add(uint8(30), uint8(32), []byte{0, 31, 2, 32, 3, 32})
	f.Add(uint8(150), uint8(155), []byte{0, 28, 16, 28, 40, 30})
	f.Fuzz(func(t *testing.T, from, bits uint8, data []byte) {
		// A supernet of at most 1,024 addresses, and IPv6's lowest bits alike.
		family, size := netip.MustParseAddr("10.9.8.0"), 32
		if from&0x80 != 0 {
			family, size = netip.MustParseAddr("fd00::"), 128
		}
		at := func(offset uint16, bits int) netip.Prefix {
			b := family.AsSlice()
			tail := b[len(b)-2:]
			binary.BigEndian.PutUint16(tail, binary.BigEndian.Uint16(tail)|offset)
			a, _ := netip.AddrFromSlice(b)
			return netip.PrefixFrom(a, bits)
		}
		supernet := at(0, size-int(from&0x7f)%11).Masked()
		length := supernet.Bits() + int(bits)%(size-supernet.Bits()+1)
		var taken []netip.Prefix
		for ; len(data) >= 3; data = data[3:] {
			taken = append(taken, at(uint16(data[0])|uint16(data[2])<<8&0x0700, size-int(data[1])%13))
		}

		var want netip.Prefix
		step := 1 << (size - length)
	blocks:
		for offset := 0; offset < 1<<(size-supernet.Bits()); offset += step {
			block := at(uint16(offset), length)
			for _, p := range taken {
				if p.Overlaps(block) {
					continue blocks
				}
			}
			want = block
			break
		}
		got, err := NextFree(supernet, length, taken)
		if got != want || errors.Is(err, ErrExhausted) == want.IsValid() || err != nil && want.IsValid() {
			t.Fatalf("/%d in %v beside %v: got %v (%v), want %v", length, supernet, taken, got, err, want)
		}
	})
}

// A block apart in every other place, and a wish that only the very end grants.
func BenchmarkNextFree(b *testing.B) {
	var taken []netip.Prefix
	for i := range 1<<16 - 1 {
		taken = append(taken, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 16}), 28))
	}
	supernet := netip.MustParsePrefix("10.0.0.0/8")
	want := netip.MustParsePrefix("10.255.255.0/24")
	for b.Loop() {
		if got, err := NextFree(supernet, 24, taken); got != want {
			b.Fatalf("got %v (%v), want %v", got, err, want)
		}
	}
}
