package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/registry/registrytest"
)

// A connection that drops in the middle of a part is taken up where it broke.
func TestDroppedConnections(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	reg.SetFault(registrytest.CutAfter(40_000, registrytest.IsBlob(blob)))
	s := newSide(t)
	checkEvents(t, s.mustPull(name), "pulling", m, pullStatuses...)
	s.check(name, m.Digest)
	if got := reg.BlobBytes(blob); got != testSize {
		t.Errorf("got %d bytes in all, want %d: what had come was asked for again", got, testSize)
	}
}

// A registry that fails for a while is asked again; one that fails for good ends the pull, and what came is kept.
func TestServerErrors(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	var served atomic.Int64
	fail := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if registrytest.IsBlob(blob)(r) && served.Add(1) > 5 {
			http.Error(w, `{"errors":[{"code":"UNKNOWN","message":"out of \u001b[31morder"}]}`, http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	}
	reg.SetFault(fail)
	s := newSide(t)
	_, err := s.pull(name)
	if err == nil || !strings.Contains(err.Error(), "the registry answered 500 Internal Server Error: out of [31morder") {
		t.Fatalf("got %v", err)
	}
	if got := s.names(); got != "" {
		t.Errorf("list shows %s", got)
	}
	came := reg.BlobBytes(blob)
	s.restart()
	reg.SetFault(nil)
	reg.ClearLog()
	s.mustPull(name)
	s.check(name, m.Digest)
	if got := asked(t, rangesOf(reg.Log(), blob)); got >= testSize || got < testSize-came {
		t.Errorf("asked for %d bytes after %d had come", got, came)
	}

	for _, busy := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		var n atomic.Int64
		reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n.Add(1)%2 == 1 {
				w.WriteHeader(busy)
				return
			}
			next.ServeHTTP(w, r)
		})
		newSide(t, func(p *Params) { p.Retries = 20 }).mustPull(name)
	}
}

func TestStalledConnections(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	var n atomic.Int64
	reg.SetFault(registrytest.StallAfter(30_000, func(r *http.Request) bool { return registrytest.IsBlob(blob)(r) && n.Add(1) <= 3 }))
	s := newSide(t, func(p *Params) { p.StallTimeout = 200 * time.Millisecond; p.Retries = 20 })
	s.mustPull(name)
	s.check(name, m.Digest)
	if got := reg.BlobBytes(blob); got != testSize {
		t.Errorf("got %d bytes in all, want %d", got, testSize)
	}

	// A registry that never answers does not hold a pull for ever.
	reg.SetFault(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() })
	if _, err := s.pull(name); err == nil || err.Error() != "pull model manifest: the connection stalled" {
		t.Errorf("got %v", err)
	}
}

// Wrong content is found, removed, and told in one sentence; the next pull begins anew.
func TestWrongBytes(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	reg.SetFault(registrytest.Change(func(r *http.Request) func([]byte) []byte {
		if !registrytest.IsBlob(blob)(r) || r.Header.Get("Range") != "bytes=65536-131071" {
			return func(b []byte) []byte { return b }
		}
		return func(b []byte) []byte {
			b = append([]byte{}, b...)
			b[0] ^= 1
			return b
		}
	}))
	s := newSide(t)
	_, err := s.pull(name)
	if err == nil || !strings.HasPrefix(err.Error(), `digest mismatch, expected "`+blob) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("got %v", err)
	}
	if got := s.names(); got != "" {
		t.Errorf("list shows %s", got)
	}
	if has, err := s.store.HasBlob(blob); has || err != nil {
		t.Errorf("got %v, %v", has, err)
	}
	reg.SetFault(nil)
	reg.ClearLog()
	s.mustPull(name)
	s.check(name, m.Digest)
	if got := asked(t, rangesOf(reg.Log(), blob)); got != testSize {
		t.Errorf("asked for %d bytes, want all %d again", got, testSize)
	}
}

