package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/gguf/gguftest"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// logBuffer collects log output of several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func open(t *testing.T, p Params) *Store {
	t.Helper()
	if p.Dir == "" {
		p.Dir = t.TempDir()
	}
	if p.Logger == nil {
		p.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func name(t *testing.T, s string) model.Name {
	t.Helper()
	n, err := modelname.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// upload stores files as a client does before it creates a model of them.
func upload(t *testing.T, s *Store, files map[string][]byte) map[string]string {
	t.Helper()
	digests := map[string]string{}
	for path, content := range files {
		digests[path] = digestOf(content)
		if _, err := s.PutBlob(digests[path], bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	return digests
}

func create(s *Store, r api.CreateRequest) ([]string, error) {
	var statuses []string
	err := s.Create(context.Background(), CreateParams{Request: r}, func(p api.ProgressResponse) { statuses = append(statuses, p.Status) })
	return statuses, err
}

func mustCreate(t *testing.T, s *Store, r api.CreateRequest) []string {
	t.Helper()
	statuses, err := create(s, r)
	if err != nil {
		t.Fatal(err)
	}
	return statuses
}

// createMLX makes a model of the test model's files, with a system prompt that makes it differ from others.
func createMLX(t *testing.T, s *Store, as string) *Model {
	t.Helper()
	mustCreate(t, s, api.CreateRequest{Model: as, Files: upload(t, s, mlxmodeltest.Model()), System: "I am " + as})
	m, err := s.Get(name(t, as))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func names(t *testing.T, s *Store) []string {
	t.Helper()
	models, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range models {
		out = append(out, modelname.Display(m.Name))
	}
	slices.Sort(out)
	return out
}

// blobs lists the blobs on disk, and fails if there is anything else beside them.
func blobs(t *testing.T, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, blobsDir))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		d, err := ParseDigest(e.Name())
		if err != nil {
			t.Errorf("%s lies among the blobs", e.Name())
		}
		out = append(out, d)
	}
	return out
}

// tree lists all files of a directory with their content, to see that nothing changed.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// age makes a file older.
func age(t *testing.T, path string, by time.Duration) {
	t.Helper()
	at := time.Now().Add(-by)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// foreign writes a store the way Ollama does, without any code of ours.
type foreign struct {
	t   testing.TB
	dir string
}

func (f foreign) blob(content []byte) Layer {
	f.t.Helper()
	d := digestOf(content)
	f.write(filepath.Join("blobs", strings.Replace(d, ":", "-", 1)), content)
	return Layer{Digest: d, Size: int64(len(content))}
}

func (f foreign) write(rel string, content []byte) string {
	f.t.Helper()
	path := filepath.Join(f.dir, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// model writes a manifest; layers are given as media type and content, in pairs.
func (f foreign) model(rel string, config string, layers ...string) string {
	f.t.Helper()
	type layer struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int64  `json:"size"`
		Name      string `json:"name,omitempty"`
	}
	make := func(media, content string) layer {
		l := f.blob([]byte(content))
		kind, tensor, _ := strings.Cut(media, "#")
		return layer{MediaType: kind, Digest: l.Digest, Size: l.Size, Name: tensor}
	}
	var list []layer
	for i := 0; i < len(layers); i += 2 {
		list = append(list, make("application/vnd.ollama.image."+layers[i], layers[i+1]))
	}
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
		"config": make("application/vnd.docker.container.image.v1+json", config), "layers": list,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.write(filepath.Join("manifests", rel), raw)
}

// ggufFile returns a GGUF file with some tensors and keys.
func ggufFile(tensors, keys int) string {
	f := gguftest.File{Seed: byte(tensors)}
	for i := range keys {
		f.Keys = append(f.Keys, gguftest.KV(fmt.Sprintf("test.key%d", i), uint32(i)))
	}
	for i := range tensors {
		f.Tensors = append(f.Tensors, gguftest.Floats(fmt.Sprintf("t%d", i), 8, 4))
	}
	return string(f.Bytes())
}

// ggufClaim returns the beginning of a GGUF file that claims some tensors and keys.
func ggufClaim(tensors, keys uint64) string {
	var b gguftest.Buffer
	b.Head(3, tensors, keys)
	b.Write(make([]byte, 1024))
	return b.String()
}

func hexDigest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprint("unexpected: ", err))
	}
	return v
}
