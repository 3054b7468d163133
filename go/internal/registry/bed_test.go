package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/registry/registrytest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("REGISTRY_TEST_ROLE"); role != "" {
		os.Exit(play(role))
	}
	os.Exit(registrytest.Main(m))
}

const (
	testPart = 64 << 10
	// testSize is no multiple of the parts.
	testSize = 1<<20 + 12345
)

// side is one computer: a store and a client.
type side struct {
	t      testing.TB
	dir    string
	store  *store.Store
	client *Client
}

type change func(*Params)

func testParams(s *store.Store, dir string) Params {
	return Params{
		Store: s, KeyFile: filepath.Join(dir, "home", "id_ed25519"), MinPart: testPart, MaxPart: testPart,
		StallTimeout: 20 * time.Second, RetryDelay: time.Millisecond, Retries: 3,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func newSide(t testing.TB, changes ...change) *side {
	t.Helper()
	s := &side{t: t, dir: t.TempDir()}
	s.open(changes...)
	t.Cleanup(func() { s.store.Close() })
	return s
}

func (s *side) open(changes ...change) {
	s.t.Helper()
	var err error
	s.store, err = store.Open(store.Params{Dir: s.dir, Logger: slog.New(slog.NewTextHandler(s.t.Output(), nil))})
	if err != nil {
		s.t.Fatal(err)
	}
	p := testParams(s.store, s.dir)
	for _, change := range changes {
		change(&p)
	}
	s.client = New(p)
}

// restart is what a stopped and started server sees.
func (s *side) restart(changes ...change) {
	s.t.Helper()
	if err := s.store.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.open(changes...)
}

func (s *side) create(as string, files map[string][]byte, system string) *store.Model {
	s.t.Helper()
	digests := map[string]string{}
	for path, content := range files {
		digests[path] = digestOf(content)
		if _, err := s.store.PutBlob(digests[path], bytes.NewReader(content)); err != nil {
			s.t.Fatal(err)
		}
	}
	req := api.CreateRequest{Model: as, Files: digests, System: system}
	if err := s.store.Create(s.t.Context(), store.CreateParams{Request: req}, nil); err != nil {
		s.t.Fatal(err)
	}
	return s.get(as)
}

func (s *side) get(name string) *store.Model {
	s.t.Helper()
	m, err := s.store.Get(parse(s.t, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

func (s *side) delete(name string) {
	s.t.Helper()
	if err := s.store.Delete(parse(s.t, name)); err != nil {
		s.t.Fatal(err)
	}
}

// names is what list shows.
func (s *side) names() string {
	s.t.Helper()
	models, err := s.store.List()
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, m := range models {
		names = append(names, modelname.Display(m.Name))
	}
	return strings.Join(names, " ")
}

// events collects progress.
type events struct {
	mu  sync.Mutex
	all []api.ProgressResponse
	// on is called with each.
	on func(api.ProgressResponse)
}

func (e *events) add(p api.ProgressResponse) {
	e.mu.Lock()
	e.all = append(e.all, p)
	e.mu.Unlock()
	if e.on != nil {
		e.on(p)
	}
}

func (s *side) pull(name string) (*events, error) { return s.pullWith(s.t.Context(), name, &events{}) }

func (s *side) pullWith(ctx context.Context, name string, e *events) (*events, error) {
	err := s.client.Pull(ctx, parse(s.t, name), Options{Insecure: true}, e.add)
	return e, err
}

func (s *side) push(name string) (*events, error) {
	e := &events{}
	err := s.client.Push(s.t.Context(), parse(s.t, name), Options{Insecure: true}, e.add)
	return e, err
}

func (s *side) mustPush(name string) *events {
	s.t.Helper()
	e, err := s.push(name)
	if err != nil {
		s.t.Fatalf("push: %v", err)
	}
	return e
}

func (s *side) mustPull(name string) *events {
	s.t.Helper()
	e, err := s.pull(name)
	if err != nil {
		s.t.Fatalf("pull: %v", err)
	}
	return e
}

// check fails unless the model is whole: each blob is what its name says, and nothing lies beside.
func (s *side) check(name, digest string) {
	s.t.Helper()
	m := s.get(name)
	if m.Digest != digest {
		s.t.Errorf("got digest %s, want %s", m.Digest, digest)
	}
	for _, l := range m.Layers {
		path, err := s.store.BlobPath(l.Digest)
		if err != nil {
			s.t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		if digestOf(content) != l.Digest {
			s.t.Errorf("blob %s has other content", l.Digest)
		}
	}
	if left := s.unfinished(); len(left) > 0 {
		s.t.Errorf("left behind: %v", left)
	}
}

// unfinished lists the files of transfers that have not ended.
func (s *side) unfinished() []string {
	s.t.Helper()
	var found []string
	for _, pattern := range []string{".ollmlx/tmp/*", ".ollmlx/tmp/.*", ".ollmlx/incoming/*"} {
		matches, err := filepath.Glob(filepath.Join(s.dir, pattern))
		if err != nil {
			s.t.Fatal(err)
		}
		found = append(found, matches...)
	}
	return found
}

// weights is a GGUF file of random content, so that misplaced parts show.
func weights(seed uint64) []byte {
	b := []byte("GGUF")
	b = binary.LittleEndian.AppendUint32(b, 3)
	b = binary.LittleEndian.AppendUint64(b, 0)
	b = binary.LittleEndian.AppendUint64(b, 0)
	r := rand.New(rand.NewPCG(seed, 0))
	for len(b) < testSize {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b[:testSize]
}

// published pushes a GGUF model from a side of its own and returns its name, the weights' digest and the model.
func published(t testing.TB, reg *registrytest.Registry) (name, blob string, m *store.Model) {
	t.Helper()
	s := newSide(t)
	name = reg.Host + "/org/model:tag"
	content := weights(1)
	m = s.create(name, map[string][]byte{"model.gguf": content}, "")
	s.mustPush(name)
	reg.ClearLog()
	return name, digestOf(content), m
}

func mlxFiles() map[string][]byte { return mlxmodeltest.Model() }

func parse(t testing.TB, s string) model.Name {
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

// eventually waits until something is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// checkEvents fails unless the events are those of a pull or push as Ollama's clients know them.
func checkEvents(t testing.TB, e *events, verb string, m *store.Model, want ...string) {
	t.Helper()
	var statuses []string
	completed := map[string]int64{}
	for _, p := range e.all {
		if p.Digest == "" {
			statuses = append(statuses, p.Status)
			continue
		}
		if p.Status != verb+" "+p.Digest[7:19] {
			t.Errorf("got status %q for digest %s", p.Status, p.Digest)
		}
		if p.Completed < completed[p.Digest] || p.Completed > p.Total {
			t.Errorf("%s: %d of %d after %d", p.Status, p.Completed, p.Total, completed[p.Digest])
		}
		completed[p.Digest] = p.Completed
	}
	if got := strings.Join(statuses, "; "); got != strings.Join(want, "; ") {
		t.Errorf("got %s, want %s", got, strings.Join(want, "; "))
	}
	for _, l := range m.Layers {
		if got, ok := completed[l.Digest]; got != l.Size || !ok {
			t.Errorf("layer %s ended at %d of %d", l.Digest, got, l.Size)
		}
	}
	if len(completed) != len(m.Layers)+1 { // and the configuration
		t.Errorf("got progress of %d blobs, want %d", len(completed), len(m.Layers)+1)
	}
}

var pullStatuses = []string{"pulling manifest", "verifying sha256 digest", "writing manifest", "success"}

func rangesOf(log []registrytest.Request, digest string) (ranges []string) {
	for _, r := range log {
		if r.Method == "GET" && strings.HasSuffix(r.Path, "/blobs/"+digest) {
			ranges = append(ranges, r.Header.Get("Range"))
		}
	}
	return ranges
}

// asked is how many bytes the ranges cover.
func asked(t testing.TB, ranges []string) (n int64) {
	t.Helper()
	for _, r := range ranges {
		var from, to int64
		if _, err := fmt.Sscanf(r, "bytes=%d-%d", &from, &to); err != nil {
			t.Fatalf("range %q: %v", r, err)
		}
		n += to - from + 1
	}
	return n
}

type progress = api.ProgressResponse

// createFrom makes a model of another one.
func (s *side) createFrom(as, from string) {
	s.t.Helper()
	req := api.CreateRequest{Model: as, From: from, System: "Another."}
	if err := s.store.Create(s.t.Context(), store.CreateParams{Request: req}, nil); err != nil {
		s.t.Fatal(err)
	}
}
