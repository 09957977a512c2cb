package store

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// childEnv names the file that the test binary writes to, when it was started
// to be killed.
const childEnv = "FLATMESH_STORE_TEST_CHILD"

// said is what a child has committed when it prints it.
type said struct {
	Generation int
	Orders     map[string]uint64
	Forgotten  []string
}

const nodesPerGeneration = 5

// runChild writes generation after generation until it is killed.
func runChild(path string) error {
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(said{}); err != nil {
		return err
	}
	s, err := Open(path)
	if err != nil {
		return err
	}
	snapshot, err := s.Load()
	if err != nil {
		return err
	}
	generation, _ := strconv.Atoi(snapshot.Mesh.Name)
	for {
		generation++
		text := strconv.Itoa(generation)
		if err := s.Update(func(tx *Tx) error {
			tx.PutMesh(Mesh{Name: text})
			for i := range nodesPerGeneration {
				tx.PutRegistration(registration(node("east", fmt.Sprint("n", i)), text))
			}
			// Grow and shrink, so that pages are split, freed and used again.
			tx.PutNode(kubeNode(node("east", text)))
			for i := range 60 {
				if generation%100 == 0 {
					tx.DeleteNode(node("east", strconv.Itoa(generation-i)))
				}
			}
			return nil
		}); err != nil {
			return err
		}
		now := said{Generation: generation}
		keys := []string{"a" + text, "b" + text}
		all, err := s.Order(keys)
		if err != nil {
			return err
		}
		now.Orders = map[string]uint64{keys[0]: all[keys[0]], keys[1]: all[keys[1]]}
		if generation%3 == 0 {
			now.Forgotten = keys[1:]
			if err := s.ForgetOrder(now.Forgotten); err != nil {
				return err
			}
		}
		if err := out.Encode(now); err != nil {
			return err
		}
	}
}

// Whatever was committed before kill -9 is there afterwards, whole, and no
// number is given twice.
func TestKill(t *testing.T) {
	path := testPath(t)
	held := map[string]uint64{}    // what must be there
	givenTo := map[uint64]string{} // every number ever seen
	last := 0
	for round := range 20 {
		for _, line := range killedChild(t, path, rand.IntN(40)) {
			last = max(last, line.Generation)
			for key, n := range line.Orders {
				if other, again := givenTo[n]; again && other != key {
					t.Fatalf("round %d: %d was given to %s and to %s", round, n, other, key)
				}
				givenTo[n], held[key] = key, n
			}
			for _, key := range line.Forgotten {
				delete(held, key)
			}
		}
		s := openTest(t, path)
		snapshot := load(t, s)
		generation, _ := strconv.Atoi(snapshot.Mesh.Name)
		if generation < last {
			t.Fatalf("round %d: generation %d was committed, %d is there", round, last, generation)
		}
		last = generation
		if generation > 0 && len(snapshot.Registrations) != nodesPerGeneration {
			t.Fatalf("round %d: %d registrations", round, len(snapshot.Registrations))
		}
		for _, r := range snapshot.Registrations {
			if r.Version != snapshot.Mesh.Name {
				t.Fatalf("round %d: half a commit: %s beside %s", round, r.Version, snapshot.Mesh.Name)
			}
		}
		for key, n := range held {
			// The last commit of a child may have forgotten more than it could say.
			if got := snapshot.Orders[key]; got != n && (got != 0 || key != "b"+snapshot.Mesh.Name) {
				t.Fatalf("round %d: %s had number %d, now %d", round, key, n, got)
			}
		}
		for key, n := range snapshot.Orders {
			if other, again := givenTo[n]; again && other != key {
				t.Fatalf("round %d: %d was given to %s and to %s", round, n, other, key)
			}
			givenTo[n], held[key] = key, n
		}
		closeTest(t, s)
	}
	if last == 0 {
		t.Fatal("no child has committed anything")
	}
}

// killedChild runs a child, kills it after some lines and returns all that it
// said.
func killedChild(t *testing.T, path string, after int) []said {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []said
	in := json.NewDecoder(bufio.NewReader(out))
	for {
		var line said
		if err := in.Decode(&line); err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if lines = append(lines, line); len(lines) == after+1 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(lines) <= after {
		t.Fatalf("the child ended by itself after %d lines: %v", len(lines), err)
	}
	return lines
}
