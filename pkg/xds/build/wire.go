package build

import (
	"encoding/binary"
	"math"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
)

// Assignments are written field by field, not through the generated types, which
// cost several times as much: there is one for each view key, and a tunnel that
// goes down changes those of all services. All of it is append-style: it takes
// the bytes so far and returns more. Fields are in the order in which protobuf's
// deterministic marshaling has them.

// begin opens a message in a field. Its content follows, and then end with the
// position that begin returned.
func begin(b []byte, field protowire.Number) ([]byte, int) {
	b = append(tag(b, field, protowire.BytesType), 0) // its length, where one byte holds it
	return b, len(b)
}

// end closes the message whose content starts at a position.
func end(b []byte, start int) []byte {
	n := len(b) - start
	if n < 1<<7 {
		b[start-1] = byte(n)
		return b
	}
	var buf [binary.MaxVarintLen64]byte
	length := protowire.AppendVarint(buf[:0], uint64(n))
	b = append(b, length[1:]...) // room; it is overwritten
	copy(b[start-1+len(length):], b[start:start+n])
	copy(b[start-1:], length)
	return b
}

// tag is protowire.AppendTag for the fields that we have: all are below 16.
func tag(b []byte, field protowire.Number, t protowire.Type) []byte {
	return append(b, byte(field)<<3|byte(t))
}

// str writes a string field, even where it is empty.
func str(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(tag(b, field, protowire.BytesType), s)
}

// optional writes a string field where it is not empty.
func optional(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return str(b, field, s)
}

func varint(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(tag(b, field, protowire.VarintType), v)
}

// The fields of google.protobuf and envoy.config.core.v3 that assignments have.
const (
	mapKey         protowire.Number = 1
	mapValue       protowire.Number = 2
	structFields   protowire.Number = 1 // Struct.fields
	valueNumber    protowire.Number = 2 // Value.number_value
	valueString    protowire.Number = 3 // Value.string_value
	valueBool      protowire.Number = 4 // Value.bool_value
	valueStruct    protowire.Number = 5 // Value.struct_value
	valueList      protowire.Number = 6 // Value.list_value
	listValues     protowire.Number = 1 // ListValue.values
	uint32Value    protowire.Number = 1 // UInt32Value.value
	addressSocket  protowire.Number = 1 // Address.socket_address
	socketAddress  protowire.Number = 2 // SocketAddress.address
	socketPort     protowire.Number = 3 // SocketAddress.port_value
	metadataFilter protowire.Number = 1 // Metadata.filter_metadata
	regionField    protowire.Number = 1 // Locality.region
	zoneField      protowire.Number = 2 // Locality.zone
	subZoneField   protowire.Number = 3 // Locality.sub_zone
)

// address writes an Address.
func address(b []byte, field protowire.Number, a netip.AddrPort) []byte {
	b, outer := begin(b, field)
	b, inner := begin(b, addressSocket)
	b, text := begin(b, socketAddress)
	b = end(a.Addr().AppendTo(b), text)
	b = varint(b, socketPort, uint64(a.Port()))
	return end(end(b, inner), outer)
}

// metadataAt holds where the parts of a Metadata with our own Struct begin.
type metadataAt struct{ outer, entry, value int }

// beginMetadata opens a Metadata with our own Struct, whose keys follow in
// ascending order, and then endMetadata.
func beginMetadata(b []byte, field protowire.Number) ([]byte, metadataAt) {
	var m metadataAt
	b, m.outer = begin(b, field)
	b, m.entry = begin(b, metadataFilter)
	b = str(b, mapKey, metadataKey)
	b, m.value = begin(b, mapValue)
	return b, m
}

func endMetadata(b []byte, m metadataAt) []byte { return end(end(end(b, m.value), m.entry), m.outer) }

// entryAt holds where a key and value of a Struct begin.
type entryAt struct{ outer, value int }

// beginEntry opens a key of a Struct; what follows is the content of its Value,
// and then endEntry.
func beginEntry(b []byte, key string) ([]byte, entryAt) {
	var e entryAt
	b, e.outer = begin(b, structFields)
	b = str(b, mapKey, key)
	b, e.value = begin(b, mapValue)
	return b, e
}

func endEntry(b []byte, e entryAt) []byte { return end(end(b, e.value), e.outer) }

func entryString(b []byte, key, s string) []byte {
	b, e := beginEntry(b, key)
	return endEntry(str(b, valueString, s), e)
}

func entryBool(b []byte, key string, v bool) []byte {
	b, e := beginEntry(b, key)
	return endEntry(varint(b, valueBool, protowire.EncodeBool(v)), e)
}

func entryNumber(b []byte, key string, n int) []byte {
	b, e := beginEntry(b, key)
	b = tag(b, valueNumber, protowire.Fixed64Type)
	return endEntry(protowire.AppendFixed64(b, math.Float64bits(float64(n))), e)
}

func entryAddrs(b []byte, key string, addrs []netip.AddrPort) []byte {
	b, e := beginEntry(b, key)
	b, list := begin(b, valueList)
	for _, a := range addrs {
		var value, text int
		b, value = begin(b, listValues)
		b, text = begin(b, valueString)
		b = end(end(a.AppendTo(b), text), value)
	}
	return endEntry(end(b, list), e)
}
