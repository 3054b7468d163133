package converter

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runner"
	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

func TestMain(m *testing.M) {
	runnertest.Main()
	os.Exit(m.Run())
}

func newConverter(t *testing.T, o runnertest.Options) *Converter {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "cv")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := runner.NewRuntimeDir(runner.DirParams{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(base)
	})
	return New(runner.Params{Command: runnertest.Command(t, o), Dir: dir}, nil)
}

// A process that is no converter, or that dies, is an error that says so; real conversions are tested with real models.
func TestFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		options runnertest.Options
		kind    error
		text    string
	}{
		"no converter": {runnertest.Options{}, errdefs.ErrUnsupported, "Converter"},
		"no start":     {runnertest.Options{Crash: runnertest.CrashAtStart, ExitCode: 75}, errdefs.ErrUnavailable, "its engine cannot be imported"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConverter(t, tt.options)
			_, err := c.ImportAdapter(t.Context(), &runnerpb.ImportAdapterRequest{})
			if errdefs.Kind(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
			err = c.Quantize(t.Context(), &runnerpb.QuantizeRequest{}, func(*runnerpb.QuantizeProgress) error { return nil })
			if errdefs.Kind(err) != tt.kind {
				t.Errorf("got %v", err)
			}
		})
	}
}

// One conversion at a time; who gives up while it waits is not held up.
func TestConversionsTakeTurns(t *testing.T) {
	c := newConverter(t, runnertest.Options{})
	c.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.ImportAdapter(ctx, &runnerpb.ImportAdapterRequest{}); errdefs.Kind(err) != errdefs.ErrCanceled {
			t.Errorf("got %v", err)
		}
	})
	time.AfterFunc(10*time.Millisecond, cancel)
	wg.Wait()
	<-c.turn
	if _, err := c.ImportAdapter(t.Context(), &runnerpb.ImportAdapterRequest{}); errdefs.Kind(err) != errdefs.ErrUnsupported {
		t.Errorf("got %v", err)
	}
}

// A conversion asks for memory by the size of the files, within bounds, and gives it back however it ends.
func TestConversionsWaitForMemory(t *testing.T) {
	c := newConverter(t, runnertest.Options{})
	var asked uint64
	held := 0
	c.reserve = func(_ context.Context, what string, bytes uint64) (func(), error) {
		asked, held = bytes, held+1
		return func() { held-- }, nil
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), make([]byte, 3000), 0o644); err != nil {
		t.Fatal(err)
	}
	quantize := func() error {
		return c.Quantize(t.Context(), &runnerpb.QuantizeRequest{ModelPath: dir}, func(*runnerpb.QuantizeProgress) error { return nil })
	}
	if err := quantize(); errdefs.Kind(err) != errdefs.ErrUnsupported {
		t.Errorf("got %v", err)
	}
	if asked != processBytes+6000 || held != 0 {
		t.Errorf("asked for %d, holds %d", asked, held)
	}
	big := filepath.Join(dir, "big.safetensors")
	if err := os.WriteFile(big, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 40<<30); err != nil {
		t.Fatal(err)
	}
	quantize()
	if asked != processBytes+heldBytes {
		t.Errorf("asked for %d", asked)
	}
	c.reserve = func(context.Context, string, uint64) (func(), error) {
		return nil, errdefs.New(errdefs.ErrPrecondition, "too little")
	}
	if err := quantize(); errdefs.Kind(err) != errdefs.ErrPrecondition {
		t.Errorf("got %v", err)
	}
}
