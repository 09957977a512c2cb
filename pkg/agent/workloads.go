package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/pki"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// workloadRetry is how long a pod waits for its certificate after a failure.
const workloadRetry = 5 * time.Second

// issueWorkload asks for a pod's certificate over a CSR (DER).
type issueWorkload func(ctx context.Context, namespace, pod, uid string, csr []byte) (chain, roots [][]byte, err error)

// workloads keeps a certificate for each pod of the node, in a folder that the
// pod sees. Keys are made here and never leave the node. Certificates on disk go
// on serving while the control plane is away.
type workloads struct {
	dir  string
	node mesh.NodeID
	log  *slog.Logger

	changed chan struct{} // one slot

	mu sync.Mutex
	// told: the control plane has told all pods on this run.
	told bool
	pods map[string]*workload // by folder
}

// workload is one pod's certificate.
type workload struct {
	pod mesh.Pod
	// identity and renewAt are those of the certificate in the folder; renewAt is
	// zero where there is none.
	identity       pki.Identity
	until, renewAt time.Time
	retryAt        time.Time
	problem        string
	forUID         string
	known          bool // forUID is known
	gone, looked   bool
}

// WorkloadStatus is a pod's certificate in `agent status`.
type WorkloadStatus struct {
	Pod      string     `json:"pod"`
	Identity string     `json:"identity"`
	Until    *time.Time `json:"until,omitempty"`
	Error    string     `json:"error,omitempty"`
}

func newWorkloads(dir string, node mesh.NodeID, log *slog.Logger) *workloads {
	return &workloads{dir: dir, node: node, log: log, changed: make(chan struct{}, 1), pods: map[string]*workload{}}
}

// folder names a pod's folder. Neither part of it holds an underscore.
func folder(p mesh.Pod) string { return p.Namespace + "_" + p.Name }

// apply takes in what the control plane tells of the node's pods.
func (w *workloads) apply(u xds.Update) error {
	var pods []mesh.Pod
	for _, r := range u.Resources {
		node, list, err := xds.ParsePods(r)
		if err != nil {
			return err
		}
		if node != w.node {
			return fmt.Errorf("pods of %s", node)
		}
		pods = append(pods, list...)
	}
	if len(u.Resources) == 0 && len(u.Removed) == 0 {
		return nil // nothing changed
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = true
	for _, have := range w.pods {
		have.gone = true
	}
	for _, p := range pods {
		have := w.pods[folder(p)]
		if have == nil {
			have = &workload{}
			w.pods[folder(p)] = have
		}
		have.pod, have.gone = p, false
	}
	mark(w.changed)
	return nil
}

// run issues and renews certificates until ctx ends.
func (w *workloads) run(ctx context.Context, issue issueWorkload) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.changed:
		case <-timer.C:
		}
		next := w.round(ctx, issue)
		timer.Reset(time.Until(next))
	}
}

// round brings the folders in line and returns when to look again.
func (w *workloads) round(ctx context.Context, issue issueWorkload) time.Time {
	w.mu.Lock()
	told, list := w.told, maps.Clone(w.pods)
	w.mu.Unlock()
	next := time.Now().Add(time.Hour)
	if !told {
		return next
	}
	w.sweep(list)
	for _, name := range slices.Sorted(maps.Keys(list)) {
		if ctx.Err() != nil {
			return next
		}
		if due := w.tend(ctx, name, issue); !due.IsZero() && due.Before(next) {
			next = due
		}
	}
	return next
}

