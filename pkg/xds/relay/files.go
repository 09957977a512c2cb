package relay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// bootstrap is gRPC's bootstrap file (gRFC A27, A29).
type bootstrap struct {
	Servers      []bootstrapServer             `json:"xds_servers"`
	Node         bootstrapNode                 `json:"node"`
	Certificates map[string]bootstrapProviders `json:"certificate_providers"`
}

type bootstrapServer struct {
	URI         string            `json:"server_uri"`
	Credentials []bootstrapPlugin `json:"channel_creds"`
	Features    []string          `json:"server_features"`
}

type bootstrapPlugin struct {
	Type string `json:"type"`
}

type bootstrapNode struct {
	ID       string            `json:"id"`
	Cluster  string            `json:"cluster"`
	Metadata map[string]string `json:"metadata"`
	Locality *bootstrapPlace   `json:"locality,omitempty"`
}

type bootstrapPlace struct {
	Region string `json:"region,omitempty"`
	Zone   string `json:"zone,omitempty"`
}

type bootstrapProviders struct {
	Plugin string      `json:"plugin_name"`
	Config fileWatcher `json:"config"`
}

type fileWatcher struct {
	Certificate string `json:"certificate_file"`
	Key         string `json:"private_key_file"`
	Root        string `json:"ca_certificate_file"`
	Refresh     string `json:"refresh_interval"`
}

const (
	// providerName is the certificate provider that clusters refer to.
	providerName = "default"
	// refresh is how soon a client sees a rotated certificate. Three small files
	// are read as often; gRPC's own default of ten minutes is longer than what a
	// short-lived certificate may have left.
	refresh = "10s"
)

// bootstrapFile returns the content of the bootstrap file.
func bootstrapFile(o Options, region, zone string) ([]byte, error) {
	b := bootstrap{
		Servers: []bootstrapServer{{
			URI:         "unix://" + o.PodDir + "/" + SocketName,
			Credentials: []bootstrapPlugin{{Type: "insecure"}},
			// xds_v3 is for clients so old that they default to v2. The other one
			// (gRFC A88): a name without an answer is one that the control plane has
			// not been asked for yet, and not one that does not exist.
			Features: []string{"xds_v3", "resource_timer_is_transient_error"},
		}},
		Node: bootstrapNode{ID: o.Node.String(), Cluster: o.Node.Cluster, Metadata: map[string]string{KindKey: string(kinds[0])}},
		Certificates: map[string]bootstrapProviders{providerName: {Plugin: "file_watcher", Config: fileWatcher{
			Certificate: o.CertificateDir + "/tls.crt", Key: o.CertificateDir + "/tls.key", Root: o.CertificateDir + "/ca.crt",
			Refresh: refresh,
		}}},
	}
	if region != "" || zone != "" {
		b.Node.Locality = &bootstrapPlace{Region: region, Zone: zone}
	}
	out, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("bootstrap file: %w", err)
	}
	return append(out, '\n'), nil
}

// envFile returns the content of the env file. Its values need no quotes, which
// the two readers of such a file understand differently.
func envFile(o Options) []byte {
	return []byte("GRPC_XDS_BOOTSTRAP=" + o.PodDir + "/" + BootstrapName + "\n" +
		// Without it gRPC clients send no server name, by which gateways go.
		"GRPC_EXPERIMENTAL_XDS_SNI=true\n")
}

// writeFiles brings the files beside the socket up to date.
func writeFiles(o Options, region, zone string) error {
	b, err := bootstrapFile(o, region, zone)
	if err != nil {
		return err
	}
	return errors.Join(replaceFile(filepath.Join(o.Dir, BootstrapName), b, 0o644), replaceFile(filepath.Join(o.Dir, EnvName), envFile(o), 0o644))
}

// replaceFile replaces a file as a whole where its content or mode differs: who
// reads it meanwhile, also after a crash, finds the old content or the new.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		if info, err := os.Stat(path); err == nil && info.Mode().Perm() == mode {
			return nil
		}
	}
	err := writeWhole(path, mode, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// writeWhole has write fill a new file, which then takes the place of path.
func writeWhole(path string, mode fs.FileMode, write func(*os.File) error) error {
	// A fixed name, so that what a crash leaves behind never piles up.
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask says
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close()) // fsync of a file does not cover its name
}
