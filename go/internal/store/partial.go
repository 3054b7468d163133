package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const (
	// partialPrefix begins the names of blobs that have come in part, in the directory for unfinished files.
	partialPrefix = ".ollmlx-part-"
	// partialState ends the name of the file that tells which parts have come.
	partialState = ".json"

	maxParts = 4096
	// maxState bounds the file that tells which parts have come.
	maxState = 1 << 20
	// saveInterval is how much of a transfer, in time, a killed server may lose.
	saveInterval = time.Second
)

// Part is a piece of a blob that comes in order; several parts of a blob come at the same time.
type Part struct {
	Offset int64 `json:"offset"`
	Size   int64 `json:"size"`
	// Done is how many of its bytes are here.
	Done int64 `json:"done"`
}

// Partial is a blob that comes in parts, over several runs of the server if need be. Write to its parts, then Finish;
// call Close in any case. One Partial of a digest is open at a time.
type Partial struct {
	store  *Store
	digest string
	size   int64
	file   *os.File
	end    func()

	// saving lets one save run at a time.
	saving sync.Mutex

	mu    sync.Mutex
	parts []Part
	timer *time.Timer // a save that is due; nil if there is nothing to save
	// over is set once the file is finished or closed.
	over bool
}

type partialFile struct {
	Size  int64  `json:"size"`
	Parts []Part `json:"parts"`
}

// OpenPartial opens a blob that comes in parts. One that was begun earlier keeps what it has and how it was divided; a
// new one is divided into parts of partSize.
func (s *Store) OpenPartial(digest string, size, partSize int64) (*Partial, error) {
	d, err := ParseDigest(digest)
	if err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, errdefs.New(errdefs.ErrInvalid, "blob %s has a negative size", d)
	}
	end, err := s.beginPartial(d)
	if err != nil {
		return nil, err
	}
	p := &Partial{store: s, digest: d, size: size, end: end, parts: s.partsOf(d, size)}
	flags := os.O_RDWR | os.O_CREATE
	if p.parts == nil {
		p.parts = divide(size, partSize)
		flags |= os.O_TRUNC
		// The state that was not usable must not be believed later.
		os.Remove(s.partialPath(d) + partialState)
	}
	if p.file, err = os.OpenFile(s.partialPath(d), flags, 0o644); err != nil {
		end()
		return nil, s.failure(err, "storing a blob")
	}
	return p, nil
}

// beginPartial keeps a digest for one Partial, and its blob from being removed.
func (s *Store) beginPartial(digest string) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partials[digest] {
		return nil, errdefs.New(errdefs.ErrBusy, "blob %s is being transferred already", digest)
	}
	s.partials[digest] = true
	s.holds[digest]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.partials, digest)
		s.unhold([]string{digest})
	}, nil
}

func (s *Store) partialPath(digest string) string {
	return filepath.Join(s.tempFor(blobsDir), partialPrefix+strings.Replace(digest, ":", "-", 1))
}

// partsOf returns the parts of a blob that was begun earlier, nil if there are none that fit.
func (s *Store) partsOf(digest string, size int64) []Part {
	path := s.partialPath(digest)
	f, err := os.Open(path + partialState)
	if err != nil {
		return nil
	}
	defer f.Close()
	var state partialFile
	if err := json.NewDecoder(io.LimitReader(f, maxState)).Decode(&state); err != nil {
		return nil
	}
	content, err := os.Stat(path)
	if err != nil || state.Size != size || len(state.Parts) > maxParts {
		return nil
	}
	var at int64
	for _, p := range state.Parts {
		if p.Offset != at || p.Size <= 0 || p.Size > size-at || p.Done < 0 || p.Done > p.Size {
			return nil
		}
		if p.Done > 0 && p.Offset+p.Done > content.Size() {
			return nil
		}
		at += p.Size
	}
	if at != size || size == 0 {
		return nil
	}
	return state.Parts
}

// Received returns how many bytes of a layer an interrupted transfer has left here.
func (s *Store) Received(l Layer) int64 {
	var n int64
	for _, p := range s.partsOf(l.Digest, l.Size) {
		n += p.Done
	}
	return n
}

