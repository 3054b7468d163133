package registry

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/registry/registrytest"
)

func TestRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		format string
		files  map[string][]byte
	}{
		{"mlx", mlxFiles()},
		{"gguf", map[string][]byte{"model.gguf": weights(1)}},
	} {
		t.Run(tc.format, func(t *testing.T) {
			reg := registrytest.Start(t)
			name := reg.Host + "/Org/Model:Tag"
			s := newSide(t)
			m := s.create(name, tc.files, "You are a test.")
			if string(m.Format) != tc.format {
				t.Fatalf("got format %s", m.Format)
			}
			checkEvents(t, s.mustPush(name), "pushing", m, "retrieving manifest", "pushing manifest", "success")
			s.delete(name)
			if got := s.names(); got != "" {
				t.Fatalf("got %s", got)
			}
			checkEvents(t, s.mustPull(name), "pulling", m, pullStatuses...)
			s.check(name, m.Digest)
			if got := s.get(name); got.System != "You are a test." || got.Format != m.Format {
				t.Errorf("got %+v", got)
			}

			other := newSide(t)
			checkEvents(t, other.mustPull(name), "pulling", m, pullStatuses...)
			other.check(name, m.Digest)
		})
	}
}

func TestPushSendsOnlyWhatIsMissing(t *testing.T) {
	reg := registrytest.Start(t)
	s := newSide(t)
	name := reg.Host + "/org/model"
	m := s.create(name, map[string][]byte{"model.gguf": weights(1)}, "")
	s.mustPush(name)
	patches := 0
	for _, r := range reg.Log() {
		if r.Method == http.MethodPatch {
			patches++
			if r.Header.Get("X-Redirect-Uploads") != "1" || r.Header.Get("Content-Range") == "" {
				t.Errorf("got %v", r.Header)
			}
		}
	}
	if patches < testSize/testPart {
		t.Errorf("got %d chunks", patches)
	}

	reg.ClearLog()
	checkEvents(t, s.mustPush(name), "pushing", m, "retrieving manifest", "pushing manifest", "success")
	for _, r := range reg.Log() {
		if r.Method == http.MethodPatch || r.Method == http.MethodPost {
			t.Errorf("got %s %s", r.Method, r.Path)
		}
	}
}

// A layer that was taken over from another model of the registry is not sent again.
func TestPushMountsLayers(t *testing.T) {
	reg := registrytest.Start(t)
	s := newSide(t)
	base, derived := reg.Host+"/org/base", reg.Host+"/other/derived"
	content := weights(1)
	s.create(base, map[string][]byte{"model.gguf": content}, "")
	s.mustPush(base)
	s.createFrom(derived, base)
	reg.ClearLog()
	s.mustPush(derived)
	mounted := false
	for _, r := range reg.Log() {
		mounted = mounted || r.Method == http.MethodPost && strings.Contains(r.Query, "mount="+strings.ReplaceAll(digestOf(content), ":", "%3A")) && strings.Contains(r.Query, "from=org%2Fbase")
		if r.Method == http.MethodPatch && r.Header.Get("Content-Length") == "65536" {
			t.Error("the weights were sent again")
		}
	}
	if !mounted {
		t.Error("nothing was mounted")
	}
	other := newSide(t)
	other.mustPull(derived)
	other.check(derived, s.get(derived).Digest)
}

func TestPullInParts(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	s := newSide(t)
	s.mustPull(name)
	s.check(name, m.Digest)
	ranges := rangesOf(reg.Log(), blob)
	if len(ranges) != (testSize+testPart-1)/testPart || asked(t, ranges) != testSize || reg.BlobBytes(blob) != testSize {
		t.Errorf("got %d ranges of %d bytes, %d sent", len(ranges), asked(t, ranges), reg.BlobBytes(blob))
	}
	for _, r := range reg.Log() {
		if strings.Contains(r.Path, "/manifests/") && r.Header.Get("Accept") != mediaManifest {
			t.Errorf("got %v", r.Header)
		}
	}

	// The next pull finds all of it here.
	reg.ClearLog()
	checkEvents(t, s.mustPull(name), "pulling", m, pullStatuses...)
	if log := reg.Log(); len(log) != 1 {
		t.Errorf("got %+v", log)
	}
}

