package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/source"
)

const (
	// maxFileSize is in bytes. A dump of 5,000 nodes with all their images is
	// about as large.
	maxFileSize = 64 << 20
	// maxFolders is how deep sub-folders are followed.
	maxFolders = 16
	// settled is how old a file's time must be for an unchanged time to mean an
	// unchanged file: time stamps tick in steps of up to 10 ms.
	settled = 100 * time.Millisecond
	// attempts is how often a folder is read anew that changed while it was read.
	attempts = 3
)

// errMoving says that a file changed or went while it was read.
var errMoving = errors.New("changes while it is read; it is read again when it rests")

// reader reads one cluster folder again and again, and decodes only the files
// that have changed. It is for one goroutine.
type reader struct {
	folder string
	types  map[reflect.Type]structFields
	now    func() time.Time
	watch  func(dir string) // called for each folder before it is listed
	cache  map[string]cached
}

// cached is what a file held when it was last read.
type cached struct {
	file
	info os.FileInfo // after symbolic links
	// young says that the file was so new that it may have changed unseen.
	young bool
}

func newReader(folder string, now func() time.Time, watch func(string)) *reader {
	return &reader{folder: filepath.Clean(folder), types: map[reflect.Type]structFields{}, now: now, watch: watch}
}

// read returns what the folder says now, or all that is wrong with it. Where the
// folder or its cluster.yaml does not exist the error is fs.ErrNotExist, and only
// then. It stops early when ctx ends.
func (r *reader) read(ctx context.Context) (State, error) {
	for attempt := 1; ; attempt++ {
		p := pass{reader: r, ctx: ctx, seen: map[string]cached{}}
		err := p.walk(r.folder, nil)
		if errors.Is(err, errMoving) && attempt < attempts {
			continue
		}
		if err != nil {
			return State{}, err
		}
		r.cache = p.seen
		return p.state()
	}
}

// pass is one reading of a folder.
type pass struct {
	*reader
	ctx  context.Context
	seen map[string]cached
	errs []*Error
}

func (p *pass) fail(path string, err error) {
	var of *fs.PathError
	if errors.As(err, &of) {
		err = of.Err // the path is said already
	}
	p.errs = append(p.errs, &Error{File: path, Err: err})
}

// walk reads a folder and those below it. Its error ends the pass; what is
// wrong with single files it collects.
func (p *pass) walk(path string, above []os.FileInfo) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "read", Path: path, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return p.unlisted(path, above, err)
	}
	if slices.ContainsFunc(above, func(up os.FileInfo) bool { return os.SameFile(up, info) }) {
		p.fail(path, errors.New("leads back to a folder above it"))
		return nil
	}
	if len(above) == maxFolders {
		p.fail(path, fmt.Errorf("lies more than %d folders deep", maxFolders))
		return nil
	}
	p.watch(path)
	entries, err := os.ReadDir(path)
	if err != nil {
		return p.unlisted(path, above, err)
	}
	above = append(slices.Clip(above), info)
	for _, e := range entries {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if err := p.entry(filepath.Join(path, e.Name()), e, above); err != nil {
			return err
		}
	}
	return nil
}

// unlisted decides what it means that a folder cannot be listed.
func (p *pass) unlisted(path string, above []os.FileInfo, err error) error {
	missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
	switch {
	case missing && len(above) == 0:
		return noFolder(path)
	case missing:
		return fmt.Errorf("%s: %w", path, errMoving)
	default:
		p.fail(path, err)
		return nil
	}
}

// ignored reports whether a name is hidden, an editor's backup or the folder
// that every ext4 volume has.
func ignored(name string) bool {
	return strings.HasPrefix(name, ".") || name == "lost+found" || strings.HasSuffix(name, "~") ||
		strings.HasPrefix(name, "#") && strings.HasSuffix(name, "#") || strings.HasSuffix(name, ".swp")
}

