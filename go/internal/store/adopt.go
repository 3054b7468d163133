package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ollama/ollama/types/model"
)

// NewFile is a file of a model that is being brought in: its relative path, digest and size.
type NewFile struct {
	Path, Digest string
	Size         int64
}

// ReceiveFiles is Receive for a model of files from a place that knows no manifests. The caller makes the model with
// Create when all files are here, and then calls Done.
func (s *Store) ReceiveFiles(n model.Name, files []NewFile) (*Incoming, error) {
	m := manifest{SchemaVersion: 2, MediaType: mediaManifest}
	for _, f := range files {
		l := Layer{MediaType: mediaFile, Digest: f.Digest, Size: f.Size, Name: f.Path}
		if strings.ToLower(filepath.Ext(f.Path)) == ".gguf" {
			l.MediaType = mediaModel
		}
		m.Layers = append(m.Layers, l)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return s.Receive(n, raw)
}

// Digest identifies what is being brought in.
func (in *Incoming) Digest() string { return "sha256:" + in.file.digest }

// Done is Close for a model that was made of what came: nothing has to be taken up later, and what the model does not
// refer to, because it was converted, goes.
func (in *Incoming) Done() {
	os.Remove(in.record()) // one that stays expires
	in.Close()
	s := in.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noPrune {
		return
	}
	released := map[string]time.Time{}
	for _, l := range in.layers {
		released[l.Digest] = time.Now()
	}
	s.sweep(released)
}

// FindFile returns the digest of a file that is here as part of the model's stored version, or of an interrupted
// transfer: one of this path and size whose content matches. Empty: there is none.
func (s *Store) FindFile(n model.Name, path string, size int64, matches func(content []byte) bool) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var manifests []string
	if e, ok := s.find(n); ok {
		manifests = append(manifests, e.path)
	}
	records, _ := filepath.Glob(filepath.Join(s.dir, stateDir, incomingDir, "sha256-*")) // fails only for a bad pattern
	for _, p := range append(manifests, records...) {
		m, err := readManifest(p)
		if err != nil {
			continue
		}
		for _, l := range m.Layers {
			// Licenses have lost their names.
			if l.Name != path && l.MediaType != mediaLicense || l.Size != size {
				continue
			}
			if content, err := s.readBlob(l.Digest, size); err == nil && matches(content) {
				return l.Digest
			}
		}
	}
	return ""
}

// Hold keeps blobs from being removed until release is called, whether they exist yet or not.
func (s *Store) Hold(digests ...string) (release func()) { return s.hold(digests...) }

// Open opens a blob for reading.
func (s *Store) Open(digest string) (io.ReadCloser, error) {
	path, err := s.BlobPath(digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	return f, s.failure(err, "reading a blob")
}

// Add stores small content and returns its digest.
func (s *Store) Add(content []byte) (digest string, err error) {
	digest, _, err = s.addBlob(content)
	return digest, err
}

// Adopt makes a blob of a file elsewhere on this machine, without copying where the file system can clone or link it,
// and reports whether it did: a file that is gone, or is not what its digest says, is passed over. The file itself stays.
func (s *Store) Adopt(ctx context.Context, digest string, size int64, path string) (bool, error) {
	d, err := ParseDigest(digest)
	if err != nil {
		return false, err
	}
	defer s.hold(d)()
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() != size {
		return false, nil
	}
	temp, err := s.duplicate(ctx, path)
	if err != nil {
		if ctx.Err() != nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return false, s.failure(err, "taking over a file")
		}
		return false, nil
	}
	defer os.Remove(temp)
	// What was linked is looked at, and not the path again, which may lead elsewhere by now.
	same, err := hasDigest(ctx, temp, d)
	if !same || err != nil {
		return false, s.failure(err, "taking over a file")
	}
	if err := s.markUnused(d); err != nil {
		return false, s.failure(err, "taking over a file")
	}
	if err := os.Rename(temp, s.blobPath(d)); err != nil {
		return false, s.failure(err, "taking over a file")
	}
	return true, s.failure(syncDir(filepath.Join(s.dir, blobsDir)), "taking over a file")
}

// duplicate makes a temporary file of the store that is a clone, another link or a copy of a file.
func (s *Store) duplicate(ctx context.Context, path string) (string, error) {
	dir := s.tempFor(blobsDir)
	temp, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return "", err
	}
	name := temp.Name()
	temp.Close()
	// Its name is ours now; clones and links have to be made where nothing is.
	if err := os.Remove(name); err != nil {
		return "", err
	}
	if clone(path, name) == nil || os.Link(path, name) == nil {
		return name, nil
	}
	if err := copyFile(ctx, path, name); err != nil {
		os.Remove(name)
		return "", err
	}
	return name, nil
}

func copyFile(ctx context.Context, from, to string) error {
	in, out, err := openBoth(from, to)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(out, &contextReader{ctx, in})
	return errors.Join(err, out.Sync(), out.Close())
}

// openBoth opens a file and one that is made for what becomes of it.
func openBoth(from, to string) (in, out *os.File, err error) {
	if in, err = os.Open(from); err != nil {
		return nil, nil, err
	}
	if out, err = os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		in.Close()
		return nil, nil, err
	}
	return in, out, nil
}

func hasDigest(ctx context.Context, path, digest string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, &contextReader{ctx, f}); err != nil {
		return false, err
	}
	return "sha256:"+hex.EncodeToString(h.Sum(nil)) == digest, nil
}
