package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
)

// badDigests are no digests; none may ever become part of a path.
var badDigests = []string{
	"", "sha256", "sha256:", "sha256:abc", strings.Repeat("a", 64), "sha512:" + strings.Repeat("a", 64),
	"sha256:" + strings.Repeat("a", 63), "sha256:" + strings.Repeat("a", 65), "sha256:" + strings.Repeat("g", 64),
	"sha256:../../../../../../etc/passwd", "sha256-../" + strings.Repeat("a", 61), "../sha256-" + strings.Repeat("a", 64),
	"sha256:" + strings.Repeat("a", 64) + "/x", "sha256:" + strings.Repeat("a", 64) + "\n", " sha256:" + strings.Repeat("a", 64),
	"sha256:" + strings.Repeat("a", 64) + "\x00", "/etc/passwd", "SHA256:" + strings.Repeat("a", 64),
}

func TestParseDigest(t *testing.T) {
	want := hexDigest("a")
	for _, good := range []string{want, "sha256-" + strings.Repeat("a", 64), "sha256:" + strings.Repeat("A", 64)} {
		if got, err := ParseDigest(good); err != nil || got != want {
			t.Errorf("%s: got %q, %v", good, got, err)
		}
	}
	for _, bad := range badDigests {
		if got, err := ParseDigest(bad); !errors.Is(err, errdefs.ErrInvalid) || err.Error() != "invalid digest format" {
			t.Errorf("%q: got %q, %v", bad, got, err)
		}
	}
}

// CVE-2024-37032 and its relatives: a digest that is a path.
func TestBadDigestsTouchNothing(t *testing.T) {
	s := open(t, Params{})
	before := tree(t, filepath.Dir(s.dir))
	for _, bad := range badDigests {
		if _, err := s.HasBlob(bad); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("HasBlob(%q): got %v", bad, err)
		}
		if _, err := s.PutBlob(bad, strings.NewReader("x")); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("PutBlob(%q): got %v", bad, err)
		}
		if _, err := s.BlobPath(bad); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("BlobPath(%q): got %v", bad, err)
		}
	}
	if after := tree(t, filepath.Dir(s.dir)); len(after) != len(before) {
		t.Errorf("files appeared: %v", after)
	}
}

func FuzzParseDigest(f *testing.F) {
	for _, s := range badDigests {
		f.Add(s)
	}
	f.Add(hexDigest("a"))
	f.Fuzz(func(t *testing.T, in string) {
		d, err := ParseDigest(in)
		if err != nil {
			return
		}
		if again, err := ParseDigest(d); err != nil || again != d {
			t.Fatalf("%q became %q, then %q, %v", in, d, again, err)
		}
		s := &Store{dir: "/store"}
		p := s.blobPath(d)
		if filepath.Dir(p) != "/store/blobs" || filepath.Clean(p) != p || len(filepath.Base(p)) != len("sha256-")+64 {
			t.Fatalf("%q became the path %q", in, p)
		}
	})
}

func TestPutBlob(t *testing.T) {
	s := open(t, Params{})
	content := []byte("hello")
	d := digestOf(content)
	if has, err := s.HasBlob(d); has || err != nil {
		t.Fatalf("got %v, %v", has, err)
	}
	if _, err := s.BlobPath(d); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if created, err := s.PutBlob(d, bytes.NewReader(content)); !created || err != nil {
		t.Fatalf("got %v, %v", created, err)
	}
	if has, err := s.HasBlob(strings.ToUpper(d[7:8]) + "x"); has || err == nil {
		t.Errorf("got %v, %v", has, err)
	}
	if has, err := s.HasBlob("sha256-" + d[7:]); !has || err != nil {
		t.Errorf("got %v, %v", has, err)
	}
	// It exists: the content is not even read.
	if created, err := s.PutBlob(d, iotest.ErrReader(errors.New("read"))); created || err != nil {
		t.Errorf("got %v, %v", created, err)
	}
	path := must(s.BlobPath(d))
	if b := must(os.ReadFile(path)); !bytes.Equal(b, content) {
		t.Errorf("got %q", b)
	}
	if info := must(os.Stat(path)); info.Mode().Perm() != 0o644 {
		t.Errorf("got mode %v", info.Mode())
	}
}

