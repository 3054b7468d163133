package runner

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const (
	// maxSocketPath is what every system allows with room to spare: macOS takes 104 bytes, its end included, Linux 108.
	maxSocketPath = 100
	// longestSocketName is the longest name that a server will ever use in its runtime directory.
	longestSocketName = "r9999999.sock"

	dirPrefix    = "ollmlx-"
	lockName     = "lock"
	fallbackBase = "/tmp"
)

// RuntimeDir is the private directory in which the runners of one server have their sockets and their working
// directory. It is made once per server and removed by Close; one that a killed server left is removed by the next
// NewRuntimeDir of the same user.
type RuntimeDir struct {
	path string
	lock *os.File
	next atomic.Uint64
}

// DirParams tells NewRuntimeDir where to work; the zero value is right for a server.
type DirParams struct {
	// Base is the directory to make it in. Empty: $TMPDIR.
	Base string
	// Logger is told of stale directories. Nil: slog.Default().
	Logger *slog.Logger
}

// NewRuntimeDir makes a runtime directory that only this user can enter, and removes those of servers that are gone.
func NewRuntimeDir(p DirParams) (*RuntimeDir, error) {
	base := p.Base
	if base == "" {
		base = os.TempDir()
	}
	logger := p.Logger
	if logger == nil {
		logger = slog.Default()
	}
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrInternal, "cannot make a runtime directory: %w", err)
	}

	prefix := fmt.Sprintf("%s%d-", dirPrefix, os.Getpid())
	// MkdirTemp appends at most ten digits.
	longest := filepath.Join(base, prefix+strings.Repeat("9", 10), longestSocketName)
	if len(longest) > maxSocketPath {
		base = fallbackBase
	}
	removeStale(base, logger)

	path, err := os.MkdirTemp(base, prefix+"*") // mode 0700
	if err != nil {
		return nil, errdefs.New(errdefs.ErrPrecondition,
			"cannot make a runtime directory for the runners' sockets: %w; set TMPDIR to a directory you can write to", err)
	}
	lock, err := takeLock(filepath.Join(path, lockName))
	if err != nil {
		os.RemoveAll(path)
		return nil, errdefs.New(errdefs.ErrInternal, "cannot lock the runtime directory %s: %w", path, err)
	}
	return &RuntimeDir{path: path, lock: lock}, nil
}

// Path returns the absolute path of the directory.
func (d *RuntimeDir) Path() string { return d.path }

// Ensure makes the directory again should a cleaner of temporary directories have removed it. Running runners do not need
// it: their connections stay.
func (d *RuntimeDir) Ensure() error {
	if err := privateDir(d.path); err != nil {
		return errdefs.New(errdefs.ErrPrecondition, "the runtime directory is gone and cannot be made again: %w", err)
	}
	return nil
}

// Close removes the directory with all that is in it. The runners must have been stopped.
func (d *RuntimeDir) Close() error {
	err := os.RemoveAll(d.path)
	return errors.Join(err, d.lock.Close())
}

// newSocket returns a name for a runner that no other runner of this server has, and the path of its socket.
func (d *RuntimeDir) newSocket() (id, path string, err error) {
	id = "r" + strconv.FormatUint(d.next.Add(1), 10)
	path = filepath.Join(d.path, id+".sock")
	if len(path) > maxSocketPath {
		return "", "", errdefs.New(errdefs.ErrPrecondition,
			"the socket path %s is longer than %d bytes; set TMPDIR to a shorter directory", path, maxSocketPath)
	}
	return id, path, d.Ensure()
}

// removeStale removes the runtime directories in base that this user's dead servers left.
func removeStale(base string, logger *slog.Logger) {
	entries, err := filepath.Glob(filepath.Join(escapeGlob(base), dirPrefix+"[0-9]*-[0-9]*"))
	if err != nil {
		return
	}
	for _, path := range entries {
		if !isStale(path) {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			logger.Warn("cannot remove a stale runtime directory", "path", path, "error", err)
			continue
		}
		logger.Debug("removed a stale runtime directory", "path", path)
	}
}

// isStale tells whether path is a runtime directory of this user whose server is gone. The lock decides, because a pid
// may have been given to another process, or belong to a server in another container that shares the directory. The pid
// decides only where there is no lock: the server was killed before it took one.
func isStale(path string) bool {
	pid, ok := dirPID(filepath.Base(path))
	if !ok || !ownDir(path) {
		return false
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return syscall.Kill(pid, 0) == syscall.ESRCH
	}
	if err != nil {
		return false
	}
	defer lock.Close()
	return syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// dirPID reads the pid from a runtime directory's name, ollmlx-<pid>-<random>.
func dirPID(name string) (int, bool) {
	rest, ok := strings.CutPrefix(name, dirPrefix)
	if !ok {
		return 0, false
	}
	digits, _, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, false
	}
	pid, err := strconv.Atoi(digits)
	return pid, err == nil && pid > 0
}

// ownDir tells whether path is a directory, not a link to one, that belongs to this user.
func ownDir(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

func takeLock(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// privateDir makes sure that path is a directory of this user that nobody else can write to: MLX loads code that it
// compiled there.
func privateDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return errdefs.New(errdefs.ErrPrecondition, "cannot make the runner's temporary directory: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return errdefs.New(errdefs.ErrPrecondition, "cannot use the runner's temporary directory: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return errdefs.New(errdefs.ErrPrecondition,
			"the runner's temporary directory %s must belong to you and be writable by nobody else: chmod 700 it or name another", path)
	}
	return nil
}