func divide(size, partSize int64) []Part {
	partSize = max(partSize, (size+maxParts-1)/maxParts, 1)
	parts := []Part{}
	for at := int64(0); at < size; at += partSize {
		parts = append(parts, Part{Offset: at, Size: min(partSize, size-at)})
	}
	return parts
}

// Parts returns the parts as they are now.
func (p *Partial) Parts() []Part {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Part{}, p.parts...)
}

// Write appends to a part. A part has one writer at a time.
func (p *Partial) Write(part int, b []byte) error {
	p.mu.Lock()
	at, room := p.parts[part].Offset+p.parts[part].Done, p.parts[part].Size-p.parts[part].Done
	p.mu.Unlock()
	if int64(len(b)) > room {
		return errdefs.New(errdefs.ErrInternal, "a part of blob %s got more than its %d bytes", p.digest, room)
	}
	n, err := p.file.WriteAt(b, at)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parts[part].Done += int64(n)
	if p.timer == nil && !p.over {
		p.timer = time.AfterFunc(saveInterval, p.saveLater)
	}
	return p.store.failure(err, "storing a blob")
}

// Restart gives up what has come and makes the blob one part.
func (p *Partial) Restart() error {
	p.mu.Lock()
	p.parts = divide(p.size, p.size)
	p.mu.Unlock()
	return p.store.failure(p.save(), "storing a blob")
}

func (p *Partial) saveLater() {
	if err := p.save(); err != nil {
		p.store.log.Warn("how far a transfer has come is not noted", "digest", p.digest, "error", bareError(err))
	}
}

// save notes what has come. The data goes to the disk before the note does.
func (p *Partial) save() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	if p.over {
		p.mu.Unlock()
		return nil
	}
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	state := partialFile{p.size, append([]Part{}, p.parts...)}
	p.mu.Unlock()
	if err := p.file.Sync(); err != nil {
		return err
	}
	return p.store.writeFile(blobsDir, p.file.Name()+partialState, func(f *os.File) error {
		return json.NewEncoder(f).Encode(state)
	})
}

// Finish checks the digest and makes the blob appear. Content that does not match is removed and an error of kind
// ErrInvalid.
func (p *Partial) Finish(ctx context.Context) error {
	s := p.store
	for _, part := range p.Parts() {
		if part.Done != part.Size {
			return errdefs.New(errdefs.ErrInternal, "blob %s is not complete", p.digest)
		}
	}
	if err := p.verify(ctx); err != nil {
		return s.failure(err, "storing a blob")
	}
	// Until a manifest refers to it the blob is ours to remove; the mark is made first so that no crash loses it.
	err := s.markUnused(p.digest)
	if err == nil {
		err = p.file.Sync()
	}
	if err == nil {
		err = os.Rename(p.file.Name(), s.blobPath(p.digest))
	}
	if err == nil {
		err = syncDir(filepath.Join(s.dir, blobsDir))
	}
	if err != nil {
		return s.failure(err, "storing a blob")
	}
	p.drop()
	return nil
}

func (p *Partial) verify(ctx context.Context) error {
	h := sha256.New()
	n, err := io.Copy(h, &contextReader{ctx, io.NewSectionReader(p.file, 0, p.size)})
	if err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); n != p.size || got != p.digest {
		p.drop()
		return errdefs.New(errdefs.ErrInvalid, "digest mismatch, expected %q, got %q: what was received is wrong and was removed; try again", p.digest, got)
	}
	return nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// drop ends the partial and leaves nothing of it but a blob that it became.
func (p *Partial) drop() {
	// After saving is had, no save can write the state again.
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	p.over = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	os.Remove(p.file.Name() + partialState)
	os.Remove(p.file.Name())
	p.file.Close()
	p.end()
}

// Close keeps what has come for a later OpenPartial. After Finish it does nothing.
func (p *Partial) Close() error {
	err := p.save()
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	over := p.over
	p.over = true
	p.mu.Unlock()
	if over {
		return nil
	}
	defer p.end()
	if err := errors.Join(err, p.file.Close()); err != nil {
		return p.store.failure(fmt.Errorf("keeping what has come: %w", err), "storing a blob")
	}
	return nil
}
