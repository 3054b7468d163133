package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// lockStore takes the lock of a store and writes our process id into its file. The kernel releases the lock when the
// process ends, however it ends. Ollama knows nothing of it: the two programs may share a store.
func lockStore(path, dir string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrPrecondition, "the model store cannot be locked: %w; set OLLAMA_MODELS to a directory that can be written", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		defer f.Close()
		return nil, errdefs.New(errdefs.ErrBusy, "another ollmlx server%s has the model store %s open; stop it, or set OLLAMA_MODELS to another directory", holder(f), dir)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, errdefs.New(errdefs.ErrPrecondition, "the model store cannot be locked: %w", err)
	}
	return f, nil
}

// holder names the process that has the lock, if its id can be read.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	pid := strings.TrimSpace(string(b))
	if err != nil || pid == "" {
		return ""
	}
	return fmt.Sprintf(" (process %s)", pid)
}
