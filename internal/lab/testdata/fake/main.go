// Command fake stands for agent, controlplane and gateway where a test is about the lab
// that starts, finds and ends them.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	switch filepath.Base(exe) + " " + os.Args[1] {
	case "agent run":
		if os.Getenv("FAKE_AGENT_FAILS") != "" {
			fmt.Fprintln(os.Stderr, "fake: no luck today")
			os.Exit(2)
		}
		// The device outlives its agent, and one that still runs is kept.
		if err := os.Mkdir("/run/flatmesh/device", 0o700); err == nil {
			device := exec.Command("/proc/self/exe", "device")
			device.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := device.Start(); err != nil {
				panic(err)
			}
			go func() {
				_ = device.Wait()
				device = exec.Command("/proc/self/exe", "device")
				_ = device.Run()
			}()
		}
		rest()
	case "agent device", "controlplane run", "gateway run":
		rest()
	case "controlplane token":
		fmt.Println("token-of-" + os.Args[len(os.Args)-1])
	case "controlplane confirm":
	case "controlplane status":
		nodes := 0
		files, _ := filepath.Glob("/var/lib/flatmesh/clusters/*/nodes.yaml")
		for _, f := range files {
			b, _ := os.ReadFile(f)
			nodes += strings.Count(string(b), "kind: Node")
		}
		registered := nodes
		if os.Getenv("FAKE_NEVER_UP") != "" {
			registered--
		}
		fmt.Printf(`{"nodes":{"total":%d,"registered":%d},"tunnels":{}}`, nodes, registered)
		if registered < nodes {
			os.Exit(1)
		}
	default:
		os.Exit(2)
	}
}

func rest() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
}