func TestAnswersThatAreNotWhatWasAskedFor(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, _ := published(t, reg)
	for what, tc := range map[string]struct {
		fault func(w http.ResponseWriter, r *http.Request)
		want  string
	}{
		"another range": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-10/1060921")
			w.WriteHeader(http.StatusPartialContent)
		}, "the registry sent the range"},
		"another size": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", strings.Replace(r.Header.Get("Range"), "=", " ", 1)+"/7")
			w.WriteHeader(http.StatusPartialContent)
		}, "has 7 bytes at the registry"},
		"another status": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }, "answered 204"},
		"no such blob":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) }, "has no blob " + blob},
		"packed": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusPartialContent)
		}, `encoded as "gzip"`},
		"a circle": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "redirects too often"},
		"nowhere":  {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusFound) }, "redirects to nowhere"},
		"a file": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		}, "redirects to"},
	} {
		t.Run(what, func(t *testing.T) {
			reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if registrytest.IsBlob(blob)(r) {
					tc.fault(w, r)
					return
				}
				next.ServeHTTP(w, r)
			})
			s := newSide(t)
			if _, err := s.pull(name); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if got := s.names(); got != "" {
				t.Errorf("list shows %s", got)
			}
		})
	}
}

// A registry that ignores ranges is read from the beginning.
func TestRegistryWithoutRanges(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	var n atomic.Int64
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Header.Del("Range")
		if registrytest.IsBlob(blob)(r) && n.Add(1) == 3 {
			registrytest.CutAfter(500_000, registrytest.IsBlob(blob))(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	})
	s := newSide(t)
	checkEvents(t, s.mustPull(name), "pulling", m, pullStatuses...)
	s.check(name, m.Digest)
}

// Two pulls of a blob are one download, which goes on when one of them leaves.
func TestSharedDownload(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	gate := make(chan struct{})
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if registrytest.IsBlob(blob)(r) {
			<-gate
		}
		next.ServeHTTP(w, r)
	})
	s := newSide(t)
	leaving, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	begun := make([]chan struct{}, 3)
	errs := make([]error, 3)
	for i := range 3 {
		begun[i] = make(chan struct{})
		once := sync.OnceFunc(func() { close(begun[i]) })
		ctx := t.Context()
		if i == 0 {
			ctx = leaving
		}
		wg.Go(func() {
			_, errs[i] = s.pullWith(ctx, name, &events{on: func(p progress) {
				if p.Digest == blob {
					once()
				}
			}})
		})
		<-begun[i]
	}
	leave()
	eventually(t, "one that left", func() bool {
		s.client.mu.Lock()
		defer s.client.mu.Unlock()
		return s.client.transfers[blob] != nil && s.client.transfers[blob].refs == 2
	})
	close(gate)
	wg.Wait()
	if !errors.Is(errs[0], context.Canceled) || errs[1] != nil || errs[2] != nil {
		t.Fatalf("got %v", errs)
	}
	s.check(name, m.Digest)
	if got := reg.BlobBytes(blob); got != testSize {
		t.Errorf("got %d bytes, want %d once", got, testSize)
	}
}

// The last one to leave ends the download; what has come is kept.
func TestLastToLeaveEndsTheDownload(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	var n atomic.Int64
	reg.SetFault(registrytest.StallAfter(0, func(r *http.Request) bool { return registrytest.IsBlob(blob)(r) && n.Add(1) > 6 }))
	s := newSide(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.pullWith(ctx, name, &events{on: func(p progress) {
			if p.Digest == blob && p.Completed == 6*testPart {
				cancel()
			}
		}})
		done <- err
	}()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	eventually(t, "the end of all requests", func() bool { return reg.Open() == 0 })
	s.restart()
	reg.SetFault(nil)
	reg.ClearLog()
	e := s.mustPull(name)
	s.check(name, m.Digest)
	if got := asked(t, rangesOf(reg.Log(), blob)); got != testSize-6*testPart {
		t.Errorf("asked for %d bytes, want the missing %d", got, testSize-6*testPart)
	}
	for _, p := range e.all {
		if p.Digest == blob && p.Completed < 6*testPart {
			t.Errorf("got %+v: what had come before does not count", p)
		}
	}
}

