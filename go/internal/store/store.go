// Package store keeps models as manifests and blobs in Ollama's own layout, so that one directory serves both programs:
//
//	manifests/<host>/<namespace>/<model>/<tag>   a JSON list of layers
//	blobs/sha256-<hex>                           the layers' content
//
// A model appears when its manifest is renamed into place and disappears when the manifest is removed; blobs come
// before and go after. The invariants: a blob's name is the digest of its content, verified while it was written; a
// manifest is never half written; a blob is removed only if it is certain that no manifest refers to it and that it is
// ours to remove (see gc.go). Whatever is read from the directory is untrusted: sizes are bounded, and digests and
// names are checked before a path is built of them. docs/store.md tells the same to users.
package store

import (
	"cmp"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const (
	manifestsDir = "manifests"
	blobsDir     = "blobs"
	// stateDir holds what is ollmlx's own; Ollama does not look at it.
	stateDir = ".ollmlx"
	lockFile = "lock"
	// tempDir, below stateDir, is where files are written before they are put in place. It is not beside them, because a
	// starting Ollama removes what it does not know among the blobs.
	tempDir = "tmp"
	// tempPrefix marks our unfinished files; a leading dot keeps them from being taken for manifests.
	tempPrefix = ".ollmlx-tmp-"

	defaultGrace = time.Hour
)

// Params are what a store is opened with.
type Params struct {
	// Dir is the directory of the store; it is made if it does not exist.
	Dir string
	// BundledDir holds models that come with ollmlx, each in a directory of its name. Empty: none.
	BundledDir string
	// NoPrune keeps blobs that nothing refers to any more, except those of a model that is deleted.
	NoPrune bool
	// Grace is how long a blob that was uploaded or asked for is kept for the create that is expected to use it; 0 is
	// one hour.
	Grace time.Duration
	// Logger gets what is wrong with the store's content. Nil: the default logger.
	Logger *slog.Logger
}

// Store is an open store. Open it once; all methods may be called at the same time; Close it at the end. Only one
// process can have a directory open.
type Store struct {
	dir     string
	bundled string
	noPrune bool
	grace   time.Duration
	log     *slog.Logger
	lock    *os.File

	// mu is held for reading while a model is looked at, so that its blobs stay, and for writing while a manifest or
	// the set of blobs changes.
	mu sync.RWMutex
	// holds counts the running operations that need a blob.
	holds map[string]int
	// claims tells when clients heard that a blob is here, until they have made the model that they wanted it for.
	claims map[string][]time.Time
	// partials are the blobs that are being transferred.
	partials map[string]bool

	// installing lets one bundled model be installed at a time.
	installing sync.Mutex
	// linking lets one directory of links be made at a time.
	linking sync.Mutex

	cache modelCache
}

// Open opens a store, removes what an earlier process of ours left unfinished, and installs the bundled models if the
// store holds no models at all. It fails with ErrBusy if another process has the store open.
func Open(p Params) (*Store, error) {
	s := &Store{
		dir: p.Dir, bundled: p.BundledDir, noPrune: p.NoPrune, grace: cmp.Or(p.Grace, defaultGrace), log: p.Logger,
		holds: map[string]int{}, claims: map[string][]time.Time{}, partials: map[string]bool{}, cache: modelCache{entries: map[string]cachedModel{}},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.dir == "" {
		return nil, errdefs.New(errdefs.ErrInvalid, "the model store needs a directory")
	}
	for _, d := range []string{manifestsDir, blobsDir, filepath.Join(stateDir, unusedDir), filepath.Join(stateDir, tempDir), filepath.Join(stateDir, incomingDir)} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			return nil, errdefs.New(errdefs.ErrPrecondition, "the model store cannot be made: %w; set OLLAMA_MODELS to a directory that can be written", err)
		}
	}
	var err error
	if s.lock, err = lockStore(filepath.Join(s.dir, stateDir, lockFile), s.dir); err != nil {
		return nil, err
	}
	s.removeLeftovers()
	s.removePartials()
	if !s.noPrune {
		s.mu.Lock()
		s.sweep(nil)
		s.mu.Unlock()
	}
	s.installAtOpen()
	return s, nil
}

// Close releases the store for other processes.
func (s *Store) Close() error {
	// Closing the file ends the lock.
	return s.lock.Close()
}

// removeLeftovers removes temporary files. They are ours alone by their name, and no other process of ours lives,
// because we have the lock.
func (s *Store) removeLeftovers() {
	for _, d := range []string{manifestsDir, blobsDir, filepath.Join(stateDir, tempDir)} {
		matches, _ := filepath.Glob(filepath.Join(s.dir, d, tempPrefix+"*")) // fails only for a bad pattern
		for _, m := range matches {
			if err := os.RemoveAll(m); err != nil {
				s.log.Warn("a leftover of an interrupted write stays", "file", filepath.Base(m), "error", bareError(err))
			}
		}
	}
}

// writeFile puts a file of the store in place at once and durably: temporary file, fsync, rename, fsync of the
// directory. top is the directory of the store that the path is in; fill writes the content.
func (s *Store) writeFile(top, path string, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(s.tempFor(top), tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// tempFor returns where temporary files for a directory of the store are made: tempDir, or the directory itself where
// that is on another file system (users move blobs to a larger disk and leave a link), because a rename must not copy.
func (s *Store) tempFor(top string) string {
	temp, own := filepath.Join(s.dir, stateDir, tempDir), filepath.Join(s.dir, top)
	if device(temp) == device(own) {
		return temp
	}
	return own
}

// device returns the file system that a path is on, 0 if that is not known.
func device(path string) uint64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return uint64(st.Dev)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// bareError takes the paths out of an error of the file system: errors may reach clients, which need not know where the
// store is.
func bareError(err error) error {
	var pathErr *os.PathError
	var linkErr *os.LinkError
	var callErr *os.SyscallError
	switch {
	case errors.As(err, &pathErr):
		return bareError(pathErr.Err)
	case errors.As(err, &linkErr):
		return bareError(linkErr.Err)
	case errors.As(err, &callErr):
		return bareError(callErr.Err)
	default:
		return err
	}
}

// failure turns an error of the file system into one for clients and logs it in full. Errors that have a kind, and the
// end of a context, pass as they are.
func (s *Store) failure(err error, doing string) error {
	if err == nil || errdefs.Kind(err) != errdefs.ErrInternal || errors.Is(err, errdefs.ErrInternal) {
		return err
	}
	s.log.Error("model store: "+doing+" failed", "error", err)
	bare := bareError(err)
	if strings.Contains(bare.Error(), s.dir) {
		return errdefs.New(errdefs.ErrInternal, "%s failed, see the server's log", doing)
	}
	return errdefs.New(errdefs.ErrInternal, "%s failed: %w", doing, bare)
}
