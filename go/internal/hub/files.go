package hub

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // git's name of a content, which the hub gives for small files
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

const (
	// maxSmall bounds a file that the hub keeps in git, which takes larger ones only in Git LFS.
	maxSmall = 64 << 20
	// smallAtOnce is how many small files are worked on at once.
	smallAtOnce = 4
)

// paths lists the repository's files.
func (p *pull) paths() []string {
	var paths []string
	for path := range p.files {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

func intersect(wanted, there []string) []string {
	return slices.DeleteFunc(slices.Clone(wanted), func(w string) bool { return !slices.Contains(there, w) })
}

func (p *pull) address(f *runnerpb.HubFile) (*url.URL, error) {
	address, err := url.Parse(f.Url)
	if err != nil || address.Host == "" {
		return nil, errdefs.New(errdefs.ErrInvalid, "the file %.100q has no usable address", f.Path)
	}
	return address, nil
}

// fetchSmall brings the files of paths whose SHA-256 is not known, and those that are read before the transfer, and
// notes the digests of all.
func (p *pull) fetchSmall(ctx context.Context, paths []string) error {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(smallAtOnce)
	for _, path := range paths {
		f := p.files[path]
		if p.digests[path] != "" {
			continue
		}
		if f.Sha256 != "" && !slices.Contains(mlxmodel.Needed, path) {
			p.digests[path] = "sha256:" + f.Sha256
			continue
		}
		g.Go(func() error {
			digest, err := p.small(ctx, f)
			if err != nil {
				return err
			}
			release := p.client.params.Store.Hold(digest)
			mu.Lock()
			defer mu.Unlock()
			p.digests[path] = digest
			p.release = append(p.release, release)
			return nil
		})
	}
	return g.Wait()
}

// small puts a small file into the store: one that is here already, or in the library's cache, is not asked for.
func (p *pull) small(ctx context.Context, f *runnerpb.HubFile) (string, error) {
	if f.Size > maxSmall {
		return "", errdefs.New(errdefs.ErrTooLarge, "the file %.100q has %d bytes, too many for what it is", f.Path, f.Size)
	}
	s := p.client.params.Store
	if digest := s.FindFile(p.name, f.Path, int64(f.Size), func(b []byte) bool { return matches(f, b) }); digest != "" {
		return digest, nil
	}
	if f.CachePath != "" {
		content, err := os.ReadFile(f.CachePath)
		if err == nil && matches(f, content) {
			return s.Add(content)
		}
	}
	if p.site == nil {
		return "", errdefs.New(errdefs.ErrUnavailable, "%s, and %s in its cache on this machine is damaged", p.repo.FromCacheReason, f.Path)
	}
	address, err := p.address(f)
	if err != nil {
		return "", err
	}
	// What is cut or changed on the way is most likely right the next time.
	for range 2 {
		content, err := p.site.Read(ctx, address, int64(f.Size))
		if err != nil {
			return "", err
		}
		if matches(f, content) {
			return s.Add(content)
		}
	}
	return "", errdefs.New(errdefs.ErrInvalid, "%s of %s is not what the hub's own digest says; try again later", f.Path, p.repo.Repository)
}

// matches reports whether content is that of a file, by the best digest that the hub gives.
func matches(f *runnerpb.HubFile, content []byte) bool {
	if uint64(len(content)) != f.Size {
		return false
	}
	if f.Sha256 != "" {
		sum := sha256.Sum256(content)
		return hex.EncodeToString(sum[:]) == f.Sha256
	}
	if f.GitSha1 == "" {
		return true // a cache without links, whose files have no digests in their names
	}
	h := sha1.New() //nolint:gosec // see above
	fmt.Fprintf(h, "blob %d\x00", len(content))
	h.Write(content)
	return hex.EncodeToString(h.Sum(nil)) == f.GitSha1
}

// source lets mlxmodel read the small files that are here, beside the names of all.
type source struct {
	pull  *pull
	paths []string
}

func (s *source) Paths() []string { return s.paths }

func (s *source) Open(path string) (mlxmodel.File, error) {
	digest := s.pull.digests[path]
	if digest == "" {
		return nil, errdefs.New(errdefs.ErrInternal, "%s is not here yet", path)
	}
	r, err := s.pull.client.params.Store.Open(digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	content, err := io.ReadAll(io.LimitReader(r, maxSmall))
	if err != nil {
		return nil, err
	}
	return &memory{Reader: bytes.NewReader(content), name: path}, nil
}

// memory is a file that was read whole.
type memory struct {
	*bytes.Reader
	name string
}

func (m *memory) Close() error               { return nil }
func (m *memory) Stat() (fs.FileInfo, error) { return m, nil }
func (m *memory) Name() string               { return m.name }
func (m *memory) Mode() fs.FileMode          { return 0o444 }
func (m *memory) ModTime() time.Time         { return time.Time{} }
func (m *memory) IsDir() bool                { return false }
func (m *memory) Sys() any                   { return nil }
