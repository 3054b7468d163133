package store

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

func TestSecondServerIsRefused(t *testing.T) {
	s := open(t, Params{})
	_, err := Open(Params{Dir: s.dir})
	if !errors.Is(err, errdefs.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Fatalf("got %v, want it to name this process", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Params{Dir: s.dir})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// The lock goes with its process, also when that is killed.
func TestLockOfAKilledServer(t *testing.T) {
	dir := t.TempDir()
	cmd := helper(t, "hold", dir, "open")
	_, err := Open(Params{Dir: dir})
	if !errors.Is(err, errdefs.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", cmd.Process.Pid)) {
		t.Errorf("got %v, want it to name process %d", err, cmd.Process.Pid)
	}
	cmd.Process.Kill()
	cmd.Wait()
	s, err := Open(Params{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestOpenWhereNothingCanBeWritten(t *testing.T) {
	file := foreign{t, t.TempDir()}.write("file", nil)
	if _, err := Open(Params{Dir: file}); !errors.Is(err, errdefs.ErrPrecondition) || !strings.Contains(err.Error(), "OLLAMA_MODELS") {
		t.Errorf("got %v", err)
	}
	if _, err := Open(Params{}); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}