// A pull that joined one whose registry fails goes on by itself.
func TestJoinedDownloadThatFails(t *testing.T) {
	bad, good := registrytest.Start(t), registrytest.Start(t)
	badName, blob, _ := published(t, bad)
	goodName, _, m := published(t, good)
	gate := make(chan struct{})
	bad.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if registrytest.IsBlob(blob)(r) {
			<-gate
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	s := newSide(t)
	begun := make(chan struct{})
	once := sync.OnceFunc(func() { close(begun) })
	badDone, goodDone := make(chan error), make(chan error)
	go func() {
		_, err := s.pullWith(t.Context(), badName, &events{on: func(p progress) {
			if p.Digest == blob {
				once()
			}
		}})
		badDone <- err
	}()
	<-begun
	go func() { _, err := s.pull(goodName); goodDone <- err }()
	eventually(t, "a joint download", func() bool {
		s.client.mu.Lock()
		defer s.client.mu.Unlock()
		return s.client.transfers[blob] != nil && s.client.transfers[blob].refs == 2
	})
	close(gate)
	if err := <-badDone; err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("got %v", err)
	}
	if err := <-goodDone; err != nil {
		t.Errorf("got %v", err)
	}
	s.check(goodName, m.Digest)
}

func TestDiskSpaceIsCheckedBefore(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, _ := published(t, reg)
	s := newSide(t, func(p *Params) { p.FreeSpace = func() (int64, error) { return 1000, nil } })
	_, err := s.pull(name)
	if !errors.Is(err, errdefs.ErrPrecondition) || !strings.Contains(err.Error(), "not enough disk space: 1.1 MB are needed for what has still to be downloaded, and 1 KB are free") {
		t.Errorf("got %v", err)
	}
	if len(rangesOf(reg.Log(), blob)) > 0 {
		t.Error("the download began all the same")
	}
	s.restart()
	s.mustPull(name)
}

// A push goes on after connections that break and servers that fail.
func TestPushThroughFaults(t *testing.T) {
	reg := registrytest.Start(t)
	var mu sync.Mutex
	seen := map[string]int{} // by upload
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodPatch {
			next.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		seen[r.URL.Path]++
		n := seen[r.URL.Path]
		mu.Unlock()
		switch n % 4 {
		case 1:
			registrytest.Drop()
		case 3:
			w.WriteHeader(http.StatusBadGateway)
		default:
			next.ServeHTTP(w, r)
		}
	})
	s := newSide(t)
	name := reg.Host + "/org/m"
	m := s.create(name, map[string][]byte{"model.gguf": weights(3)}, "")
	s.mustPush(name)
	reg.SetFault(nil)
	other := newSide(t)
	other.mustPull(name)
	other.check(name, m.Digest)
}

func TestPushThatIsRefused(t *testing.T) {
	reg := registrytest.Start(t)
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPost {
			http.Error(w, `{"errors":[{"code":"DENIED","message":"not yours"}]}`, http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	s := newSide(t)
	name := reg.Host + "/org/m"
	s.create(name, mlxFiles(), "")
	if _, err := s.push(name); err == nil || !strings.Contains(err.Error(), "not yours") {
		t.Errorf("got %v", err)
	}
}

// A model for a later version is refused when its configuration has come, before its weights do.
func TestModelForALaterVersionIsNotPulled(t *testing.T) {
	reg := registrytest.Start(t)
	s := newSide(t)
	name := reg.Host + "/org/model:tag"
	content := weights(1)
	s.create(name, map[string][]byte{"model.gguf": content}, "")
	path := filepath.Join(s.dir, "manifests", reg.Host, "org", "model", "tag")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	config := []byte(`{"model_format": "gguf", "requires": "99.0.0"}`)
	m["config"] = map[string]any{"mediaType": "application/vnd.docker.container.image.v1+json", "digest": digestOf(config), "size": len(config)}
	if raw, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{path: raw, filepath.Join(s.dir, "blobs", strings.Replace(digestOf(config), ":", "-", 1)): config} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.mustPush(name)
	reg.ClearLog()
	other := newSide(t)
	if _, err := other.pull(name); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), "requires version 99.0.0 of Ollama") {
		t.Errorf("got %v", err)
	}
	if len(rangesOf(reg.Log(), digestOf(content))) > 0 || other.names() != "" {
		t.Error("it came all the same")
	}
}
