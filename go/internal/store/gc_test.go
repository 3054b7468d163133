package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
)

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Stat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func blobsOf(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	for _, e := range must(os.ReadDir(filepath.Join(dir, blobsDir))) {
		out = append(out, e.Name())
	}
	return out
}

func TestDeleteRemovesWhatNothingElseNeeds(t *testing.T) {
	s := open(t, Params{})
	a, b := createMLX(t, s, "a"), createMLX(t, s, "b")
	if err := s.Delete(name(t, "A:Latest")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(name(t, "a")); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if exists(t, s.blobPath(a.layer(mediaSystem).Digest)) {
		t.Error("a's own blob stays")
	}
	if err := s.checkPresent(b.Layers); err != nil {
		t.Errorf("b lost a blob: %v", err)
	}
	if err := s.Delete(name(t, "b")); err != nil {
		t.Fatal(err)
	}
	if left := blobs(t, s); len(left) != 0 {
		t.Errorf("blobs stay: %v", left)
	}
	for path := range tree(t, s.dir) {
		if path != filepath.Join(stateDir, lockFile) {
			t.Errorf("%s stays", path)
		}
	}
	if entries := must(os.ReadDir(filepath.Join(s.dir, manifestsDir))); len(entries) != 0 {
		t.Errorf("empty directories stay: %v", entries)
	}
}

// Models shared with Ollama are deleted with what is theirs alone, and nothing that Ollama may be working on goes.
func TestDeleteInAnOllamaStore(t *testing.T) {
	f := ollamaStore(t)
	pulling := f.blob([]byte("a layer of a pull whose manifest is not written yet"))
	partial := f.write("blobs/sha256-"+strings.Repeat("d", 64)+"-partial", []byte("x"))
	for _, d := range blobsOf(t, f.dir) {
		age(t, filepath.Join(f.dir, "blobs", d), 5*time.Hour)
	}
	s := open(t, Params{Dir: f.dir})
	m := must(s.Get(name(t, "llama3.2")))
	if err := s.Delete(m.Name); err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if exists(t, s.blobPath(l.Digest)) {
			t.Errorf("%s stays", l.MediaType)
		}
	}
	if !exists(t, s.blobPath(pulling.Digest)) || !exists(t, partial) {
		t.Error("files of a running pull are gone")
	}
	if got := len(names(t, s)); got != 6 {
		t.Errorf("%d models are left", got)
	}
}

func TestNoBlobGoesWhileAManifestIsUnreadable(t *testing.T) {
	s := open(t, Params{})
	a := createMLX(t, s, "a")
	for _, place := range []string{"registry.ollama.ai/library/bad/latest", "registry.ollama.ai/library/bad/not a tag", "stray"} {
		bad := (foreign{t, s.dir}).write(filepath.Join(manifestsDir, place), []byte(`{"layers":`))
		createMLX(t, s, "b")
		if err := s.Delete(name(t, "b")); err != nil {
			t.Fatal(err)
		}
		if got := blobs(t, s); len(got) != len(a.Layers)+1+2 { // b's system prompt and configuration stay
			t.Errorf("%s: got %d blobs", place, len(got))
		}
		// When it is gone, the next change after the grace period removes what had to stay.
		if err := os.Remove(bad); err != nil {
			t.Fatal(err)
		}
		for _, d := range blobsOf(t, s.dir) {
			age(t, filepath.Join(s.dir, blobsDir, d), 2*time.Hour)
		}
		createMLX(t, s, "c")
		if err := s.Delete(name(t, "c")); err != nil {
			t.Fatal(err)
		}
		if got := blobs(t, s); len(got) != len(a.Layers)+1 {
			t.Errorf("%s: got %d blobs", place, len(got))
		}
	}
}

// Finder and its like leave hidden files everywhere; they are no manifests.
func TestHiddenFilesDoNotKeepBlobs(t *testing.T) {
	s := open(t, Params{})
	createMLX(t, s, "a")
	(foreign{t, s.dir}).write("manifests/registry.ollama.ai/.DS_Store", []byte("\x00\x01"))
	if err := s.Delete(name(t, "a")); err != nil {
		t.Fatal(err)
	}
	if left := blobs(t, s); len(left) != 0 {
		t.Errorf("blobs stay: %v", left)
	}
}

