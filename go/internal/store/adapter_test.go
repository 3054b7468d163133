package store

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// fits says of every adapter that it fits, and converts those in PEFT form.
func fits(req *runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error) {
	resp := &runnerpb.ImportAdapterResponse{}
	for _, path := range []string{req.GetModelPath() + "/config.json", req.GetAdapterPath() + "/adapter_config.json"} {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(filepath.Join(req.GetAdapterPath(), "adapter_model.safetensors")); err != nil {
		return resp, nil
	}
	for name, content := range mlxmodeltest.Adapter() {
		resp.Files = append(resp.Files, name)
		if err := os.WriteFile(filepath.Join(req.GetOutputPath(), name), content, 0o600); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func TestCreateWithAdapter(t *testing.T) {
	s := open(t, Params{})
	base := createMLX(t, s, "base")
	own, peft := upload(t, s, mlxmodeltest.Adapter()), upload(t, s, mlxmodeltest.PEFTAdapter())
	in := func(dir string, files map[string]string) map[string]string {
		moved := map[string]string{}
		for name, digest := range files {
			moved[dir+"/"+name] = digest
		}
		return moved
	}
	keys := map[string]bool{}
	for as, req := range map[string]api.CreateRequest{
		"own":   {From: "base", Adapters: own},
		"moved": {From: "base", Adapters: in("lora", own)},
		"peft":  {From: "base", Adapters: peft},
		"files": {Files: upload(t, s, mlxmodeltest.Model()), Adapters: own, System: "I am base"},
	} {
		req.Model = as
		if _, err := convert(s, req, fakeConverter{adapt: fits}); err != nil {
			t.Fatalf("%s: %v", as, err)
		}
		m := must(s.Get(name(t, as)))
		a := m.Adapter()
		if a == nil || m.System != "I am base" || m.Format != FormatMLX || m.WeightSize() != base.WeightSize() {
			t.Fatalf("%s: got %+v, %+v", as, a, m)
		}
		keys[a.Key] = true
		dir := t.TempDir()
		path := must(s.MaterializeAdapter(m, dir))
		if again := must(s.MaterializeAdapter(m, dir)); again != path {
			t.Errorf("got %s and %s", path, again)
		}
		for file, content := range mlxmodeltest.Adapter() {
			if got := must(os.ReadFile(filepath.Join(path, file))); string(got) != string(content) {
				t.Errorf("%s: %s is not what was given", as, file)
			}
		}
		if entries := must(os.ReadDir(must(s.Materialize(m, dir)))); len(entries) != len(mlxmodeltest.Model()) {
			t.Errorf("the base has %d files", len(entries))
		}
		shown := must(s.Show(m, ShowOptions{}))
		if shown.ModelInfo["adapter.type"] != "lora" || shown.ModelInfo["adapter.lora.rank"] != 2 || !strings.Contains(shown.Modelfile, "# The adapter of this model comes with FROM (sha256:") {
			t.Errorf("got %v, %s", shown.ModelInfo, shown.Modelfile)
		}
	}
	if len(keys) != 1 {
		t.Errorf("equal adapters have the keys %v", keys)
	}
	if base.Adapter() != nil {
		t.Error("the base has an adapter")
	}
	// A model of it keeps it, as the Modelfile of show says.
	mustCreate(t, s, api.CreateRequest{Model: "derived", From: "own", System: "new"})
	if d := must(s.Get(name(t, "derived"))); d.Adapter() == nil || d.Adapter().Key != must(s.Get(name(t, "own"))).Adapter().Key {
		t.Errorf("got %+v", d)
	}
	if _, err := convert(s, api.CreateRequest{Model: "two", From: "own", Adapters: own}, fakeConverter{adapt: fits}); !errors.Is(err, errdefs.ErrInvalid) ||
		err.Error() != `only one adapter is currently supported, and model "own" has one already; name the model that it was made from with FROM` {
		t.Errorf("got %v", err)
	}
	blobs(t, s)
}

func TestCreateWithAdapterRefuses(t *testing.T) {
	broken := maps.Clone(mlxmodeltest.Adapter())
	broken["adapter_config.json"] = []byte(`{"lora_parameters": {"rank": 5}}`)
	two := map[string][]byte{}
	for name, content := range mlxmodeltest.Adapter() {
		two["a/"+name], two["b/"+name] = content, content
	}
	ggufs := map[string][]byte{"a.gguf": []byte(ggufFile(1, 1)), "b.gguf": []byte(ggufFile(1, 2))}
	for _, tt := range []struct {
		name    string
		base    map[string][]byte
		adapter map[string][]byte
		adapt   func(*runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error)
		kind    error
		text    string
	}{
		{"not sound", mlxmodeltest.Model(), broken, fits, errdefs.ErrInvalid, "does not go with the rank 5"},
		{"two", mlxmodeltest.Model(), two, fits, errdefs.ErrInvalid, "only one adapter is currently supported: there are files of a and of b"},
		{"two GGUFs", mlxmodeltest.Model(), ggufs, fits, errdefs.ErrInvalid, "only one adapter is currently supported"},
		{"one GGUF", mlxmodeltest.Model(), map[string][]byte{"a.gguf": ggufs["a.gguf"]}, fits, errdefs.ErrUnsupported, "adapters in GGUF form do not go with MLX models"},
		{"GGUF model", map[string][]byte{"m.gguf": []byte(ggufFile(1, 1))}, mlxmodeltest.Adapter(), fits, errdefs.ErrInvalid, "its adapter has to be one too"},
		{"does not fit", mlxmodeltest.Model(), mlxmodeltest.Adapter(), func(*runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error) {
			return nil, errdefs.New(errdefs.ErrInvalid, "the adapter does not fit the model: q has another shape")
		}, errdefs.ErrInvalid, "q has another shape"},
		{"a converter that writes elsewhere", mlxmodeltest.Model(), mlxmodeltest.PEFTAdapter(), func(*runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error) {
			return &runnerpb.ImportAdapterResponse{Files: []string{"../model/config.json"}}, nil
		}, errdefs.ErrInternal, "unexpected name"},
		{"a converter that writes nothing", mlxmodeltest.Model(), mlxmodeltest.PEFTAdapter(), func(*runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error) {
			return &runnerpb.ImportAdapterResponse{}, nil
		}, errdefs.ErrInternal, "the converted adapter is not sound"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, Params{})
			_, err := convert(s, api.CreateRequest{Model: "x", Files: upload(t, s, tt.base), Adapters: upload(t, s, tt.adapter)}, fakeConverter{adapt: tt.adapt})
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), s.dir) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
			if len(names(t, s)) != 0 || len(s.holds) != 0 {
				t.Errorf("something was made: %v, %v", names(t, s), s.holds)
			}
		})
	}
	s := open(t, Params{})
	files := upload(t, s, mlxmodeltest.Model())
	missing := map[string]string{"adapter_config.json": hexDigest("a")}
	if _, err := convert(s, api.CreateRequest{Model: "x", Files: files, Adapters: missing}, fakeConverter{}); err == nil || !strings.Contains(err.Error(), "the content of adapter_config.json is not here") {
		t.Errorf("got %v", err)
	}
	if _, err := convert(s, api.CreateRequest{Model: "x", Files: files, Adapters: upload(t, s, mlxmodeltest.Adapter())}, nil); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

// A manifest from elsewhere, with an adapter that would have to be left out to run the model, is no model.
func TestForeignAdapters(t *testing.T) {
	s := open(t, Params{})
	createMLX(t, s, "base")
	raw := string(must(os.ReadFile(s.dir + "/manifests/registry.ollama.ai/library/base/latest")))
	blob := (foreign{t, s.dir}).blob([]byte("adapter"))
	raw = strings.Replace(raw, `"layers":[`, `"layers":[{"mediaType":"application/vnd.ollama.image.adapter","digest":"`+blob.Digest+`","size":7},`, 1)
	(foreign{t, s.dir}).write("manifests/registry.ollama.ai/library/odd/latest", []byte(raw))
	if _, err := s.Get(name(t, "odd")); err == nil || !strings.Contains(err.Error(), "adapter in a form that MLX models do not take") {
		t.Errorf("got %v", err)
	}
	if got := names(t, s); !slices.Equal(got, []string{"base:latest"}) {
		t.Errorf("got %v", got)
	}
}
