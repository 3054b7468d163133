package cli

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// mlxDir has a file of every kind that a model repository may hold.
func mlxDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{}
	for _, name := range []string{
		"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
		"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "generation_config.json", "1_Pooling/config.json",
		"pytorch_model.bin", "training_args.bin", "modeling_evil.py", "README.md", ".gitattributes", "onnx/model.onnx", ".cache/config.json",
	} {
		files[name] = "content of " + name
	}
	writeFiles(t, dir, files)
	return dir
}

func TestModelFilesOfADirectory(t *testing.T) {
	files, err := modelFiles(mlxDir(t), false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"1_Pooling/config.json", "chat_template.jinja", "config.json", "generation_config.json", "model-00001-of-00002.safetensors",
		"model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
	}
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestModelFilesRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		files   map[string]string
		adapter bool
		want    string
	}{
		"nothing":         {map[string]string{"README.md": ""}, false, "no model here"},
		"only pickles":    {map[string]string{"config.json": "", "pytorch_model.bin": ""}, false, "convert the model to safetensors"},
		"only an adapter": {map[string]string{"adapters.safetensors": ""}, false, "no model here"},
		"half an adapter": {map[string]string{"adapters.safetensors": ""}, true, "no adapter here"},
	} {
		dir := t.TempDir()
		writeFiles(t, dir, tt.files)
		if _, err := modelFiles(dir, tt.adapter); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v, want %q and the directory", name, err, tt.want)
		}
	}
}

func TestModelFilesTakesGGUFAndAdapters(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"x.gguf": "", "README.md": "", "adapter_config.json": "", "adapters.safetensors": ""})
	if files, err := modelFiles(dir, false); err != nil || len(files) != 1 || files["x.gguf"] == "" {
		t.Errorf("got %v, %v", files, err)
	}
	if files, err := modelFiles(dir, true); err != nil || len(files) != 2 {
		t.Errorf("got %v, %v", files, err)
	}
}

func TestLinksMustStayInTheModel(t *testing.T) {
	dir := mlxDir(t)
	secret := filepath.Join(t.TempDir(), "id_ed25519")
	writeFiles(t, filepath.Dir(secret), map[string]string{"id_ed25519": "secret"})
	inside := filepath.Join(dir, "special_tokens_map.json")
	if err := os.Symlink("config.json", inside); err != nil {
		t.Fatal(err)
	}
	files, err := modelFiles(dir, false)
	if err != nil || !strings.HasSuffix(files["special_tokens_map.json"], "config.json") {
		t.Errorf("a link inside the model: got %v, %v", files["special_tokens_map.json"], err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "added_tokens.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := modelFiles(dir, false); err == nil || !strings.Contains(err.Error(), "insecure path: added_tokens.json") {
		t.Errorf("a link that leaves the model: got %v", err)
	}
}

func TestSnapshotOfAHubCache(t *testing.T) {
	repo := t.TempDir()
	snapshot := filepath.Join(repo, "snapshots", "abc")
	writeFiles(t, repo, map[string]string{"blobs/1": "{}", "blobs/2": "weights", "refs/main": "abc"})
	if err := os.MkdirAll(snapshot, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, blob := range map[string]string{"config.json": "1", "model.safetensors": "2"} {
		if err := os.Symlink(filepath.Join("..", "..", "blobs", blob), filepath.Join(snapshot, name)); err != nil {
			t.Fatal(err)
		}
	}
	files, err := modelFiles(snapshot, false)
	if err != nil || len(files) != 2 {
		t.Fatalf("got %v, %v", files, err)
	}
	if err := os.Symlink(filepath.Join("..", "..", "refs", "main"), filepath.Join(snapshot, "tokenizer.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := modelFiles(snapshot, false); err == nil {
		t.Error("a link to something else than a blob was taken")
	}
}

func TestSpecialFilesAreRefused(t *testing.T) {
	dir := mlxDir(t)
	if err := syscall.Mkfifo(filepath.Join(dir, "vocab.json"), 0o600); err != nil {
		t.Skip(err)
	}
	if _, err := modelFiles(dir, false); err == nil || !strings.Contains(err.Error(), "vocab.json is not a regular file") {
		t.Errorf("got %v", err)
	}
}

func TestReadModelfile(t *testing.T) {
	dir := mlxDir(t)
	writeFiles(t, dir, map[string]string{"lora/adapter_config.json": "{}", "lora/adapters.safetensors": "", "x.gguf": "", "w.bin": ""})
	parent := filepath.Dir(dir)
	relative := filepath.Base(dir)

	r, err := readModelfile(strings.NewReader("FROM ./"+relative+"\nADAPTER ./"+relative+"/lora\nPARAMETER temperature 0.5\nPARAMETER stop a\nPARAMETER stop b\n"+
		"SYSTEM \"\"\"two\nlines\"\"\"\nMESSAGE user hi\nLICENSE MIT\nTEMPLATE {{ .Prompt }}\n"), parent)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.files) != 10 || len(r.adapters) != 2 || r.request.From != "" {
		t.Errorf("got %d files, %d adapters, from %q", len(r.files), len(r.adapters), r.request.From)
	}
	if r.request.System != "two\nlines" || r.request.Template != "{{ .Prompt }}" || r.request.Messages[0].Content != "hi" {
		t.Errorf("got %+v", r.request)
	}
	if got := fmt.Sprint(r.request.Parameters["stop"], r.request.Parameters["temperature"]); got != "[a b] 0.5" {
		t.Errorf("got parameters %s", got)
	}

	if r, err = readModelfile(strings.NewReader("FROM demo"), parent); err != nil || r.request.From != "demo" || len(r.files) != 0 {
		t.Errorf("a name: got %+v, %v", r, err)
	}
	if r, err = readModelfile(strings.NewReader("FROM "+filepath.Join(dir, "x.gguf")), "/"); err != nil || r.files["x.gguf"] == "" {
		t.Errorf("a file: got %+v, %v", r, err)
	}

	if r, err = readModelfile(strings.NewReader("FROM demo\nPARAMETER mirostat 1"), parent); err != nil || len(r.warnings) != 1 || r.request.Parameters != nil {
		t.Errorf("a parameter without effect: got %+v, %v", r, err)
	}

	for text, want := range map[string]string{
		"FROM ./missing":                                 "FROM ./missing: ",
		"FROM /no/such/dir":                              "no such file",
		"FROM demo\nADAPTER ./missing":                   "ADAPTER ./missing: ",
		"FROM ./" + relative + "/w.bin":                  "pickle",
		"FROM demo\nFROM ./" + relative + "/x.gguf":      "names both",
		"PARAMETER temperature 1":                        "no FROM line",
		"FROM demo\nPARAMETER temperature very":          "temperature",
		"FROM demo\nBOGUS x":                             "(line 2)",
		"FROM demo\nPARAMETER no_such_parameter 1":       "no_such_parameter",
		"FROM ~nobody-of-this-name/x":                    "nobody-of-this-name",
		"FROM ./" + relative + "\nADAPTER ./" + relative: "no adapter here",
	} {
		if _, err := readModelfile(strings.NewReader(text), parent); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// blobServer keeps blobs, and knows those in known.
func blobServer(t *testing.T, known ...string) (*fakeServer, map[string]string) {
	f := newFakeServer(t)
	blobs := map[string]string{}
	for _, content := range known {
		blobs[digestOf(content)] = content
	}
	f.mux.HandleFunc("HEAD /api/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		if _, ok := blobs[r.PathValue("digest")]; !ok {
			w.WriteHeader(404)
		}
	})
	f.mux.HandleFunc("POST /api/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil || digestOf(string(data)) != r.PathValue("digest") {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"digest mismatch"}`)
			return
		}
		blobs[r.PathValue("digest")] = string(data)
		w.WriteHeader(201)
	})
	return f, blobs
}