// Between upload and create a client relies on its blobs, whether it sent them or was told that they are here.
func TestDeleteKeepsWhatACreateMayNeed(t *testing.T) {
	s := open(t, Params{})
	a := createMLX(t, s, "a")
	weights := s.Files(a).(*blobSource).files["model.safetensors"]
	if has, err := s.HasBlob(weights); !has || err != nil {
		t.Fatal(has, err)
	}
	uploaded := digestOf([]byte("new"))
	if _, err := s.PutBlob(uploaded, strings.NewReader("new")); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(name(t, "a")); err != nil {
		t.Fatal(err)
	}
	got := blobs(t, s)
	want := []string{weights, uploaded}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// readerFunc calls a function when it is first read, and then ends.
type readerFunc func()

func (f readerFunc) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// A delete in the middle of an upload does not make the store forget that the blob will be its own to remove.
func TestDeleteDuringUpload(t *testing.T) {
	s := open(t, Params{})
	createMLX(t, s, "a")
	d := digestOf([]byte("late"))
	_, err := s.PutBlob(d, io.MultiReader(strings.NewReader("late"), readerFunc(func() {
		if err := s.Delete(name(t, "a")); err != nil {
			t.Error(err)
		}
	})))
	if err != nil {
		t.Fatal(err)
	}
	if got := blobs(t, s); !slices.Equal(got, []string{d}) || !exists(t, s.markPath(d)) {
		t.Errorf("got %v, marked: %v", got, exists(t, s.markPath(d)))
	}
}

func TestAbandonedUploadsGoAfterTheGracePeriod(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Params{Dir: dir})
	old, young := digestOf([]byte("old")), digestOf([]byte("young"))
	for d, content := range map[string]string{old: "old", young: "young"} {
		if _, err := s.PutBlob(d, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	foreign := (foreign{t, dir}).blob([]byte("not ours"))
	used := createMLX(t, s, "a")
	s.Close()
	for _, d := range []string{old, foreign.Digest} {
		age(t, s.blobPath(d), 2*time.Hour)
	}
	for _, l := range used.Layers {
		age(t, s.blobPath(l.Digest), 2*time.Hour)
	}

	s = open(t, Params{Dir: dir, NoPrune: true})
	if !exists(t, s.blobPath(old)) {
		t.Error("NoPrune did not keep it")
	}
	s.Close()

	s = open(t, Params{Dir: dir})
	if exists(t, s.blobPath(old)) {
		t.Error("an abandoned upload stays")
	}
	if !exists(t, s.blobPath(young)) || !exists(t, s.blobPath(foreign.Digest)) || s.checkPresent(used.Layers) != nil {
		t.Error("too much was removed")
	}
}

// A blob that another program touched after the model was made may be part of what that program is pulling.
func TestDeleteKeepsWhatAnotherProgramTouched(t *testing.T) {
	s := open(t, Params{})
	a := createMLX(t, s, "a")
	weights := s.blobPath(s.Files(a).(*blobSource).files["model.safetensors"])
	age(t, weights, -time.Second) // now, and surely after the manifest
	if err := s.Delete(name(t, "a")); err != nil {
		t.Fatal(err)
	}
	if got := blobs(t, s); len(got) != 1 || !exists(t, weights) {
		t.Errorf("got %v", got)
	}
	// It is not forgotten.
	age(t, weights, 2*time.Hour)
	s.Close()
	s = open(t, Params{Dir: s.dir})
	if got := blobs(t, s); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestReplacingAModel(t *testing.T) {
	for _, noPrune := range []bool{false, true} {
		t.Run(fmt.Sprint("NoPrune ", noPrune), func(t *testing.T) {
			s := open(t, Params{NoPrune: noPrune})
			mustCreate(t, s, api.CreateRequest{Model: "Keep-Case", Files: upload(t, s, mlxmodeltest.Model()), System: "one"})
			mustCreate(t, s, api.CreateRequest{Model: "keep-case", From: "KEEP-CASE", System: "two"})
			if got := names(t, s); !slices.Equal(got, []string{"Keep-Case:latest"}) {
				t.Errorf("got %v", got)
			}
			if m := must(s.Get(name(t, "keep-case"))); m.System != "two" {
				t.Errorf("got %q", m.System)
			}
			if stays := exists(t, s.blobPath(digestOf([]byte("one")))); stays != noPrune {
				t.Errorf("the old system prompt stays: %v", stays)
			}
		})
	}
}

func TestCopy(t *testing.T) {
	s := open(t, Params{BundledDir: bundle(t)})
	createMLX(t, s, "a")
	createMLX(t, s, "Other")
	if err := s.Copy(name(t, "A"), name(t, "hf.co/x/b:tag")); err != nil {
		t.Fatal(err)
	}
	if err := s.Copy(name(t, "a"), name(t, "other")); err != nil {
		t.Fatal(err)
	}
	if err := s.Copy(name(t, "a"), name(t, "a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Copy(name(t, "demo"), name(t, "mine")); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); !slices.Equal(got, []string{"Other:latest", "a:latest", "demo:latest", "hf.co/x/b:tag", "mine:latest"}) {
		t.Errorf("got %v", got)
	}
	if a, b := must(s.Get(name(t, "a"))), must(s.Get(name(t, "other"))); a.Digest != b.Digest || b.System != "I am a" {
		t.Errorf("got %s, %s, %q", a.Digest, b.Digest, b.System)
	}
	if exists(t, s.blobPath(digestOf([]byte("I am Other")))) {
		t.Error("the blob of a replaced model stays")
	}
	// Deleting the original leaves the copy whole.
	if err := s.Delete(name(t, "a")); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Get(name(t, "hf.co/x/b:tag")); err != nil || m.System != "I am a" {
		t.Errorf("got %v, %v", m, err)
	}
	if err := s.Copy(name(t, "absent"), name(t, "x")); !errors.Is(err, errdefs.ErrNotFound) || err.Error() != `model "absent:latest" not found` {
		t.Errorf("got %v", err)
	}
}

// Creates, copies, deletes and lists at random, all at once: whatever is listed is whole, and in the end nothing is
// left but what the remaining models need.
func TestConcurrentChanges(t *testing.T) {
	s := open(t, Params{})
	files := mlxmodeltest.Model()
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 25 {
				as := fmt.Sprintf("m%d", rng.IntN(4))
				n := name(t, as)
				var err error
				switch rng.IntN(5) {
				case 0, 1:
					digests := map[string]string{}
					for path, content := range files {
						digests[path] = digestOf(content)
						if _, err := s.PutBlob(digests[path], bytes.NewReader(content)); err != nil {
							t.Error(err)
						}
					}
					_, err = create(s, api.CreateRequest{Model: as, Files: digests, System: fmt.Sprint(rng.IntN(3))})
					if err != nil {
						t.Errorf("create: %v", err)
					}
				case 2:
					err = s.Delete(n)
				case 3:
					err = s.Copy(n, name(t, "copy"+as))
				case 4:
					if _, listErr := s.List(); listErr != nil {
						t.Error(listErr)
					}
					_, err = s.Get(n)
				}
				if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(s.holds) != 0 {
		t.Errorf("holds stay: %v", s.holds)
	}
	models := must(s.List())
	needed := map[string]bool{}
	for _, m := range models {
		if err := s.checkPresent(m.Layers); err != nil {
			t.Error(err)
		}
	}
	s.mu.Lock()
	s.expireClaims()
	for digest := range must(s.references()) {
		needed[digest] = true
	}
	s.mu.Unlock()
	for _, d := range blobs(t, s) {
		if !needed[d] && !exists(t, s.markPath(d)) {
			t.Errorf("%s is forgotten", d)
		}
	}
}
