package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The files of a workload's folder, as a Secret of type kubernetes.io/tls has
// them, and the link through which they are replaced together.
const (
	workloadCertFile = "tls.crt"
	workloadKeyFile  = "tls.key"
	workloadRootFile = "ca.crt"
	workloadData     = "..data"
	workloadTemp     = "..tmp"
)

// WriteWorkload writes a workload's identity into the folder that its pod sees,
// in place of the earlier one: tls.crt (leaf first, then the CAs up to the root),
// tls.key (PKCS #8) and ca.crt (the roots), all PEM. They lie in a folder of
// their own behind the link "..data", which is replaced in one step, as kubelet
// does for Secrets: whoever reads them one by one while that happens may hold two
// that do not belong together, and reads a pair when it reads again.
//
// The files are open to every user, since nothing says as which one the pod's
// processes run, and the pod is the only place from where they can be reached:
// the folder above, which the pod does not see, is the owner's alone. It is made
// so where it is missing, and where it is open to others nothing is written. The
// pod must see the folder read-only, lest it leads what is written elsewhere.
//
// One writer at a time may write a folder. There is no lock: the pod could hold
// one on what it can open.
func WriteWorkload(dir string, b *Bundle) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the certificate of %v to %s: %w", b.id, dir, err)
		}
	}()
	if b.id.Role != Workload {
		return errors.New("not the identity of a workload: no pod may have it")
	}
	key, err := x509.MarshalPKCS8PrivateKey(b.Key)
	if err != nil {
		return err
	}
	if err := makeWorkloadDir(dir); err != nil {
		return err
	}
	data, err := os.MkdirTemp(dir, b.NotBefore().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	err = writeWorkloadFiles(data, map[string][]byte{
		workloadCertFile: encodeCertificates(b.Chain),
		workloadKeyFile:  pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: key}),
		workloadRootFile: encodeCertificates(b.Roots),
	})
	if err == nil {
		err = link(dir, filepath.Base(data), workloadData)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(data))
	}
	for _, name := range []string{workloadCertFile, workloadKeyFile, workloadRootFile} {
		if err := link(dir, filepath.Join(workloadData, name), name); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(dir), removeEarlier(dir, filepath.Base(data)))
}

// makeWorkloadDir makes the folder and the one above it. Modes are set for
// themselves: the process's umask may take rights away that the pod needs.
func makeWorkloadDir(dir string) error {
	above := filepath.Dir(dir)
	if err := os.MkdirAll(above, 0o700); err != nil {
		return err
	}
	if err := checkMode(above, 0o077); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// writeWorkloadFiles fills a folder and makes it last before anything points to
// it: a link that survives a crash must not lead to files that did not.
func writeWorkloadFiles(dir string, files map[string][]byte) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, data := range files {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// link makes dir/name a link to target, in one step and whatever file is there.
func link(dir, target, name string) error {
	path := filepath.Join(dir, name)
	if to, err := os.Readlink(path); err == nil && to == target {
		return nil
	}
	tmp := filepath.Join(dir, workloadTemp)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// removeEarlier removes the folders of earlier identities, and what a crash left.
func removeEarlier(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") && e.Name() != keep && e.Name() != workloadData {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// ReadWorkload reads what WriteWorkload wrote, so that an agent that starts again
// knows whose certificate a pod has and until when. An expired one is returned
// like any other. Where there is none the error is fs.ErrNotExist; after any
// error the workload is given a new one.
func ReadWorkload(dir string) (*Bundle, error) {
	b, err := readWorkload(dir)
	if err != nil {
		return nil, fmt.Errorf("read the workload's certificate in %s: %w", dir, err)
	}
	return b, nil
}

func readWorkload(dir string) (*Bundle, error) {
	// Read past the links, so that all three are of one writing.
	data, err := os.Readlink(filepath.Join(dir, workloadData))
	if err != nil {
		return nil, err
	}
	if data != filepath.Base(data) || !filepath.IsLocal(data) {
		return nil, fmt.Errorf("%s leads to %q, out of the folder", workloadData, data)
	}
	var files [3][]byte
	for i, name := range []string{workloadCertFile, workloadKeyFile, workloadRootFile} {
		if files[i], err = os.ReadFile(filepath.Join(dir, data, name)); err != nil {
			return nil, err
		}
	}
	return decodeWorkload(files[0], files[1], files[2])
}

func decodeWorkload(cert, key, root []byte) (*Bundle, error) {
	chain, err := decodeCertificates(cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", workloadCertFile, err)
	}
	roots, err := decodeCertificates(root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", workloadRootFile, err)
	}
	signer, err := decodeForeignKey(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", workloadKeyFile, err)
	}
	b, err := NewBundle(signer, raw(chain), raw(roots))
	if err != nil {
		return nil, err
	}
	if b.id.Role != Workload {
		return nil, fmt.Errorf("it is that of %v, not of a workload", b.id)
	}
	return b, nil
}

func raw(certs []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}

func encodeCertificates(ders [][]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		b.Write(encodeCertificate(der))
	}
	return b.Bytes()
}