// No more bodies than allowed are under way, however many pulls there are.
func TestStreamsAreBounded(t *testing.T) {
	reg := registrytest.Start(t)
	name, _, _ := published(t, reg)
	gate := make(chan struct{})
	var now, most atomic.Int64
	var began atomic.Bool
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		// The configuration comes first, and alone.
		if registrytest.IsBlob("")(r) && began.Swap(true) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-gate
		}
		next.ServeHTTP(w, r)
	})
	s := newSide(t, func(p *Params) { p.Streams = 3 })
	done := make(chan error)
	go func() { _, err := s.pull(name); done <- err }()
	eventually(t, "three bodies", func() bool { return now.Load() == 3 })
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// The proxy's handler may end a moment after the client has all of a body.
	if n := most.Load(); n > 6 {
		t.Errorf("got %d bodies at once", n)
	}
}

func TestUpdate(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, old := published(t, reg)
	s := newSide(t)
	s.mustPull(name)

	author := newSide(t)
	updated := author.create(name, map[string][]byte{"model.gguf": weights(2)}, "")
	author.mustPush(name)

	// What fails leaves the old one as it is.
	reg.SetFault(registrytest.CutAfter(1000, registrytest.IsBlob(digestOf(weights(2)))))
	if _, err := s.pullWith(t.Context(), name, &events{}); err != nil {
		// With every request cut, 1000 bytes at a time, it takes long but goes on.
		t.Fatalf("a pull that makes progress gave up: %v", err)
	}
	reg.SetFault(nil)
	s.check(name, updated.Digest)
	if updated.Digest == old.Digest {
		t.Fatal("nothing was updated")
	}
	if has, err := s.store.HasBlob(blob); has || err != nil {
		t.Errorf("the old weights: %v, %v", has, err)
	}
}

func TestUpdateTellsWhatItRemoves(t *testing.T) {
	reg := registrytest.Start(t)
	name, _, _ := published(t, reg)
	s := newSide(t)
	s.mustPull(name)
	author := newSide(t)
	updated := author.create(name, map[string][]byte{"model.gguf": weights(2)}, "")
	author.mustPush(name)
	want := slices.Insert(slices.Clone(pullStatuses), 3, "removing unused layers")
	checkEvents(t, s.mustPull(name), "pulling", updated, want...)
}

func TestPullOfWhatIsNotThere(t *testing.T) {
	reg := registrytest.Start(t)
	s := newSide(t)
	e, err := s.pull(reg.Host + "/org/nothing")
	if err == nil || err.Error() != "pull model manifest: file does not exist" || len(e.all) != 1 || e.all[0].Status != "pulling manifest" {
		t.Errorf("got %v, %v", err, e.all)
	}
	if len(s.unfinished()) > 0 {
		t.Errorf("left behind: %v", s.unfinished())
	}
}

func TestPushOfWhatIsNotThere(t *testing.T) {
	reg := registrytest.Start(t)
	s := newSide(t)
	if _, err := s.push(reg.Host + "/org/nothing"); !errors.Is(err, errdefs.ErrNotFound) || len(reg.Log()) > 0 {
		t.Errorf("got %v, %v", err, reg.Log())
	}
}

func TestInsecureMustBeAskedFor(t *testing.T) {
	reg := registrytest.Start(t)
	s := newSide(t)
	for name, want := range map[string]string{
		"http://" + reg.Host + "/org/m": "insecure protocol http",
		reg.Host + "/org/m":             `does not speak https; use the option "insecure"`,
	} {
		err := s.client.Pull(t.Context(), parse(t, name), Options{}, func(_ progress) {})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if len(reg.Log()) > 0 {
		t.Errorf("got %v", reg.Log())
	}
}
