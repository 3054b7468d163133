package runner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

func TestRuntimeDirIsPrivateAndRemoved(t *testing.T) {
	base := shortTemp(t)
	dir, err := NewRuntimeDir(DirParams{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("mode is %o, want 700", got)
	}
	if want := fmt.Sprintf("ollmlx-%d-", os.Getpid()); !strings.HasPrefix(filepath.Base(dir.Path()), want) {
		t.Errorf("name %s does not begin with %s", dir.Path(), want)
	}
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: got %v, want not exist", err)
	}
}

func TestRuntimeDirNamesSockets(t *testing.T) {
	dir := testDir(t)
	seen := map[string]bool{}
	for range 100 {
		id, path, err := dir.newSocket()
		if err != nil {
			t.Fatal(err)
		}
		if seen[path] || filepath.Base(path) != id+".sock" || len(path) > maxSocketPath {
			t.Fatalf("bad or repeated socket %s of %s", path, id)
		}
		seen[path] = true
	}
}

func TestRuntimeDirFallsBackWhenPathIsLong(t *testing.T) {
	base := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(base, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := NewRuntimeDir(DirParams{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if got := filepath.Dir(dir.Path()); got != fallbackBase {
		t.Errorf("directory is in %s, want %s", got, fallbackBase)
	}
	if _, _, err := dir.newSocket(); err != nil {
		t.Error(err)
	}
}

func TestRuntimeDirInMissingBase(t *testing.T) {
	_, err := NewRuntimeDir(DirParams{Base: "/tmp/no such/dir"})
	if !errors.Is(err, errdefs.ErrPrecondition) || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("got %v, want a precondition error that names TMPDIR", err)
	}
}

func TestRemoveStale(t *testing.T) {
	dead := deadPID(t)
	own := os.Getpid()
	tests := []struct {
		name  string
		entry string
		make  func(t *testing.T, path string)
		stays bool
	}{
		{name: "killed before it took the lock", entry: fmt.Sprintf("ollmlx-%d-1", dead), make: mkdir},
		{name: "killed, sockets left", entry: fmt.Sprintf("ollmlx-%d-2", dead), make: func(t *testing.T, path string) {
			mkdir(t, path)
			writeFile(t, filepath.Join(path, lockName))
			writeFile(t, filepath.Join(path, "r1.sock"))
		}},
		{name: "pid was given to another process", entry: fmt.Sprintf("ollmlx-%d-3", own), make: func(t *testing.T, path string) {
			mkdir(t, path)
			writeFile(t, filepath.Join(path, lockName))
		}},
		{name: "lock is held in another pid namespace", entry: fmt.Sprintf("ollmlx-%d-4", dead), stays: true,
			make: func(t *testing.T, path string) {
				mkdir(t, path)
				lock, err := takeLock(filepath.Join(path, lockName))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { lock.Close() })
			}},
		{name: "lives, has not taken the lock yet", entry: fmt.Sprintf("ollmlx-%d-5", own), make: mkdir, stays: true},
		{name: "a file", entry: fmt.Sprintf("ollmlx-%d-6", dead), make: writeFile, stays: true},
		{name: "a link to a directory", entry: fmt.Sprintf("ollmlx-%d-7", dead), stays: true, make: func(t *testing.T, path string) {
			if err := os.Symlink(t.TempDir(), path); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "no pid", entry: "ollmlx-cache-8", make: mkdir, stays: true},
		{name: "no random part", entry: fmt.Sprintf("ollmlx-%d", dead), make: mkdir, stays: true},
		{name: "of another program", entry: fmt.Sprintf("other-%d-9", dead), make: mkdir, stays: true},
		{name: "of another user", entry: fmt.Sprintf("ollmlx-%d-10", dead), stays: true, make: func(t *testing.T, path string) {
			mkdir(t, path)
			if err := os.Chown(path, 54321, -1); err != nil {
				t.Skip("only root can make another user's directory")
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base := shortTemp(t)
			path := filepath.Join(base, tt.entry)
			tt.make(t, path)
			dir, err := NewRuntimeDir(DirParams{Base: base})
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			_, err = os.Lstat(path)
			if stays := err == nil; stays != tt.stays {
				t.Errorf("got there=%t, want %t", stays, tt.stays)
			}
		})
	}
}

func TestRuntimeDirsOfOneProcessLiveSideBySide(t *testing.T) {
	base := shortTemp(t)
	first, err := NewRuntimeDir(DirParams{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := NewRuntimeDir(DirParams{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := os.Stat(first.Path()); err != nil {
		t.Errorf("the second directory removed the first: %v", err)
	}
}

func TestPrivateDir(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dir")
	if err := privateDir(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := privateDir(path); !errors.Is(err, errdefs.ErrPrecondition) {
		t.Errorf("a directory that all can write to: got %v, want a precondition error", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file)
	if err := privateDir(file); !errors.Is(err, errdefs.ErrPrecondition) {
		t.Errorf("a file: got %v, want a precondition error", err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// deadPID returns a pid that no process has.
func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}
