package store

import (
	"context"
	"errors"
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

// fakeConverter is what a test makes of it: the real one is tested with real models.
type fakeConverter struct {
	quantize func(ctx context.Context, req *runnerpb.QuantizeRequest, progress func(*runnerpb.QuantizeProgress) error) error
	adapt    func(req *runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error)
}

func (f fakeConverter) Quantize(ctx context.Context, req *runnerpb.QuantizeRequest, progress func(*runnerpb.QuantizeProgress) error) error {
	return f.quantize(ctx, req, progress)
}

func (f fakeConverter) ImportAdapter(_ context.Context, req *runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error) {
	return f.adapt(req)
}

// plainModel is mlxmodeltest.Model before it was quantized.
func plainModel() map[string][]byte {
	files := mlxmodeltest.Unquantized()
	files["model.safetensors.index.json"] = []byte(`{"weight_map":{"model.norm.weight":"model.safetensors"}}`)
	return files
}

// quantized writes the files of mlxmodeltest.Model one by one, as a converter does.
func quantized(ctx context.Context, req *runnerpb.QuantizeRequest, progress func(*runnerpb.QuantizeProgress) error) error {
	files := mlxmodeltest.Model()
	if err := progress(&runnerpb.QuantizeProgress{BytesTotal: 100}); err != nil {
		return err
	}
	if err := progress(&runnerpb.QuantizeProgress{BytesDone: 100, BytesTotal: 100}); err != nil {
		return err
	}
	for _, name := range []string{"model.safetensors", "config.json"} {
		if err := os.WriteFile(filepath.Join(req.GetOutputPath(), name), files[name], 0o600); err != nil {
			return err
		}
		if err := progress(&runnerpb.QuantizeProgress{BytesDone: 100, BytesTotal: 100, File: name}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func convert(s *Store, r api.CreateRequest, c Converter) ([]api.ProgressResponse, error) {
	var seen []api.ProgressResponse
	err := s.Create(context.Background(), CreateParams{Request: r, Converter: c}, func(p api.ProgressResponse) { seen = append(seen, p) })
	return seen, err
}

func TestQuantize(t *testing.T) {
	s := open(t, Params{})
	files := plainModel()
	digests := upload(t, s, files)
	mustCreate(t, s, api.CreateRequest{Model: "base", Files: digests, System: "Be brief.", License: "MIT"})
	for how, req := range map[string]api.CreateRequest{"files": {Files: digests, System: "Be brief.", License: "MIT"}, "model": {From: "base"}} {
		t.Run(how, func(t *testing.T) {
			req.Model, req.Quantize = "q-"+how, "q4_K_M"
			var asked *runnerpb.QuantizeRequest
			seen, err := convert(s, req, fakeConverter{quantize: func(ctx context.Context, r *runnerpb.QuantizeRequest, progress func(*runnerpb.QuantizeProgress) error) error {
				asked = r
				if content, err := os.ReadFile(filepath.Join(r.GetModelPath(), "config.json")); err != nil || string(content) != string(files["config.json"]) {
					t.Errorf("the converter finds %q, %v", content, err)
				}
				return quantized(ctx, r, progress)
			}})
			if err != nil {
				t.Fatal(err)
			}
			if asked.GetScheme().GetRecipe() != "mixed_4_6" || asked.GetModelName() != "q-"+how+":latest" {
				t.Errorf("asked for %v", asked)
			}
			bar := api.ProgressResponse{Status: "quantizing BF16 model to mixed_4_6", Digest: "0000000000000000000", Total: 100, Completed: 100}
			if !slices.Contains(seen, bar) || seen[len(seen)-1].Status != "success" {
				t.Errorf("got %v", seen)
			}
			m := must(s.Get(name(t, "q-"+how)))
			want := mlxmodeltest.Model()
			wantNames := []string{"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
			if got := filePaths(m.Layers); !slices.Equal(got, wantNames) {
				t.Errorf("got files %q, want %q", got, wantNames)
			}
			for _, l := range m.Layers {
				if l.MediaType == mediaFile && l.Digest != digestOf(want[l.Name]) {
					t.Errorf("%s is not what the converter wrote", l.Name)
				}
			}
			if m.Details.QuantizationLevel != "4-bit" || m.Details.ParameterSize != "6K" || m.System != "Be brief." || m.Licenses[0] != "MIT" || !m.Can("tools") {
				t.Errorf("got %+v", m)
			}
			blobs(t, s) // nothing else lies among them
			if left := must(filepath.Glob(filepath.Join(s.dir, stateDir, tempDir, "*"))); len(left)+len(must(filepath.Glob(filepath.Join(s.dir, stateDir, tempDir, ".*")))) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestQuantizeRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, quantize string
		files          map[string][]byte
		kind           error
		text           string
	}{
		{"quantized already", "int8", mlxmodeltest.Model(), errdefs.ErrInvalid, "the model is quantized already (4-bit); quantize the model that it was made from"},
		{"GGUF", "q4_K_M", map[string][]byte{"m.gguf": []byte(ggufFile(1, 1))}, errdefs.ErrUnsupported, "quantize a GGUF file with llama-quantize"},
		{"unknown", "iq3_xxs", plainModel(), errdefs.ErrInvalid, `unknown quantization "iq3_xxs"; choose one of int2, int3`},
		{"not a quantization", "BF16", plainModel(), errdefs.ErrInvalid, `"BF16" is no quantization; leave quantize out`},
		{"bits", "int7", plainModel(), errdefs.ErrInvalid, "cannot be packed into 7 bits"},
		{"group", "int4-g48", plainModel(), errdefs.ErrInvalid, "groups of 48; choose one of [32 64 128]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, Params{})
			_, err := convert(s, api.CreateRequest{Model: "x", Files: upload(t, s, tt.files), Quantize: tt.quantize}, fakeConverter{})
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
		})
	}
	s := open(t, Params{})
	mustCreate(t, s, api.CreateRequest{Model: "base", Files: upload(t, s, mlxmodeltest.Model())})
	//lint:ignore SA1019 older clients send it
	_, err := convert(s, api.CreateRequest{Model: "x", From: "base", Quantization: "int4"}, fakeConverter{})
	if err == nil || !strings.Contains(err.Error(), `model "base" is quantized already (4-bit)`) {
		t.Errorf("got %v", err)
	}
	if _, err := convert(s, api.CreateRequest{Model: "x", Files: upload(t, s, plainModel()), Quantize: "int4"}, nil); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

// Whatever happens to a conversion, no model appears and nothing of it stays that the next start would not remove.
func TestQuantizeFails(t *testing.T) {
	type progress = func(*runnerpb.QuantizeProgress) error
	for _, tt := range []struct {
		name     string
		quantize func(ctx context.Context, req *runnerpb.QuantizeRequest, progress progress) error
		kind     error
		text     string
	}{
		{"the converter dies", func(_ context.Context, req *runnerpb.QuantizeRequest, _ progress) error {
			if err := os.WriteFile(filepath.Join(req.GetOutputPath(), "model.safetensors"), []byte("half"), 0o600); err != nil {
				return err
			}
			return errdefs.New(errdefs.ErrUnavailable, "killed")
		}, errdefs.ErrUnavailable, "killed"},
		{"the disk is too small", func(_ context.Context, _ *runnerpb.QuantizeRequest, p progress) error {
			return p(&runnerpb.QuantizeProgress{BytesTotal: 1 << 60})
		}, errdefs.ErrPrecondition, "not enough disk space: 1152921 TB are needed for the quantized model"},
		{"a truncated file", func(ctx context.Context, req *runnerpb.QuantizeRequest, p progress) error {
			return quantized(ctx, req, func(m *runnerpb.QuantizeProgress) error {
				if m.GetFile() == "model.safetensors" {
					if err := os.Truncate(filepath.Join(req.GetOutputPath(), m.GetFile()), 200); err != nil {
						return err
					}
				}
				return p(m)
			})
		}, errdefs.ErrInternal, "the quantized model is not sound"},
		{"no weights", func(context.Context, *runnerpb.QuantizeRequest, progress) error { return nil }, errdefs.ErrInternal, "not sound"},
		{"a name that leaves", func(_ context.Context, _ *runnerpb.QuantizeRequest, p progress) error {
			return p(&runnerpb.QuantizeProgress{File: "../model/config.json"})
		}, errdefs.ErrInternal, "unexpected name"},
		{"a file that is not there", func(_ context.Context, _ *runnerpb.QuantizeRequest, p progress) error {
			return p(&runnerpb.QuantizeProgress{File: "config.json"})
		}, errdefs.ErrInternal, "storing a converted file failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, Params{Dir: dir})
			digests := upload(t, s, plainModel())
			seen, err := convert(s, api.CreateRequest{Model: "x", Files: digests, Quantize: "int4"}, fakeConverter{quantize: tt.quantize})
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), dir) {
				t.Errorf("got %v, want %q without paths", err, tt.text)
			}
			if len(names(t, s)) != 0 || len(s.holds) != 0 || slices.ContainsFunc(seen, func(p api.ProgressResponse) bool { return p.Status == "success" }) {
				t.Errorf("something was made: %v, %v, %v", names(t, s), s.holds, seen)
			}
			// Blobs of no model go once their grace is over.
			for _, d := range blobs(t, s) {
				age(t, s.blobPath(d), 2*defaultGrace)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if again := open(t, Params{Dir: dir}); len(blobs(t, again)) != 0 {
				t.Errorf("blobs stay: %v", blobs(t, again))
			}
		})
	}
}

// A process that dies in a conversion leaves a directory, which the next one removes.
func TestConversionLeftovers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Params{Dir: dir})
	work, _, err := s.workDir()
	if err != nil {
		t.Fatal(err)
	}
	(foreign{t, work}).write("output/model.safetensors", []byte("half"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, Params{Dir: dir})
	if _, err := os.Stat(work); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestParseScheme(t *testing.T) {
	for in, want := range map[string]string{
		"int4": "int4 affine 4 0", "INT8": "int8 affine 8 0", "4bit": "int4 affine 4 0", "4-bit": "int4 affine 4 0", "q4": "int4 affine 4 0", "8bits": "int8 affine 8 0",
		"int4-g32": "int4-g32 affine 4 32", "4bit-gs128": "int4-g128 affine 4 128", "int3-g64": "int3-g64 affine 3 64", "mxfp4": "mxfp4 mxfp4 0 0", "MXFP8": "mxfp8 mxfp8 0 0",
		"nvfp4": "nvfp4 nvfp4 0 0", "mixed_2_6": "mixed_2_6 affine 0 0 mixed_2_6", "q4_K_M": "mixed_4_6 affine 0 0 mixed_4_6", "Q8_0": "int8 affine 8 0", "q5_k_s": "int5 affine 5 0",
		"q6_K": "int6 affine 6 0", "q2_K": "mixed_2_6 affine 0 0 mixed_2_6", "q3_K_L": "mixed_3_6 affine 0 0 mixed_3_6",
	} {
		s, err := parseScheme(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := strings.TrimSpace(strings.Join([]string{s.name, s.Mode, plain(s.Bits), plain(s.GroupSize), s.Recipe}, " ")); got != want {
			t.Errorf("%s is %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{"", "int", "4", "int9", "int40", "q4_K_X", "mixed", "int4-g", "affine", "int4 ", strings.Repeat("9", 500)} {
		if s, err := parseScheme(in); in != "4" && (err == nil || len(err.Error()) > 700) {
			t.Errorf("%q: got %v, %v", in, s, err)
		}
	}
	// Every name that help lists is one.
	for _, in := range []string{"int2", "int3", "int4", "int5", "int6", "int8", "int4-g32", "mxfp4", "mxfp8", "nvfp4", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"} {
		if _, err := parseScheme(in); err != nil || !strings.Contains(SchemeNames, in) {
			t.Errorf("%s: %v", in, err)
		}
	}
}