// sweep removes the folders of pods that are gone, those of earlier runs too.
func (w *workloads) sweep(list map[string]*workload) {
	entries, err := os.ReadDir(w.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Error("list the workloads' certificates", "err", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range entries {
		have := list[e.Name()]
		if have != nil && !have.gone {
			continue
		}
		if !strings.Contains(e.Name(), "_") {
			continue // not ours
		}
		if err := w.clear(e.Name()); err != nil {
			w.log.Error("remove a pod's certificate", "pod", e.Name(), "err", err)
		}
	}
	for name, have := range list {
		if have.gone {
			delete(w.pods, name)
			delete(list, name)
		}
	}
}

// clear removes what a pod's folder holds. The folder itself stays: it may be
// mounted into the pod, which would never see another one. It goes a day after
// it was last written to.
func (w *workloads) clear(name string) error {
	dir := filepath.Join(w.dir, name)
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	errs := []error{removeIfThere(w.uidFile(name))}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if len(entries) == 0 && time.Since(info.ModTime()) > emptyFolderAge {
		errs = append(errs, os.Remove(dir))
	}
	return errors.Join(errs...)
}

// emptyFolderAge is how long the folder of a pod that is gone is kept.
const emptyFolderAge = 24 * time.Hour

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// uidFile holds the UID of the pod that a folder's certificate was made for. It
// lies beside the folder, where the pod does not see it.
func (w *workloads) uidFile(name string) string { return filepath.Join(w.dir, "."+name+".uid") }

// tend sees to one pod's certificate and returns when to look at it again.
func (w *workloads) tend(ctx context.Context, name string, issue issueWorkload) time.Time {
	dir := filepath.Join(w.dir, name)
	w.mu.Lock()
	have := *w.pods[name]
	w.mu.Unlock()
	now := time.Now()
	want := pki.WorkloadOf(have.pod.Namespace, have.pod.ServiceAccount)
	if !have.looked {
		have.looked = true
		if b, err := pki.ReadWorkload(dir); err == nil {
			have.take(b)
			uid, err := os.ReadFile(w.uidFile(name))
			have.forUID, have.known = string(uid), err == nil
		}
	}
	due := have.renewAt
	if have.identity != want || !have.known || have.forUID != have.pod.UID {
		due = now
		if have.identity != (pki.Identity{}) {
			// Another pod's: it must not outlive that one in this one's hands.
			if err := w.clear(name); err != nil {
				w.log.Error("remove an earlier pod's certificate", "pod", name, "err", err)
			}
			have.identity, have.until, have.renewAt = pki.Identity{}, time.Time{}, time.Time{}
		}
	}
	if due = later(due, have.retryAt); !now.Before(due) {
		b, err := newWorkload(ctx, have.pod, want, issue)
		if err == nil {
			err = errors.Join(pki.WriteWorkload(dir, b), os.WriteFile(w.uidFile(name), []byte(have.pod.UID), 0o600))
		}
		if err != nil {
			if ctx.Err() == nil && have.problem != err.Error() {
				w.log.Warn("no certificate for a pod", "pod", have.pod.Namespace+"/"+have.pod.Name, "err", err)
			}
			have.problem, have.retryAt = err.Error(), now.Add(workloadRetry)
			due = have.retryAt
		} else {
			have.take(b)
			// From now on: a certificate is dated back for clocks that are behind.
			have.renewAt = now.Add(have.until.Sub(now) / 2)
			have.forUID, have.known, have.problem, have.retryAt = have.pod.UID, true, "", time.Time{}
			due = have.renewAt
			w.log.Info("certificate for a pod", "pod", have.pod.Namespace+"/"+have.pod.Name, "identity", want, "until", have.until)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.pods[name]; p != nil {
		have.pod, have.gone = p.pod, p.gone // they may have changed meanwhile
		*p = have
	}
	return due
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// take notes the certificate in the folder. It is renewed at half of its life.
func (w *workload) take(b *pki.Bundle) {
	w.identity, w.until = b.Identity(), b.NotAfter()
	w.renewAt = b.NotBefore().Add(b.NotAfter().Sub(b.NotBefore()) / 2)
}

func newWorkload(ctx context.Context, p mesh.Pod, want pki.Identity, issue issueWorkload) (*pki.Bundle, error) {
	key, csr, err := pki.NewCSR()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	chain, roots, err := issue(ctx, p.Namespace, p.Name, p.UID, csr)
	if err != nil {
		return nil, err
	}
	b, err := pki.NewBundle(key, chain, roots)
	if err != nil {
		return nil, fmt.Errorf("the control plane's certificate: %w", err)
	}
	if got := b.Identity(); got != want {
		return nil, fmt.Errorf("the control plane's certificate is of %v, not of %v", got, want)
	}
	return b, nil
}

// status lists the pods' certificates, sorted.
func (w *workloads) status() []WorkloadStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]WorkloadStatus, 0, len(w.pods))
	for _, name := range slices.Sorted(maps.Keys(w.pods)) {
		p := w.pods[name]
		s := WorkloadStatus{Pod: p.pod.Namespace + "/" + p.pod.Name, Error: p.problem}
		if !p.until.IsZero() {
			until := p.until.UTC()
			s.Until, s.Identity = &until, p.identity.Namespace+"/"+p.identity.ServiceAccount
		}
		out = append(out, s)
	}
	return out
}
