package relay

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// journalFormat is the version of the file.
//
// It begins with a line of JSON, journalHeader. Then follow records: the length of
// the content and its CRC-32C, each of four bytes and little-endian, and the
// content, a protobuf message of the fields below. A later record of a name
// replaces an earlier one. So a change costs its own size, and the whole file is
// written anew only when most of it has been replaced.
const journalFormat = 1

type journalHeader struct {
	Format int         `json:"format"`
	Node   mesh.NodeID `json:"node"`
}

// The fields of a record's content.
const (
	recordKind     protowire.Number = 1 // string
	recordType     protowire.Number = 2 // string, the type URL
	recordName     protowire.Number = 3 // string
	recordResource protowire.Number = 4 // a discovery.Resource; not there where the name is gone
)

const (
	recordHead = 8
	// maxRecord bounds a record's content: gRPC's own bound of what comes in at
	// once is of that size.
	maxRecord = 64 << 20
	// slack is how much of the file may be waste before it is written anew, besides
	// as much again as there is content.
	slack = 1 << 20
)

// record is one name of the cache. That of "*" has an empty resource.
type record struct {
	key
	resource *discovery.Resource // nil: it is gone
}

// journal is the cache's file. It is not safe for concurrent use.
type journal struct {
	path string
	node mesh.NodeID
	// size is where the next record goes, 0 while there is no file; live is how much
	// of that is content that no later record replaces.
	size, live int64
	sizes      map[key]int64
}

// errNewer: whoever goes back to an older agent must decide what becomes of what
// the newer one kept.
var errNewer = errors.New("written by a newer agent")

// openJournal reads the file and returns what it holds, each name once. Where it
// is damaged or another node's, it is set aside, nothing is returned, and the
// problem says so: the agent goes on without it. What a crash cut off at its end
// is lost, and no damage.
func openJournal(path string, node mesh.NodeID) (j *journal, kept []record, problem, err error) {
	j = &journal{path: path, node: node, sizes: map[key]int64{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil, nil, nil
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the xDS cache: %w", err)
	}
	kept, err = j.read(b)
	if errors.Is(err, errNewer) {
		return nil, nil, nil, fmt.Errorf("%s: %w: use the newer agent, or remove the file to fetch everything anew", path, err)
	}
	if err != nil {
		aside := path + ".corrupt"
		if rerr := os.Rename(path, aside); rerr != nil {
			return nil, nil, nil, fmt.Errorf("%s cannot be read (%w) and not be set aside: %w", path, err, rerr)
		}
		j = &journal{path: path, node: node, sizes: map[key]int64{}}
		return j, nil, fmt.Errorf("%s cannot be read and was set aside as %s; what it held is fetched anew: %w", path, aside, err), nil
	}
	return j, kept, nil, nil
}

// read replays the file's content.
func (j *journal) read(b []byte) ([]record, error) {
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	var h journalHeader
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("its first line: %w", err)
	}
	switch {
	case h.Format > journalFormat:
		return nil, fmt.Errorf("%w: it is of format %d, this agent reads up to %d", errNewer, h.Format, journalFormat)
	case h.Node != j.node:
		return nil, fmt.Errorf("it is of node %s, this is %s", h.Node, j.node)
	case h.Format != journalFormat || !ok:
		return nil, errors.New("its first line is not complete")
	}
	content := map[key]*discovery.Resource{}
	j.size = int64(len(line)) + 1
	for len(rest) > 0 {
		n, r, err := readRecord(rest)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("at byte %d: %w", j.size, err)
		}
		j.account(r.key, n, r.resource == nil)
		if r.resource == nil {
			delete(content, r.key)
		} else {
			content[r.key] = r.resource
		}
		j.size += n
		rest = rest[n:]
	}
	out := make([]record, 0, len(content))
	for k, r := range content {
		out = append(out, record{k, r})
	}
	return out, nil
}

// account notes that the newest record of a name has n bytes; a record of what is
// gone is waste itself.
func (j *journal) account(k key, n int64, gone bool) {
	j.live -= j.sizes[k]
	delete(j.sizes, k)
	if !gone {
		j.sizes[k] = n
		j.live += n
	}
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// appendRecord appends a record to b.
func appendRecord(b []byte, r record) ([]byte, error) {
	start := len(b)
	b = append(b, make([]byte, recordHead)...)
	for _, f := range [...]struct {
		number protowire.Number
		text   string
	}{{recordKind, string(r.kind)}, {recordType, r.typeURL}, {recordName, r.name}} {
		b = protowire.AppendTag(b, f.number, protowire.BytesType)
		b = protowire.AppendString(b, f.text)
	}
	if r.resource != nil {
		b = protowire.AppendTag(b, recordResource, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(proto.Size(r.resource)))
		var err error
		if b, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(b, r.resource); err != nil {
			return nil, fmt.Errorf("%s %s: %w", r.typeURL, r.name, err)
		}
	}
	content := b[start+recordHead:]
	if len(content) > maxRecord {
		return nil, fmt.Errorf("%s %s: %d bytes are too many to keep", r.typeURL, r.name, len(content))
	}
	binary.LittleEndian.PutUint32(b[start:], uint32(len(content)))
	binary.LittleEndian.PutUint32(b[start+4:], checksum(content))
	return b, nil
}

// readRecord reads the record at the beginning of b and returns its size. Where b
// is what a crash left of one, at the end of the file, the error is
// io.ErrUnexpectedEOF.
func readRecord(b []byte) (int64, record, error) {
	if len(b) < recordHead {
		return 0, record{}, io.ErrUnexpectedEOF
	}
	length, sum := int64(binary.LittleEndian.Uint32(b)), binary.LittleEndian.Uint32(b[4:])
	switch {
	case length == 0 && zeros(b):
		return 0, record{}, io.ErrUnexpectedEOF
	case length == 0 || length > maxRecord:
		return 0, record{}, fmt.Errorf("a record of %d bytes", length)
	case length > int64(len(b)-recordHead):
		return 0, record{}, io.ErrUnexpectedEOF
	}
	content := b[recordHead : recordHead+length]
	if checksum(content) != sum {
		if zeros(b[recordHead+length:]) {
			return 0, record{}, io.ErrUnexpectedEOF
		}
		return 0, record{}, errors.New("the checksum is wrong")
	}
	r, err := parseRecord(content)
	return recordHead + length, r, err
}

// zeros reports whether b is room at the end of the file that the file system had
// made and that was not filled yet.
func zeros(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

func parseRecord(b []byte) (record, error) {
	var r record
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return record{}, protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return record{}, protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return record{}, protowire.ParseError(n)
		}
		b = b[n:]
		switch number {
		case recordKind:
			r.kind = build.Kind(value)
		case recordType:
			r.typeURL = string(value)
		case recordName:
			r.name = string(value)
		case recordResource:
			r.resource = &discovery.Resource{}
			if err := proto.Unmarshal(value, r.resource); err != nil {
				return record{}, err
			}
		}
	}
	return r, nil
}
