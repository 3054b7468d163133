package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
)

// bundle makes a directory of bundled models that holds one, "demo".
func bundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := mlxmodeltest.Model()
	files["LICENSE"] = []byte("MIT")
	files["README.md"] = []byte("a model card")
	if err := os.Rename(mlxmodeltest.Write(t, files), filepath.Join(dir, "demo")); err != nil {
		t.Fatal(err)
	}
	// Beside it, what is no model.
	for _, p := range []string{"__init__.py", "__pycache__/x.pyc", "empty/x"} {
		(foreign{t, dir}).write(p, nil)
	}
	return dir
}

func TestEmptyStoreGetsTheBundledModels(t *testing.T) {
	s := open(t, Params{BundledDir: bundle(t)})
	if got := names(t, s); !slices.Equal(got, []string{"demo:latest"}) {
		t.Fatalf("got %v", got)
	}
	m := must(s.Get(name(t, "Demo")))
	if m.Format != FormatMLX || m.Details.Family != "qwen3" || !slices.Equal(m.Licenses, []string{"MIT"}) {
		t.Errorf("got %+v", m)
	}
}

func TestBundledModelIsInstalledOnFirstUse(t *testing.T) {
	f := foreign{t, t.TempDir()}
	f.model("registry.ollama.ai/library/other/latest", `{}`, "model", ggufFile(1, 1))
	s := open(t, Params{Dir: f.dir, BundledDir: bundle(t)})
	if got := names(t, s); !slices.Equal(got, []string{"other:latest"}) {
		t.Fatalf("got %v", got)
	}
	for _, in := range []string{"demo:other", "someone/demo", "hf.co/library/demo", "empty", "__pycache__"} {
		if _, err := s.Get(name(t, in)); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: got %v", in, err)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Get(name(t, "DEMO")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := names(t, s); !slices.Equal(got, []string{"demo:latest", "other:latest"}) {
		t.Errorf("got %v", got)
	}
	// Deleting works as for any model.
	if err := s.Delete(name(t, "demo")); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(name(t, "demo")); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if got := blobs(t, s); len(got) != 2 {
		t.Errorf("blobs stay: %v", got)
	}
}

func TestBundledModelFollowsItsUpdates(t *testing.T) {
	dir, bundled := t.TempDir(), bundle(t)
	s := open(t, Params{Dir: dir, BundledDir: bundled})
	old := must(s.Get(name(t, "demo")))
	if err := s.Copy(name(t, "demo"), name(t, "mine")); err != nil {
		t.Fatal(err)
	}
	s.Close()

	s = open(t, Params{Dir: dir, BundledDir: bundled})
	if same := must(s.Get(name(t, "demo"))); !same.ModifiedAt.Equal(old.ModifiedAt) {
		t.Error("an installed model is written anew at each start")
	}
	s.Close()

	(foreign{t, bundled}).write("demo/chat_template.jinja", []byte("new"))
	s = open(t, Params{Dir: dir, BundledDir: bundled})
	if updated := must(s.Get(name(t, "demo"))); updated.Digest == old.Digest {
		t.Error("the model was not updated")
	}
	s.Close()

	// A model of the user's own that has the name stays.
	s = open(t, Params{Dir: dir, BundledDir: bundled})
	mustCreate(t, s, api.CreateRequest{Model: "demo", From: "mine", System: "Mine."})
	s.Close()
	(foreign{t, bundled}).write("demo/chat_template.jinja", []byte("newer"))
	s = open(t, Params{Dir: dir, BundledDir: bundled})
	if m := must(s.Get(name(t, "demo"))); m.System != "Mine." {
		t.Errorf("got %q", m.System)
	}
}

// Someone makes a model of the name between the question whether it is stored and its installation.
func TestInstallingSparesTheUsersModel(t *testing.T) {
	s := open(t, Params{BundledDir: bundle(t)})
	mustCreate(t, s, api.CreateRequest{Model: "demo", From: "demo", System: "Mine.", Template: "{{ .Prompt }}"})
	mine := must(s.Get(name(t, "demo")))
	if err := s.Copy(name(t, "demo"), name(t, "x")); err != nil {
		t.Fatal(err)
	}
	for _, files := range []map[string][]byte{nil, {"config.json": []byte(`{"model_type":"other"}`)}} {
		if files != nil {
			changed := mlxmodeltest.Model()
			changed["config.json"] = files["config.json"]
			mustCreate(t, s, api.CreateRequest{Model: "demo", Files: upload(t, s, changed)})
			mine = must(s.Get(name(t, "demo")))
		}
		if ok, err := s.installBundled(name(t, "demo")); !ok || err != nil {
			t.Errorf("got %v, %v", ok, err)
		}
		if m := must(s.Get(name(t, "demo"))); m.Digest != mine.Digest {
			t.Error("the user's model was replaced")
		}
	}
}

func TestBrokenBundleDoesNoHarm(t *testing.T) {
	dir := t.TempDir()
	(foreign{t, dir}).write("demo/config.json", []byte("{"))
	s := open(t, Params{BundledDir: dir})
	if got := names(t, s); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	if _, err := s.Get(name(t, "demo")); !errors.Is(err, errdefs.ErrInvalid) || strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
	open(t, Params{BundledDir: filepath.Join(dir, "absent")})
}

// The demonstration model of this repository, when it is there.
func TestTheDemoModel(t *testing.T) {
	bundled := filepath.Join("..", "..", "..", "python_runner", "ollmlx", "models")
	if _, err := os.Stat(filepath.Join(bundled, "demo", "config.json")); err != nil {
		t.Skip("there is no demo model in this checkout")
	}
	s := open(t, Params{BundledDir: bundled})
	m := must(s.Get(name(t, "demo")))
	t.Logf("%+v %v, context %d", m.Details, m.Capabilities, m.ContextLength)
	if m.Format != FormatMLX || !m.Can("completion") || !m.Can("tools") || !m.Can("thinking") {
		t.Errorf("got %q, %v", m.Format, m.Capabilities)
	}
	path := must(s.Materialize(m, t.TempDir()))
	for _, f := range []string{"config.json", "model.safetensors", "tokenizer.json"} {
		want := must(os.ReadFile(filepath.Join(bundled, "demo", f)))
		if got := must(os.ReadFile(filepath.Join(path, f))); string(got) != string(want) {
			t.Errorf("%s differs", f)
		}
	}
}