func digestOf(content string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content))) }

func TestCreateUploadsWhatTheServerLacks(t *testing.T) {
	dir := mlxDir(t)
	modelfile := filepath.Join(dir, "Modelfile")
	writeFiles(t, dir, map[string]string{"Modelfile": "FROM .\nSYSTEM Be brief."})
	f, blobs := blobServer(t, "content of config.json")
	f.answers("POST /api/create", 200, `{"status":"writing manifest"}`, `{"status":"success"}`)

	got := runCLI(t, f.host(t), "", "create", "-q", "4bit", "mine", "-f", modelfile)
	if got.code != 0 || !strings.HasSuffix(got.err, "writing manifest\nsuccess\n") {
		t.Fatalf("got %+v", got)
	}
	if len(f.asked("POST /api/blobs/"+digestOf("content of config.json"))) != 0 {
		t.Error("a blob that the server has was sent again")
	}
	if len(blobs) != 10 {
		t.Errorf("the server has %d blobs, want 10", len(blobs))
	}
	body := f.asked("POST /api/create")[0]
	files := body["files"].(map[string]any)
	if len(files) != 10 || files["1_Pooling/config.json"] != digestOf("content of 1_Pooling/config.json") {
		t.Errorf("got files %v", files)
	}
	if body["model"] != "mine" || body["system"] != "Be brief." || body["quantize"] != "4bit" {
		t.Errorf("got request %v", body)
	}
}

func TestCreateReadsStandardInputAndTheDirectoryItself(t *testing.T) {
	f, _ := blobServer(t)
	f.answers("POST /api/create", 200, `{"status":"success"}`)
	if got := runCLI(t, f.host(t), "FROM demo\nSYSTEM hi", "create", "mine", "-f", "-"); got.code != 0 {
		t.Errorf("got %+v", got)
	}
	t.Chdir(mlxDir(t))
	if got := runCLI(t, f.host(t), "", "create", "mine"); got.code != 0 {
		t.Errorf("got %+v", got)
	}
	asked := f.asked("POST /api/create")
	if asked[0]["from"] != "demo" || asked[0]["system"] != "hi" || len(asked[1]["files"].(map[string]any)) != 10 {
		t.Errorf("got requests %v", asked)
	}
}

func TestCreateErrors(t *testing.T) {
	if got := runCLI(t, unused(t), "", "create", "mine", "-f", "/no/such/Modelfile"); got.err != "Error: specified Modelfile \"/no/such/Modelfile\" wasn't found\n" {
		t.Errorf("got %+v", got)
	}
	f, _ := blobServer(t)
	f.answers("POST /api/create", 400, `{"error":"invalid model name"}`)
	if got := runCLI(t, f.host(t), "FROM demo", "create", "a b", "-f", "-"); got.code != 1 || got.err != "Error: invalid model name\n" {
		t.Errorf("got %+v", got)
	}
}

// A file that changes between hashing and sending must not pass for what it was.
func TestCreateReportsARefusedBlob(t *testing.T) {
	f := newFakeServer(t)
	f.answers("HEAD /api/blobs/{digest}", 404)
	f.answers("POST /api/blobs/{digest}", 400, `{"error":"digest mismatch, expected x, got y"}`)
	t.Chdir(mlxDir(t))
	got := runCLI(t, f.host(t), "", "create", "mine")
	if got.code != 1 || !strings.Contains(got.err, "digest mismatch") || !strings.Contains(got.err, "1_Pooling/config.json") {
		t.Errorf("got %+v", got)
	}
}
