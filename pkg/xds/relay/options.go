package relay

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Where things lie unless the options say otherwise.
const (
	// DefaultDir is the folder that holds the socket and what clients read beside
	// it, on the node and in pods.
	DefaultDir = "/run/flatmesh/xds"
	// DefaultCertificateDir is where a pod finds its own certificate.
	DefaultCertificateDir = "/run/secrets/flatmesh.io"
)

// The files in Options.Dir.
const (
	// SocketName is the socket on which xDS is served, to everybody.
	SocketName = "xds.sock"
	// BootstrapName is the bootstrap file of gRPC clients (gRFC A27).
	BootstrapName = "bootstrap.json"
	// EnvName holds the environment of gRPC clients, a NAME=VALUE in each line: for
	// a shell's `set -a; . ./env` and for `docker run --env-file`.
	EnvName = "env"
)

// Options says whom a relay serves, and where it keeps what.
type Options struct {
	// Node is the node that it runs on.
	Node mesh.NodeID
	// Version is the agent's own, told to the control plane.
	Version string
	// Dir holds the socket and the files for clients (0755). It is this folder
	// that pods mount, not the socket: so they see a new one after a restart.
	Dir string
	// CacheFile keeps what the control plane told; its folder exists.
	CacheFile string
	// PodDir is where pods see Dir; DefaultDir where it is empty.
	PodDir string
	// CertificateDir is where pods find their certificates;
	// DefaultCertificateDir where it is empty.
	CertificateDir string
	// Retention is how long names are kept up to date that nobody on the node
	// subscribes to any longer; 24 hours where it is 0.
	Retention time.Duration
	// MaxIdle bounds how many such names there are, the least recently used go
	// first; 20,000 where it is 0.
	MaxIdle int
	// Now is the clock; time.Now where it is nil.
	Now func() time.Time
	Log *slog.Logger
}

// inText matches paths that need no quoting in a URI, in JSON or in a shell.
var inText = regexp.MustCompile(`^(/[A-Za-z0-9._-]+)+$`)

// maxSocketPath is what a Unix socket's address has room for (unix(7)), less the
// dot under which it is made.
const maxSocketPath = 106

func (o Options) withDefaults() Options {
	o.PodDir = cmp.Or(o.PodDir, DefaultDir)
	o.CertificateDir = cmp.Or(o.CertificateDir, DefaultCertificateDir)
	o.Retention = cmp.Or(o.Retention, 24*time.Hour)
	o.MaxIdle = cmp.Or(o.MaxIdle, 20_000)
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// validate checks what users may set.
func (o Options) validate() error {
	var errs []error
	if err := o.Node.Validate(); err != nil {
		errs = append(errs, err)
	}
	if !filepath.IsAbs(o.Dir) || len(o.socket()) > maxSocketPath {
		errs = append(errs, fmt.Errorf("folder of the xDS socket %q: want an absolute path that with /%s has at most %d characters", o.Dir, SocketName, maxSocketPath))
	}
	if o.CacheFile == "" {
		errs = append(errs, errors.New("no file for the xDS cache"))
	}
	for _, p := range []string{o.PodDir, o.CertificateDir} {
		if !inText.MatchString(p) {
			errs = append(errs, fmt.Errorf("path in pods %q: want an absolute path of letters, digits, dots, dashes and underscores", p))
		}
	}
	if o.Retention < 0 || o.MaxIdle < 0 {
		errs = append(errs, fmt.Errorf("retention of %v for %d names: want neither below 0", o.Retention, o.MaxIdle))
	}
	return errors.Join(errs...)
}

func (o Options) socket() string { return filepath.Join(o.Dir, SocketName) }
