package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// digestSyntax is the only form of a digest that ever becomes part of a path.
var digestSyntax = regexp.MustCompile(`^sha256[:-]([0-9a-fA-F]{64})$`)

// ParseDigest returns the canonical form of a digest, "sha256:" and lower-case hex, or an error of kind ErrInvalid.
func ParseDigest(s string) (string, error) {
	m := digestSyntax.FindStringSubmatch(s)
	if m == nil {
		return "", errdefs.New(errdefs.ErrInvalid, "invalid digest format")
	}
	return "sha256:" + strings.ToLower(m[1]), nil
}

// blobPath returns where the blob of a canonical digest is, whether or not it exists.
func (s *Store) blobPath(digest string) string {
	return filepath.Join(s.dir, blobsDir, strings.Replace(digest, ":", "-", 1))
}

// BlobPath returns the path of a blob that exists, for a runner that reads it in place.
func (s *Store) BlobPath(digest string) (string, error) {
	d, err := ParseDigest(digest)
	if err != nil {
		return "", err
	}
	if _, err := s.blobSize(d); err != nil {
		return "", err
	}
	return s.blobPath(d), nil
}

// blobSize returns the size of a blob, or ErrNotFound.
func (s *Store) blobSize(digest string) (int64, error) {
	st, err := os.Stat(s.blobPath(digest))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, errdefs.New(errdefs.ErrNotFound, "blob %q not found", digest)
	case err != nil:
		return 0, s.failure(err, "reading a blob")
	case !st.Mode().IsRegular():
		return 0, errdefs.New(errdefs.ErrInvalid, "blob %q is no regular file", digest)
	}
	return st.Size(), nil
}

// HasBlob reports whether a blob is in the store. One that is stays at least for the grace period, because the client
// will rely on the answer when it creates a model.
func (s *Store) HasBlob(digest string) (bool, error) {
	d, err := ParseDigest(digest)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claim(d)
}

// claim reports whether a blob exists, and protects it for the grace period if so. The caller has mu.
func (s *Store) claim(digest string) (bool, error) {
	_, err := s.blobSize(digest)
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	s.addClaim(digest)
	return true, nil
}

// PutBlob stores what r gives under its digest, and reports whether it was new. Content that does not match the digest
// is an error of kind ErrInvalid and leaves nothing behind. If the blob exists, r is not read.
func (s *Store) PutBlob(digest string, r io.Reader) (created bool, err error) {
	d, err := ParseDigest(digest)
	if err != nil {
		return false, err
	}
	if has, err := s.HasBlob(d); has || err != nil {
		return false, err
	}
	created, err = s.writeBlob(d, r)
	return created, s.failure(err, "storing a blob")
}

// addBlob stores content whose digest is not known before.
func (s *Store) addBlob(content []byte) (digest string, created bool, err error) {
	sum := sha256.Sum256(content)
	digest = "sha256:" + hex.EncodeToString(sum[:])
	created, err = s.PutBlob(digest, bytes.NewReader(content))
	return digest, created, err
}

func (s *Store) writeBlob(digest string, r io.Reader) (created bool, err error) {
	defer s.hold(digest)()
	// Until a manifest refers to it the blob is ours to remove; the mark is made first so that no crash loses it.
	if err := s.markUnused(digest); err != nil {
		return false, err
	}
	path := s.blobPath(digest)
	err = s.writeFile(blobsDir, path, func(f *os.File) error {
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(f, h), r); err != nil {
			return readFailure(err)
		}
		if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != digest {
			return errdefs.New(errdefs.ErrInvalid, "digest mismatch, expected %q, got %q", digest, got)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		// Someone else may have finished the same blob; then ours replaces it with the same content.
		_, err := s.blobSize(digest)
		created = errors.Is(err, errdefs.ErrNotFound)
		s.addClaim(digest)
		return nil
	})
	return created && err == nil, err
}

// readFailure names an upload that ended early for what it is.
func readFailure(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errdefs.New(errdefs.ErrInvalid, "the upload ended before all of the blob was sent")
	}
	return fmt.Errorf("copying: %w", err)
}

// hold protects blobs from removal until release is called, whether they exist yet or not.
func (s *Store) hold(digests ...string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range digests {
		s.holds[d]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unhold(digests)
	}
}

// unhold ends what hold began. The caller has mu for writing.
func (s *Store) unhold(digests []string) {
	for _, d := range digests {
		if s.holds[d]--; s.holds[d] <= 0 {
			delete(s.holds, d)
		}
	}
}

// readBlob reads a small blob whole. A blob larger than most is refused.
func (s *Store) readBlob(digest string, most int64) ([]byte, error) {
	f, err := os.Open(s.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdefs.New(errdefs.ErrNotFound, "blob %q not found", digest)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, errdefs.New(errdefs.ErrInvalid, "blob %q is larger than %d MiB", digest, most>>20)
	}
	return b, nil
}
