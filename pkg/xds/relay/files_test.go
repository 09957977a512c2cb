package relay

import (
	"encoding/json"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	grpcxds "google.golang.org/grpc/xds"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// The bootstrap file, as a user reads it. That gRPC takes it as it is other tests
// show, which dial with it.
func TestBootstrapFile(t *testing.T) {
	got, err := bootstrapFile(Options{Node: self}.withDefaults(), "r1", "z1")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "xds_servers": [
    {
      "server_uri": "unix:///run/flatmesh/xds/xds.sock",
      "channel_creds": [
        {
          "type": "insecure"
        }
      ],
      "server_features": [
        "xds_v3",
        "resource_timer_is_transient_error"
      ]
    }
  ],
  "node": {
    "id": "east/n1",
    "cluster": "east",
    "metadata": {
      "flatmesh.io/kind": "grpc"
    },
    "locality": {
      "region": "r1",
      "zone": "z1"
    }
  },
  "certificate_providers": {
    "default": {
      "plugin_name": "file_watcher",
      "config": {
        "certificate_file": "/run/secrets/flatmesh.io/tls.crt",
        "private_key_file": "/run/secrets/flatmesh.io/tls.key",
        "ca_certificate_file": "/run/secrets/flatmesh.io/ca.crt",
        "refresh_interval": "10s"
      }
    }
  }
}
`
	if string(got) != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if _, err := grpcxds.NewXDSResolverWithConfigForTesting(got); err != nil {
		t.Errorf("gRPC: %v", err)
	}
	bare, err := bootstrapFile(Options{Node: self}.withDefaults(), "", "")
	if err != nil || strings.Contains(string(bare), "locality") {
		t.Errorf("without a locality: %s, %v", bare, err)
	}
}

// A shell and a line-by-line reader take the same from the env file.
func TestEnvFile(t *testing.T) {
	n := newNode(t)
	n.start(nil)
	path := filepath.Join(n.opts.Dir, EnvName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "GRPC_XDS_BOOTSTRAP=" + n.opts.Dir + "/bootstrap.json\nGRPC_EXPERIMENTAL_XDS_SNI=true\n"
	if string(b) != want {
		t.Errorf("got %q, want %q", b, want)
	}
	out, err := exec.Command("sh", "-c", `set -a; . "$1"; exec env`, "sh", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(want), "\n") {
		if !strings.Contains("\n"+string(out), "\n"+line+"\n") {
			t.Errorf("the shell has no %s", line)
		}
	}
}

// What lies in the folder may be read, and the socket used, by everybody, whatever
// the umask; it is written only where it differs.
func TestFolder(t *testing.T) {
	n := newNode(t)
	r := n.start(nil)
	modes := map[string]fs.FileMode{".": fs.ModeDir | 0o755, SocketName: fs.ModeSocket | 0o666, BootstrapName: 0o644, EnvName: 0o644}
	before := map[string]fs.FileInfo{}
	for name, want := range modes {
		info, err := os.Stat(filepath.Join(n.opts.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
		before[name] = info
	}
	same := func(name string) bool {
		info, err := os.Stat(filepath.Join(n.opts.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return os.SameFile(info, before[name])
	}
	if err := r.SetLocality("r1", "z1"); err != nil {
		t.Fatal(err)
	}
	if same(BootstrapName) || !same(EnvName) {
		t.Error("want the bootstrap file replaced, and the env file not")
	}
	b, err := os.ReadFile(filepath.Join(n.opts.Dir, BootstrapName))
	var boot bootstrap
	if err != nil || json.Unmarshal(b, &boot) != nil || boot.Node.Locality == nil || *boot.Node.Locality != (bootstrapPlace{"r1", "z1"}) {
		t.Errorf("bootstrap file %s, %v", b, err)
	}
	before[BootstrapName], err = os.Stat(filepath.Join(n.opts.Dir, BootstrapName))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetLocality("r1", "z1"); err != nil || !same(BootstrapName) {
		t.Errorf("written though nothing changed, %v", err)
	}
	// The next process puts its socket in the same place, though this one did not
	// take it away.
	n.ended()
	if !same(SocketName) {
		t.Error("the socket is gone with the process")
	}
	n.start(nil)
	if same(SocketName) {
		t.Error("the socket is the old one")
	}
	if left, err := filepath.Glob(filepath.Join(n.opts.Dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// Only a socket is taken for a stale one.
func TestListenOverFile(t *testing.T) {
	dir, err := os.MkdirTemp("", "fmrelay")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, SocketName)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listen(path); err == nil {
		l.Close()
		t.Error("listens in the place of a file")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// Options that cannot be are refused when the relay is opened.
func TestOptions(t *testing.T) {
	good := Options{Node: self, Dir: "/run/x", CacheFile: filepath.Join(t.TempDir(), "cache"), Log: slog.New(slog.DiscardHandler)}
	if _, err := Open(good); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(*Options){
		"node":        func(o *Options) { o.Node = mesh.NodeID{Cluster: "east"} },
		"relative":    func(o *Options) { o.Dir = "run" },
		"long":        func(o *Options) { o.Dir = "/" + strings.Repeat("x", maxSocketPath-len(SocketName)-1) },
		"no file":     func(o *Options) { o.CacheFile = "" },
		"space":       func(o *Options) { o.PodDir = "/run/with space" },
		"shell":       func(o *Options) { o.PodDir = "/run/$(reboot)" },
		"certificate": func(o *Options) { o.CertificateDir = "secrets" },
		"retention":   func(o *Options) { o.Retention = -1 },
	} {
		o := good
		spoil(&o)
		if _, err := Open(o); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