// Nothing of an upload that fails is left behind, and its error tells no path.
func TestPutBlobFailures(t *testing.T) {
	content := []byte("hello")
	d := digestOf(content)
	full := &os.PathError{Op: "write", Path: "/secret/place", Err: syscall.ENOSPC}
	for _, tt := range []struct {
		name string
		r    io.Reader
		kind error
		text string
	}{
		{"wrong content", strings.NewReader("hallo"), errdefs.ErrInvalid, `digest mismatch, expected "` + d + `", got "` + digestOf([]byte("hallo")) + `"`},
		{"too little", strings.NewReader("hell"), errdefs.ErrInvalid, "digest mismatch"},
		{"nothing", strings.NewReader(""), errdefs.ErrInvalid, "digest mismatch"},
		{"interrupted", io.MultiReader(strings.NewReader("he"), iotest.ErrReader(io.ErrUnexpectedEOF)), errdefs.ErrInvalid, "the upload ended before"},
		{"disk full", io.MultiReader(strings.NewReader("he"), iotest.ErrReader(full)), errdefs.ErrInternal, "storing a blob failed: no space left on device"},
		{"too large", iotest.ErrReader(errdefs.New(errdefs.ErrTooLarge, "the body is too large")), errdefs.ErrTooLarge, "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, Params{})
			created, err := s.PutBlob(d, tt.r)
			if created || !errors.Is(err, tt.kind) {
				t.Fatalf("got %v, %v, want kind %v", created, err, tt.kind)
			}
			if !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "/secret") || strings.Contains(err.Error(), s.dir) {
				t.Errorf("got %q, want it to say %q without paths", err, tt.text)
			}
			if left := blobs(t, s); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			if left := must(os.ReadDir(filepath.Join(s.dir, stateDir, tempDir))); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			// The next attempt works.
			if created, err := s.PutBlob(d, bytes.NewReader(content)); !created || err != nil {
				t.Errorf("got %v, %v", created, err)
			}
		})
	}
}

func TestPutBlobDiskErrors(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("running as root: permissions do not bind, so the directory is removed instead")
	}
	s := open(t, Params{})
	if err := os.RemoveAll(filepath.Join(s.dir, blobsDir)); err != nil {
		t.Fatal(err)
	}
	_, err := s.PutBlob(digestOf([]byte("x")), strings.NewReader("x"))
	if !errors.Is(err, errdefs.ErrInternal) || strings.Contains(err.Error(), s.dir) {
		t.Errorf("got %v", err)
	}
}

// Users move their blobs to another disk and leave a link: a file cannot be renamed from one to the other.
func TestBlobsOnAnotherFileSystem(t *testing.T) {
	other, err := os.MkdirTemp("/dev/shm", "store-test-")
	if err != nil || device(other) == device(t.TempDir()) {
		t.Skip("there is no second file system to write to")
	}
	t.Cleanup(func() { os.RemoveAll(other) })
	dir := t.TempDir()
	if err := os.Symlink(other, filepath.Join(dir, blobsDir)); err != nil {
		t.Fatal(err)
	}
	s := open(t, Params{Dir: dir})
	m := createMLX(t, s, "m")
	sameAs(t, must(s.Materialize(m, t.TempDir())), mlxmodeltest.Model())
	if err := s.Delete(m.Name); err != nil {
		t.Fatal(err)
	}
	if left := blobs(t, s); len(left) != 0 {
		t.Errorf("got %v", left)
	}
}

// A process that is killed in the middle of an upload leaves a temporary file, which the next one removes; what is not
// ours stays.
func TestLeftoversOfAKilledProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Params{Dir: dir})
	s.Close()
	f := foreign{t, dir}
	f.write("blobs/.ollmlx-tmp-123", []byte("half"))
	f.write("manifests/.ollmlx-tmp-456", []byte("half"))
	f.write(".ollmlx/tmp/.ollmlx-tmp-789", []byte("half"))
	theirs := []string{f.write("blobs/sha256-"+strings.Repeat("b", 64)+"-partial-0", []byte("Ollama's")), f.write("blobs/sha256-"+strings.Repeat("c", 64), []byte("Ollama's, in a pull"))}
	s = open(t, Params{Dir: dir})
	for _, p := range []string{"blobs/.ollmlx-tmp-123", "manifests/.ollmlx-tmp-456", ".ollmlx/tmp/.ollmlx-tmp-789"} {
		if _, err := os.Stat(filepath.Join(s.dir, p)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v", p, err)
		}
	}
	for _, p := range theirs {
		if _, err := os.Stat(p); err != nil {
			t.Error(err)
		}
	}
}

func TestConcurrentPutsOfOneDigest(t *testing.T) {
	s := open(t, Params{})
	content := bytes.Repeat([]byte("0123456789"), 10_000)
	d := digestOf(content)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var made int
	for i := range 16 {
		wg.Go(func() {
			var r io.Reader = bytes.NewReader(content)
			if i%4 == 3 { // some of them fail, which harms nobody
				r = io.MultiReader(bytes.NewReader(content[:50_000]), iotest.ErrReader(io.ErrUnexpectedEOF))
			}
			created, err := s.PutBlob(d, r)
			if err != nil && i%4 != 3 {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if created {
				made++
			}
		})
	}
	wg.Wait()
	if made == 0 {
		t.Error("nobody made the blob")
	}
	if got := must(os.ReadFile(s.blobPath(d))); !bytes.Equal(got, content) {
		t.Errorf("got %d bytes", len(got))
	}
	if left := blobs(t, s); len(left) != 1 {
		t.Errorf("got blobs %v", left)
	}
}
