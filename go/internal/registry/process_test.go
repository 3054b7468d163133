package registry

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/registry/registrytest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// play lets the test binary be another server that pulls. It is killed, or runs out of disk.
func play(role string) int {
	s, err := store.Open(store.Params{Dir: os.Getenv("REGISTRY_TEST_DIR")})
	if err == nil && role == "full" { // no file may grow larger than a part of the weights, as on a full disk
		signal.Ignore(syscall.SIGXFSZ)
		err = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: testSize / 2, Max: testSize / 2})
	}
	if err != nil {
		fmt.Println(err)
		return 2
	}
	n, err := modelname.Parse(os.Getenv("REGISTRY_TEST_MODEL"))
	if err == nil {
		p := testParams(s, os.Getenv("REGISTRY_TEST_DIR"))
		if role == "full" {
			p.Streams = 32 // all parts at once: which of them come first is not told by the client
		}
		err = New(p).Pull(context.Background(), n, Options{Insecure: true}, func(api.ProgressResponse) {})
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func another(role, dir, model string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REGISTRY_TEST_ROLE="+role, "REGISTRY_TEST_DIR="+dir, "REGISTRY_TEST_MODEL="+model)
	return cmd
}

// noted is how much of unfinished blobs the store has noted.
func (s *side) noted() (done int64) {
	states, _ := filepath.Glob(filepath.Join(s.dir, ".ollmlx/tmp/.ollmlx-part-*.json"))
	for _, path := range states {
		content, _ := os.ReadFile(path)
		for _, field := range strings.Split(string(content), `"done":`)[1:] {
			var n int64
			fmt.Sscanf(field, "%d", &n)
			done += n
		}
	}
	return done
}

// A server that is killed half-way loses nothing that it had noted.
func TestKilledServer(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	const half = 8 * testPart
	reg.SetFault(registrytest.StallAfter(0, func(r *http.Request) bool {
		return registrytest.IsBlob(blob)(r) && reg.BlobBytes(blob) >= half
	}))
	s := newSide(t)
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := another("pull", s.dir, name)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "half of the weights", func() bool { return s.noted() >= half })
	cmd.Process.Kill()
	cmd.Wait()
	came := s.noted()

	s.open()
	if got := s.names(); got != "" {
		t.Errorf("list shows %s", got)
	}
	reg.SetFault(nil)
	reg.ClearLog()
	s.mustPull(name)
	s.check(name, m.Digest)
	if got := asked(t, rangesOf(reg.Log(), blob)); got != testSize-came {
		t.Errorf("asked for %d bytes, want the missing %d", got, testSize-came)
	}
}

// A disk that fills up ends the pull in one sentence without a path; with more room the next one goes on.
func TestFullDisk(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	s := newSide(t)
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	// What does not fit comes after something that does.
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		var from int64
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		for from > testSize/2-testPart && s.noted() < testPart && r.Context().Err() == nil {
			time.Sleep(5 * time.Millisecond)
		}
		next.ServeHTTP(w, r)
	})
	out, err := another("full", s.dir, name).Output()
	if err == nil || string(out) != "storing a blob failed: "+syscall.EFBIG.Error()+"\n" {
		t.Fatalf("got %q, %v", out, err)
	}
	s.open()
	if got := s.names(); got != "" {
		t.Errorf("list shows %s", got)
	}
	reg.ClearLog()
	s.mustPull(name)
	s.check(name, m.Digest)
	if got := asked(t, rangesOf(reg.Log(), blob)); got >= testSize {
		t.Errorf("asked for %d bytes: nothing of what had come was kept", got)
	}
}
