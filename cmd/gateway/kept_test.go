package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/gateway"
)

func TestKeptRoutes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "routes.json")
	for _, want := range []gateway.Routes{
		{},
		routesOf(map[string]string{"echo": "ab", "none": ""}),
	} {
		if err := saveRoutes(path, "east", want); err != nil {
			t.Fatal(err)
		}
		got, problem, err := loadRoutes(path, "east")
		if err != nil || problem != nil || got == nil || text(got) != text(want) {
			t.Errorf("got %q %v %v, want %q", text(got), problem, err, text(want))
		}
	}
	if got, problem, err := loadRoutes(path+".none", "east"); got != nil || problem != nil || err != nil {
		t.Errorf("no file: %v %v %v", got, problem, err)
	}
	if left, err := filepath.Glob(path + "?*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestKeptRoutesThatCannotBeUsed(t *testing.T) {
	good := `{"format":1,"cluster":"east","routes":{"outbound_.80_._.echo.demo.svc.cluster.local":["10.1.0.1:80"]}}`
	for name, c := range map[string]struct{ content, says string }{
		"empty":        {"", "unexpected end"},
		"cut off":      {good[:len(good)-9], "unexpected end"},
		"zeros":        {strings.Repeat("\x00", 100), "invalid character"},
		"newer":        {`{"format":2,"cluster":"east","routes":["x"]}`, "format 2, this gateway reads 1"},
		"another kind": {`{"peers":[]}`, "format 0"},
		"of another":   {strings.Replace(good, "east", "west", 1), "of cluster west"},
		"no routes":    {`{"format":1,"cluster":"east"}`, "not complete"},
		"a bad name":   {strings.Replace(good, "outbound_", "inbound_", 1), "server name"},
		"a bad pod":    {strings.Replace(good, "10.1.0.1:80", "10.1.0.1", 1), "not an ip:port"},
		"no pod":       {strings.Replace(good, "10.1.0.1:80", "", 1), "pod"},
		"port 0":       {strings.Replace(good, "10.1.0.1:80", "10.1.0.1:0", 1), "10.1.0.1:0"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "routes.json")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			routes, problem, err := loadRoutes(path, "east")
			if err != nil || routes != nil || problem == nil || !strings.Contains(problem.Error(), c.says) {
				t.Fatalf("got %v, problem %v, error %v; want the problem %q", routes, problem, err, c.says)
			}
			if b, err := os.ReadFile(path + ".corrupt"); err != nil || string(b) != c.content {
				t.Errorf("set aside: %q %v", b, err)
			}
			if routes, problem, err = loadRoutes(path, "east"); routes != nil || problem != nil || err != nil {
				t.Errorf("the next time: %v %v %v", routes, problem, err)
			}
		})
	}
	if _, err := decodeRoutes([]byte(good), "east"); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// A disk that fails is told of, and tried again.
func TestKeep(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(folder, "routes.json")
	f := newFeed(&routed{}, nil, func() {}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	tries, done := make(chan error, 100), make(chan struct{})
	go func() {
		defer close(done)
		f.keep(ctx, path, "east", func(err error) { tries <- err })
	}()
	change := func(of map[string]string) {
		t.Helper()
		if err := errors.Join(f.apply(clusters("echo")), f.apply(assignments(t, of))); err != nil {
			t.Fatal(err)
		}
	}
	change(map[string]string{"echo": "a"})
	if err := <-tries; err == nil || !strings.Contains(err.Error(), folder) {
		t.Errorf("without a folder: %v", err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is tried again", func() bool { return <-tries == nil })
	onDisk := func() string {
		routes, problem, err := loadRoutes(path, "east")
		if problem != nil || err != nil {
			t.Fatal(problem, err)
		}
		return text(routes)
	}
	if got := onDisk(); got != "echo=a" {
		t.Errorf("on disk: %s", got)
	}
	// What comes last is kept, though it comes with the end.
	change(map[string]string{"echo": "b"})
	cancel()
	<-done
	if got := onDisk(); got != "echo=b" {
		t.Errorf("on disk at the end: %s", got)
	}
}

func FuzzDecodeRoutes(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster":"east","routes":{"outbound_.80_._.echo.demo.svc.cluster.local":["10.1.0.1:80","[fd00::1]:80"],"outbound_.1_._.a.b.svc.clusterset.local":null}}`))
	f.Add([]byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		routes, err := decodeRoutes(b, "east")
		if err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "routes.json")
		if err := saveRoutes(path, "east", routes); err != nil {
			t.Fatal(err)
		}
		again, problem, err := loadRoutes(path, "east")
		if problem != nil || err != nil || !maps.EqualFunc(routes, again, slices.Equal) {
			t.Errorf("%v became %v: %v %v", routes, again, problem, err)
		}
	})
}
