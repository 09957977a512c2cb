package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

// tick is the unit of CPU times in /proc: USER_HZ is 100 on all of Linux's
// architectures that Go knows.
const tick = 10 * time.Millisecond

// cpuOf returns the CPU time that processes have used so far, all threads,
// user and system.
func cpuOf(pids []int) (time.Duration, error) {
	var total time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The second field, the name, may hold anything; utime and stime are the 14th
		// and 15th, see proc_pid_stat(5).
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(f) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f)+2)
		}
		for _, s := range f[11:13] {
			n, err := strconv.ParseInt(string(s), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
			}
			total += time.Duration(n) * tick
		}
	}
	return total, nil
}

// rssOf returns the resident memory of each process, in MiB.
func rssOf(pids []int) (series, error) {
	var out series
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			return nil, err
		}
		f := bytes.Fields(b)
		if len(f) < 2 {
			return nil, fmt.Errorf("/proc/%d/statm: %q", pid, b)
		}
		pages, err := strconv.ParseInt(string(f[1]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("/proc/%d/statm: %w", pid, err)
		}
		out = append(out, float64(pages)*float64(os.Getpagesize())/(1<<20))
	}
	return out, nil
}

// usage returns the CPU time of groups of processes.
func usage(groups map[string][]int) (map[string]time.Duration, error) {
	out := map[string]time.Duration{}
	for name, pids := range groups {
		var err error
		if out[name], err = cpuOf(pids); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// window watches groups of processes for a time, and tells of each how much CPU
// it took, in percent of one.
func window(ctx context.Context, groups map[string][]int, d time.Duration, got func(name string, percent float64)) error {
	before, err := usage(groups)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, d); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := usage(groups)
	if err != nil {
		return err
	}
	for name := range groups {
		got(name, 100*(after[name]-before[name]).Seconds()/took.Seconds())
	}
	return nil
}
