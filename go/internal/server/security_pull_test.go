package server

import (
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/registry"
)

// What a hostile registry sends, from the request of a client to the store.

// pullFrom pulls from a registry that is this handler, and returns the answer and what the store holds afterwards.
func pullFrom(t *testing.T, handler http.HandlerFunc) (answer string, files []string) {
	t.Helper()
	evil := httptest.NewServer(handler)
	defer evil.Close()
	b := newBed(t)
	b.server.params.Puller = registry.New(registry.Params{Store: b.store, KeyFile: filepath.Join(t.TempDir(), "key"), RetryDelay: time.Millisecond, Retries: 1, Logger: quiet()})
	r := b.post("/api/pull", fmt.Sprintf(`{"model": "%s/ns/model", "insecure": true}`, strings.TrimPrefix(evil.URL, "http://")))
	if strings.Contains(r.body, b.dir) {
		t.Errorf("the answer tells where the store is: %s", r.body)
	}
	err := filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "lock" {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if list := b.do("GET", "/api/tags", ""); list.body != `{"models":[]}` {
		t.Errorf("listed: %s", list.body)
	}
	return r.body, files
}

func failed(t *testing.T, what, answer string) {
	t.Helper()
	if !strings.Contains(answer, `"error":`) || strings.Contains(answer, `"success"`) {
		t.Errorf("%s: %s", what, answer)
	}
}

// CVE-2026-7020 and CVE-2024-37032 lead out of the store by a digest in a manifest, CVE-2025-1975 crashes by a short one.
func TestPulledDigestsCVE2026_7020(t *testing.T) {
	const hash = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for _, digest := range []string{"sha256:../../../../victim", "../../victim", "sha256-../victim", "", "s", "sha256:", "sha256:12", "sha512:" + hash[7:], hash + "/../x", strings.ToUpper(hash) + "0"} {
		for _, manifest := range []string{
			fmt.Sprintf(`{"schemaVersion": 2, "config": {"digest": %q, "size": 2}, "layers": []}`, digest),
			fmt.Sprintf(`{"schemaVersion": 2, "config": {"digest": %q, "size": 2}, "layers": [{"digest": %q, "size": 2, "mediaType": "application/vnd.ollama.image.model"}]}`, hash, digest),
		} {
			var blobs atomic.Int32
			answer, files := pullFrom(t, func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					blobs.Add(1)
				}
				_, _ = io.WriteString(w, manifest)
			})
			failed(t, digest, answer)
			if len(files) > 0 || blobs.Load() > 0 {
				t.Errorf("%q: %d requests for blobs, the store holds %q", digest, blobs.Load(), files)
			}
		}
	}
}

// CVE-2024-12886: a small answer that unpacks to an endless one must not fill the memory, as a manifest or as a token.
func TestRegistryBombCVE2024_12886(t *testing.T) {
	endless := func(w http.ResponseWriter) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		zeros := make([]byte, 1<<20)
		for range 4096 {
			if _, err := z.Write(zeros); err != nil {
				return
			}
		}
	}
	for name, handler := range map[string]http.HandlerFunc{
		"manifest": func(w http.ResponseWriter, _ *http.Request) { endless(w) },
		"error": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			endless(w)
		},
		"token": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				endless(w)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s",scope="x"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		answer, files := pullFrom(t, handler)
		runtime.ReadMemStats(&after)
		failed(t, name, answer)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<20 || len(answer) > 10_000 {
			t.Errorf("%s: %d MiB were allocated, the answer has %d bytes", name, grown>>20, len(answer))
		}
		if len(files) > 0 {
			t.Errorf("%s: the store holds %q", name, files)
		}
	}
}

// CVE-2025-51471: a registry names another host as the one that gives tokens, to be sent the user's signature.
func TestTokenRealmCVE2025_51471(t *testing.T) {
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	answer, _ := pullFrom(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s",scope="x"`, other.URL))
		w.WriteHeader(http.StatusUnauthorized)
	})
	failed(t, "realm of another host", answer)
	if n := asked.Load(); n > 0 {
		t.Errorf("the other host was asked %d times", n)
	}
}

// A registry that announces one content and sends another leaves no model and no blob behind.
func TestPulledBytesAreVerified(t *testing.T) {
	const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	answer, files := pullFrom(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			_, _ = fmt.Fprintf(w, `{"schemaVersion": 2, "config": {"digest": %q, "size": 2}, "layers": []}`, digest)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("{}"))
	})
	failed(t, "wrong bytes", answer)
	for _, f := range files {
		if strings.HasSuffix(f, strings.Replace(digest, ":", "-", 1)) {
			t.Errorf("the store holds %q", files)
		}
	}
}

// Without a wish for insecure connections, no pull makes this machine ask others in its own network (Ollama's issue 16236).
func TestPullDoesNotReachIntoTheNetwork(t *testing.T) {
	var asked atomic.Int32
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer inside.Close()
	answer, _ := pullFrom(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "file:///etc/passwd", http.StatusTemporaryRedirect)
	})
	failed(t, "redirect to a file", answer)

	b := newBed(t)
	b.server.params.Puller = registry.New(registry.Params{Store: b.store, RetryDelay: time.Millisecond, Retries: 1, Logger: quiet()})
	host := strings.TrimPrefix(inside.URL, "http://")
	for _, name := range []string{host + "/ns/model", "http://" + host + "/ns/model"} {
		failed(t, name, b.post("/api/pull", fmt.Sprintf(`{"model": %q}`, name)).body)
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("plain http was spoken to %s, %d times", host, n)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "manifests", host)); err == nil {
		t.Error("the failed pull left a directory behind")
	}
}