func (p *pass) entry(path string, e fs.DirEntry, above []os.FileInfo) error {
	if ignored(e.Name()) {
		return nil
	}
	info, err := os.Stat(path)
	var wanted bool
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json":
		wanted = true
	}
	switch {
	case !wanted && (err != nil || !info.IsDir()):
		return nil
	case !wanted:
		return p.walk(path, above)
	case errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink == 0:
		return fmt.Errorf("%s: %w", path, errMoving)
	case errors.Is(err, fs.ErrNotExist):
		p.fail(path, errors.New("is a symbolic link to nothing"))
		return nil
	case err != nil:
		p.fail(path, err)
		return nil
	case info.IsDir():
		p.fail(path, errors.New("is a folder, not a file; container runtimes make one where the file to mount is missing"))
		return nil
	case !info.Mode().IsRegular():
		p.fail(path, fmt.Errorf("is not a regular file (%v)", info.Mode().Type()))
		return nil
	}
	if was, ok := p.cache[path]; ok && !was.young && sameVersion(was.info, info) {
		p.seen[path] = was
		return nil
	}
	return p.decode(path)
}

// sameVersion compares what a file system shows of a file that may have changed.
func sameVersion(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func (p *pass) decode(path string) error {
	began := p.now()
	data, info, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errMoving):
		return fmt.Errorf("%s: %w", path, errMoving)
	case err != nil:
		p.fail(path, err)
		return nil
	}
	c := cached{info: info, young: began.Sub(info.ModTime()).Abs() < settled}
	if path == filepath.Join(p.reader.folder, clusterFile) {
		c.file = decodeCluster(path, data, p.types)
	} else {
		c.file = decodeObjects(path, data, p.types)
	}
	p.seen[path] = c
	return nil
}

// readFile reads a regular file of bounded size as it was at one moment, or says
// that it is errMoving.
func readFile(path string) ([]byte, os.FileInfo, error) {
	// Without waiting, so that a pipe put in the file's place cannot hold us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, nil, errMoving
	}
	if before.Size() > maxFileSize {
		return nil, nil, fmt.Errorf("is larger than %d MiB; split it", maxFileSize>>20)
	}
	data, err := io.ReadAll(io.LimitReader(f, before.Size()+1)) // more means that it grows
	if err != nil {
		return nil, nil, err
	}
	after, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !sameVersion(before, after) || int64(len(data)) != after.Size() {
		return nil, nil, errMoving
	}
	return data, after, nil
}

// state joins what all files hold.
func (p *pass) state() (State, error) {
	s := State{Folder: p.reader.folder, Objects: map[source.Key]runtime.Object{}}
	declared, ok := p.seen[filepath.Join(s.Folder, clusterFile)]
	places := map[source.Key]object{}
	for _, path := range slices.Sorted(maps.Keys(p.seen)) {
		p.errs = append(p.errs, p.seen[path].errs...)
		for _, o := range p.seen[path].objects {
			if first, ok := places[o.key]; ok {
				p.errs = append(p.errs, &Error{File: o.file, Line: o.line, Object: o.key.String(),
					Err: fmt.Errorf("is already in %s:%d", first.file, first.line)})
				continue
			}
			places[o.key] = o
			s.Objects[o.key] = o.obj
		}
	}
	p.errs = append(p.errs, sharedClusterIPs(places)...)
	switch {
	case !ok && !p.failed(clusterFile):
		return State{}, noClusterFile(filepath.Join(s.Folder, clusterFile))
	case len(p.errs) > 0:
		return State{}, join(p.errs)
	}
	var err error
	s.Cluster, err = withServiceCIDRs(*declared.cluster, s.Objects)
	return s, err
}

// failed reports whether a file at the top of the folder is there but unread.
func (p *pass) failed(name string) bool {
	path := filepath.Join(p.reader.folder, name)
	return slices.ContainsFunc(p.errs, func(e *Error) bool { return e.File == path || e.File == p.reader.folder })
}
