package store

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// unusedDir, below stateDir, holds an empty file for each blob that is ours to remove once nothing refers to it: blobs
// that clients uploaded and blobs of deleted models that could not go at once. Blobs without such a mark may belong to
// another program that shares the store, for example to a pull of Ollama's, and are never removed on suspicion.
const unusedDir = "unused"

func (s *Store) markPath(digest string) string {
	return filepath.Join(s.dir, stateDir, unusedDir, filepath.Base(s.blobPath(digest)))
}

func (s *Store) markUnused(digest string) error {
	f, err := os.OpenFile(s.markPath(digest), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// maxClaims bounds the claims on one blob.
const maxClaims = 64

// addClaim notes that a client was told that a blob is here. The caller has mu for writing.
func (s *Store) addClaim(digest string) {
	at := append(s.claims[digest], time.Now())
	s.claims[digest] = at[max(0, len(at)-maxClaims):]
}

// redeem ends one claim on each blob: whoever made it has what it was for. The claims of others stay. The caller has mu
// for writing.
func (s *Store) redeem(digests []string) {
	for _, d := range digests {
		if at := s.claims[d]; len(at) > 1 {
			s.claims[d] = at[1:]
		} else {
			delete(s.claims, d)
		}
	}
}

// expireClaims ends the claims that are older than the grace period. The caller has mu for writing.
func (s *Store) expireClaims() {
	for d, at := range s.claims {
		at = slices.DeleteFunc(at, func(t time.Time) bool { return time.Since(t) >= s.grace })
		if s.claims[d] = at; len(at) == 0 {
			delete(s.claims, d)
		}
	}
}

// sweep removes blobs that nothing refers to: those of the layers that a manifest gave up, and those marked before.
// released maps digests to the time from which the manifest did without touching them; nil for none. The caller has mu
// for writing.
func (s *Store) sweep(released map[string]time.Time) {
	for digest := range released {
		if err := s.markUnused(digest); err != nil {
			s.log.Warn("an unused blob will stay", "digest", digest, "error", err)
		}
	}
	s.expireClaims()
	marked, err := os.ReadDir(filepath.Join(s.dir, stateDir, unusedDir))
	if err != nil {
		s.log.Warn("unused blobs stay", "error", err)
		return
	}
	if len(marked) == 0 {
		return
	}
	used, err := s.references()
	if err != nil {
		// An unreadable manifest may refer to anything.
		s.log.Warn("unused blobs stay, because not all manifests can be read", "error", err)
		return
	}
	// What an interrupted transfer brought is waited for by the one that takes it up.
	incoming := s.incomingDigests()
	for _, e := range marked {
		digest, err := ParseDigest(e.Name())
		if err != nil {
			continue
		}
		if used[digest] {
			os.Remove(s.markPath(digest))
			continue
		}
		if incoming[digest] || s.inUse(digest, released[digest]) {
			continue
		}
		if err := os.Remove(s.blobPath(digest)); err != nil && !os.IsNotExist(err) {
			s.log.Warn("an unused blob cannot be removed", "digest", digest, "error", err)
			continue
		}
		os.Remove(s.markPath(digest))
	}
}

// inUse reports whether someone may be about to refer to a blob that no manifest refers to: an operation that runs, a
// client that was told of the blob within the grace period (older claims have expired by now), or whoever wrote or touched it within the grace period and
// after its last manifest was written.
func (s *Store) inUse(digest string, released time.Time) bool {
	if s.holds[digest] > 0 {
		return true
	}
	if len(s.claims[digest]) > 0 {
		return true
	}
	info, err := os.Stat(s.blobPath(digest))
	return err == nil && info.ModTime().After(released) && time.Since(info.ModTime()) < s.grace
}

// references returns the digests that any manifest refers to. It reads every file below manifests/ but hidden ones, also
// those that are no models for lack of a valid name, and fails if one of them cannot be read.
func (s *Store) references() (map[string]bool, error) {
	used := map[string]bool{}
	root := filepath.Join(s.dir, manifestsDir)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return nil
		case strings.HasPrefix(e.Name(), "."):
			return nil
		}
		m, err := readManifest(path)
		if err != nil {
			return &fs.PathError{Op: "read", Path: path, Err: err}
		}
		for _, l := range m.all() {
			used[l.Digest] = true
		}
		return nil
	})
	return used, err
}

// release gives the blobs of a manifest free that was removed or replaced.
func (s *Store) release(old *manifestFile) {
	released := map[string]time.Time{}
	for _, l := range old.all() {
		released[l.Digest] = old.info.ModTime()
	}
	s.sweep(released)
}
