package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
)

// tokensPerStream is how long each answer is, interval how long a stream waits for its next token.
const (
	tokensPerStream = 60
	spread          = 100
	interval        = time.Millisecond
)

// BenchmarkStreams has a real server (python_runner/ollmlx/_bin/ollmlx, built by make) stream from a synthetic runner, a
// process that sends each of its requests a token every 100 ms, evenly spread. The client is this process. It reports what
// the host adds to each event, from its making in the runner to its arrival at the client, and the host's memory.
//
//	go test -run '^$' -bench Streams -benchtime 1x ./internal/server
func BenchmarkStreams(b *testing.B) {
	binary, err := filepath.Abs("../../../python_runner/ollmlx/_bin/ollmlx")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		b.Skip("there is no binary: make build")
	}
	for _, streams := range []int{1, 100, 500, 1000} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			host := startHost(b, binary)
			host.generate(b, 1)
			idle := memory.OfProcess(host.cmd.Process.Pid)
			for b.Loop() {
				late, most := host.run(b, streams)
				slices.Sort(late)
				quantile := func(q float64) float64 { return late[int(q*float64(len(late)-1))].Seconds() * 1000 }
				b.ReportMetric(quantile(.5), "p50-ms")
				b.ReportMetric(quantile(.99), "p99-ms")
				b.ReportMetric(float64(len(late)), "events")
				b.ReportMetric(float64(most-min(idle, most))/float64(streams)/1024, "KiB/stream")
				b.ReportMetric(float64(most)/(1<<20), "MiB")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func TestMain(m *testing.M) {
	runnertest.Main()
	os.Exit(m.Run())
}

type host struct {
	cmd *exec.Cmd
	url string
}

func startHost(b *testing.B, binary string) *host {
	b.Helper()
	root, err := os.MkdirTemp("", "b")
	if err != nil {
		b.Fatal(err)
	}
	command := runnertest.Command(b, runnertest.Options{Repeat: tokensPerStream, Spread: spread, Interval: interval, Clock: true})
	for i := range command {
		command[i] = "'" + strings.ReplaceAll(command[i], "'", `'\''`) + "'"
	}
	python := filepath.Join(root, "python")
	if err := os.WriteFile(python, []byte("#!/bin/sh\nshift 2\nexec "+strings.Join(command, " ")+" \"$@\"\n"), 0o700); err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address := ln.Addr().String()
	_ = ln.Close()
	h := &host{cmd: exec.Command(binary, "serve"), url: "http://" + address}
	h.cmd.Env = append(os.Environ(), "OLLAMA_HOST="+address, "OLLAMA_MODELS="+filepath.Join(root, "models"), "TMPDIR="+root,
		"OLLMLX_PYTHON="+python, "OLLMLX_WARM_RUNNER=0", "OLLMLX_CACHE="+filepath.Join(root, "cache"))
	if err := h.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = h.cmd.Process.Signal(syscall.SIGTERM)
		_ = h.cmd.Wait()
		_ = os.RemoveAll(root)
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if resp, err := http.Get(h.url); err == nil {
			_ = resp.Body.Close()
			return h
		}
		if time.Now().After(deadline) {
			b.Fatal("the server did not come up")
		}
	}
}

// run has so many streams at once and returns how late each event was, and the most memory that the host had.
func (h *host) run(b *testing.B, streams int) (late []time.Duration, most uint64) {
	ctx, cancel := context.WithCancel(b.Context())
	var watch, clients sync.WaitGroup
	watch.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			most = max(most, memory.OfProcess(h.cmd.Process.Pid))
		}
	})
	results := make([][]time.Duration, streams)
	for i := range results {
		clients.Go(func() { results[i] = h.generate(b, i) })
		// They do not come all in one moment.
		time.Sleep(time.Millisecond)
	}
	clients.Wait()
	cancel()
	watch.Wait()
	for i, r := range results {
		if len(r) == 0 {
			b.Fatalf("stream %d gave nothing", i)
		}
		late = append(late, r...)
	}
	return late, most
}

var transport = &http.Transport{MaxIdleConnsPerHost: 2000}

// generate reads one stream to its end; every token must arrive.
func (h *host) generate(b *testing.B, i int) []time.Duration {
	body := fmt.Sprintf(`{"model": "demo", "raw": true, "prompt": "stream-%d"}`, i)
	resp, err := (&http.Client{Transport: transport}).Post(h.url+"/api/generate", "application/json", strings.NewReader(body))
	if err != nil {
		b.Error(err)
		return nil
	}
	defer resp.Body.Close()
	var late []time.Duration
	tokens, done := 0, false
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		now := time.Now()
		var line struct {
			Response string
			Done     bool
			Error    string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil || line.Error != "" {
			b.Errorf("stream %d: %v %s", i, err, line.Error)
			return nil
		}
		done = line.Done
		for stamp := range strings.FieldsSeq(line.Response) {
			tokens++
			made, err := strconv.ParseInt(stamp, 10, 64)
			if err != nil {
				b.Error(err)
				return nil
			}
			late = append(late, now.Sub(time.Unix(0, made)))
		}
	}
	if !done || tokens != tokensPerStream {
		b.Errorf("stream %d: %d of %d tokens, done: %v", i, tokens, tokensPerStream, done)
	}
	return late
}
