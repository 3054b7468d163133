package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
)

// sameAs fails unless the directory holds exactly these files.
func sameAs(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	got := tree(t, dir)
	for path, content := range files {
		if got[filepath.FromSlash(path)] != string(content) {
			t.Errorf("%s is not as it was", path)
		}
	}
	if len(got) != len(files) {
		t.Errorf("got %d files, want %d", len(got), len(files))
	}
}

func TestMaterialize(t *testing.T) {
	s := open(t, Params{})
	files := mlxmodeltest.Model()
	files["1_Pooling/config.json"] = []byte(`{"pooling_mode_mean_tokens":true}`)
	mustCreate(t, s, api.CreateRequest{Model: "m", Files: upload(t, s, files), System: "not a file"})
	m := must(s.Get(name(t, "m")))
	dir := t.TempDir()

	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := s.Materialize(m, dir)
			if err != nil || path != filepath.Join(dir, m.Digest) {
				t.Errorf("got %q, %v", path, err)
				return
			}
			sameAs(t, path, files)
		})
	}
	wg.Wait()
	if entries := must(os.ReadDir(dir)); len(entries) != 1 {
		t.Errorf("got %v", entries)
	}
	path := filepath.Join(dir, m.Digest)

	// What a cleaner of temporary files took is made again.
	for _, damage := range []func() error{
		func() error { return os.Remove(filepath.Join(path, "tokenizer.json")) },
		func() error { return os.RemoveAll(filepath.Join(path, "1_Pooling")) },
		func() error { return os.RemoveAll(path) },
		func() error { return errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o644)) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		sameAs(t, must(s.Materialize(m, dir)), files)
	}

	// A model that runs can be deleted: its files stay until its directory goes.
	if err := s.Delete(m.Name); err != nil {
		t.Fatal(err)
	}
	if info := must(os.Lstat(filepath.Join(path, "config.json"))); info.Mode().IsRegular() {
		sameAs(t, path, files)
	}
}

func TestMaterializeRefuses(t *testing.T) {
	s := open(t, Params{Dir: ollamaStore(t).dir})
	dir := t.TempDir()
	for _, in := range []string{"llama3.2", "qwen3.5:2b-nvfp4", "gpt-oss:120b-cloud"} {
		if _, err := s.Materialize(must(s.Get(name(t, in))), dir); !errors.Is(err, errdefs.ErrUnsupported) {
			t.Errorf("%s: got %v", in, err)
		}
	}
	good := createMLX(t, s, "m")

	for _, digest := range []string{"", "..", "../../x", strings.Repeat("/", 64)} {
		bad := *good
		bad.Digest = digest
		if _, err := s.Materialize(&bad, dir); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("digest %q: got %v", digest, err)
		}
	}

	missing := *good
	missing.Layers = append([]Layer{{MediaType: mediaFile, Digest: hexDigest("e"), Size: 1, Name: "x.json"}}, good.Layers...)
	if _, err := s.Materialize(&missing, dir); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}

	if _, err := s.Materialize(good, filepath.Join(dir, "absent")); !errors.Is(err, errdefs.ErrInternal) || strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
	if entries := must(os.ReadDir(dir)); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

// badFileNames would leave the directory of links, hide in it, or mean something else to another system.
var badFileNames = []string{
	"", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "./a", "a/./b", ".hidden", "a/.git/config", `a\b`, `..\x`, "C:x", "a\x00b",
}

// CVE-2024-45436 and its relatives: names in a model that lead out of its directory.
func TestFileNamesOfLayers(t *testing.T) {
	for _, bad := range badFileNames {
		if validFileName(bad) {
			t.Errorf("%q is taken for a file name", bad)
		}
	}
	for _, good := range []string{"config.json", "1_Pooling/config.json", "model-00001-of-00002.safetensors", "a b.json", "ä.json"} {
		if !validFileName(good) {
			t.Errorf("%q is refused", good)
		}
	}
	// Also a model that came around the check of manifests gets nowhere.
	s := open(t, Params{})
	m := createMLX(t, s, "m")
	outside := t.TempDir()
	dir := filepath.Join(outside, "runtime")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, bad := range badFileNames {
		evil := *m
		evil.Layers = append([]Layer{{MediaType: mediaFile, Digest: m.Layers[0].Digest, Size: m.Layers[0].Size + 1, Name: bad}}, m.Layers...)
		if _, err := s.Materialize(&evil, dir); err == nil {
			t.Errorf("%q was linked", bad)
		}
	}
	if got := tree(t, outside); len(got) != 0 {
		t.Errorf("files appeared: %v", got)
	}
}

// Two files of which one would be a directory of the other.
func TestMaterializeConflictingNames(t *testing.T) {
	s := open(t, Params{})
	m := createMLX(t, s, "m")
	l := m.Layers[0]
	for _, names := range [][]string{{"x", "x/y"}, {"x/y", "x"}, {"x", "x"}} {
		bad := *m
		bad.Layers = append([]Layer(nil), m.Layers...)
		for _, n := range names {
			l.Name = n
			bad.Layers = append(bad.Layers, l)
		}
		dir := t.TempDir()
		if _, err := s.Materialize(&bad, dir); err == nil {
			t.Errorf("%v: no error", names)
		}
		if entries := must(os.ReadDir(dir)); len(entries) != 0 {
			t.Errorf("%v left %v", names, entries)
		}
	}
}

func FuzzFileName(f *testing.F) {
	for _, s := range badFileNames {
		f.Add(s)
	}
	f.Add("1_Pooling/config.json")
	f.Fuzz(func(t *testing.T, in string) {
		if !validFileName(in) {
			return
		}
		p := filepath.Join("/dir", filepath.FromSlash(in))
		if !strings.HasPrefix(p, "/dir/") || filepath.Clean(p) != p || strings.Contains(p, "/.") {
			t.Fatalf("%q became %q", in, p)
		}
	})
}

func TestSymbolicLinksWhereHardOnesAreImpossible(t *testing.T) {
	s := open(t, Params{})
	m := createMLX(t, s, "m")
	l := m.Layers[0]
	target := filepath.Join(t.TempDir(), "link")
	// A hard link to a directory is what fails everywhere.
	if err := linkFile(filepath.Dir(s.blobPath(l.Digest)), target); err != nil {
		t.Fatal(err)
	}
	if to := must(os.Readlink(target)); !filepath.IsAbs(to) {
		t.Errorf("got a link to %q", to)
	}
}
