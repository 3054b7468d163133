// Package mlxmodel says what a model in Hugging Face layout is: whether it can work, and what it can do.
//
// Everything is read from the model's own files (config.json, the headers of its safetensors, its tokenizer and chat
// template), never from its name. The files are untrusted: each is read up to a bound, and nothing that could run code
// (pickle weights, Python modules) is taken from a model at all. The invariant: a model that Inspect accepts is complete
// and needs no code but the engine's own.
package mlxmodel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// Source gives access to the files of a model, wherever they are kept.
type Source interface {
	// Paths returns the slash-separated relative paths of all files.
	Paths() []string
	// Open opens one of them.
	Open(path string) (File, error)
}

// File is an open file of a Source; *os.File is one.
type File interface {
	io.Reader
	io.ReaderAt
	io.Seeker
	io.Closer
	Stat() (fs.FileInfo, error)
}

const (
	// maxEntries bounds what OpenDir looks at, so that a wrong path (a home directory, say) ends in an error soon.
	maxEntries = 10_000
	// maxDepth is how deep below its root a model keeps files.
	maxDepth = 1
)

// Dir is a Source over a directory. Symbolic links are followed only within the directory, or within the repository of
// a Hugging Face cache when the directory is one of its snapshots, whose files are links to blobs beside it.
type Dir struct {
	root  *os.Root
	sub   string
	paths []string
}

// OpenDir lists a directory. The caller closes it.
func OpenDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	base, sub := abs, "."
	repo := filepath.Dir(filepath.Dir(abs))
	if filepath.Base(filepath.Dir(abs)) == "snapshots" && strings.HasPrefix(filepath.Base(repo), "models--") {
		base, sub = repo, filepath.Join("snapshots", filepath.Base(abs))
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return nil, err
	}
	d := &Dir{root: root, sub: sub}
	if err := d.list(); err != nil {
		root.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dir) list() error {
	fsys, err := fs.Sub(d.root.FS(), filepath.ToSlash(d.sub))
	if err != nil {
		return err
	}
	entries := 0
	err = fs.WalkDir(fsys, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entries++; entries > maxEntries {
			return errdefs.New(errdefs.ErrInvalid, "the directory holds more than %d files, too many for a model", maxEntries)
		}
		hidden := path != "." && strings.HasPrefix(e.Name(), ".")
		if e.IsDir() {
			if hidden || strings.Count(path, "/") >= maxDepth {
				return fs.SkipDir
			}
			return nil
		}
		if !hidden {
			d.paths = append(d.paths, path)
		}
		return nil
	})
	slices.Sort(d.paths)
	return err
}

// Paths implements Source.
func (d *Dir) Paths() []string { return d.paths }

// Open implements Source. It refuses what is no regular file, and links that lead out of the directory.
func (d *Dir) Open(path string) (File, error) {
	if !fs.ValidPath(path) {
		return nil, errdefs.New(errdefs.ErrInvalid, "file path %q must be relative", path)
	}
	name := filepath.Join(d.sub, filepath.FromSlash(path))
	// Stat first: opening a named pipe would block.
	info, err := d.root.Stat(name)
	if err != nil {
		return nil, fileError(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, errdefs.New(errdefs.ErrInvalid, "%s is no regular file", path)
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, fileError(path, err)
	}
	return f, nil
}

// Close releases the directory.
func (d *Dir) Close() error { return d.root.Close() }

// fileError names the file by its relative path only: errors may reach clients, which need not know where models live.
func fileError(path string, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return errdefs.New(errdefs.ErrInvalid, "%s cannot be read: %w", path, err)
}

// readFile reads a file that must not be larger than most.
func readFile(src Source, path string, most int64) ([]byte, error) {
	f, err := src.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(b)) > most {
		return nil, errdefs.New(errdefs.ErrInvalid, "%s is larger than %d MiB", path, most>>20)
	}
	return b, nil
}
