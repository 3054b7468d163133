package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

// CVE-2024-37032: a digest with a path in it must never become part of a path.
func TestDigestTraversalCVE2024_37032(t *testing.T) {
	b := newBed(t)
	victim := filepath.Join(b.dir, "victim")
	if err := os.WriteFile(victim, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{
		"sha256:../../victim", "..%2f..%2fvictim", "%2e%2e%2fvictim", "sha256-..%2fvictim", "sha256:" + strings.Repeat("a", 63) + "/", "sha256:" + strings.Repeat("g", 64),
		"sha256:" + strings.Repeat("a", 64) + "%2f..", "sha512:" + strings.Repeat("a", 64), strings.Repeat("a", 64), "sha256:" + strings.Repeat("a", 64) + "%00",
	} {
		for _, method := range []string{"HEAD", "POST"} {
			r := b.do(method, "/api/blobs/"+digest, "overwritten")
			if r.status != 400 && r.status != 404 && r.status != 405 {
				t.Errorf("%s %s: %d %s", method, digest, r.status, r.body)
			}
		}
		r := b.post("/api/create", fmt.Sprintf(`{"model": "x", "files": {"config.json": %q}}`, strings.ReplaceAll(digest, "%2f", "/")))
		if r.status != 400 {
			t.Errorf("create with %s: %d %s", digest, r.status, r.body)
		}
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "secret" {
		t.Errorf("the file beside the blobs is %q, %v", got, err)
	}
}

// CVE-2024-39719, CVE-2024-39722: an answer must not tell whether a file of the server exists.
func TestFileExistenceOracleCVE2024_39719(t *testing.T) {
	b := newBed(t)
	exists := filepath.Join(b.dir, "exists")
	if err := os.WriteFile(exists, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(b.dir, "absent")
	for _, form := range []string{
		`{"model": "x", "from": %q}`, `{"model": %q, "from": "y"}`, `{"model": "x", "files": {%q: "sha256:` + strings.Repeat("0", 64) + `"}}`,
	} {
		for _, shape := range []func(string) string{
			func(p string) string { return p },
			func(p string) string { return "../../../../../../../.." + p },
			func(p string) string { return "file://" + p },
		} {
			have, none := b.post("/api/create", fmt.Sprintf(form, shape(exists))), b.post("/api/create", fmt.Sprintf(form, shape(absent)))
			hide := func(r reply) string {
				return fmt.Sprint(r.status, strings.NewReplacer("exists", "F", "absent", "F").Replace(r.body))
			}
			if have.status < 400 || hide(have) != hide(none) {
				t.Errorf("%s: %s for a file that exists, %s for none", form, hide(have), hide(none))
			}
		}
	}
}

// CVE-2024-39721: create must not open what a client names, for example a device that never ends.
func TestCreateDoesNotReadPathsCVE2024_39721(t *testing.T) {
	b := newBed(t)
	for _, path := range []string{"/dev/random", "/dev/zero", "../../dev/random"} {
		began := time.Now()
		if r := b.post("/api/create", fmt.Sprintf(`{"model": "x", "from": %q}`, path)); r.status < 400 || time.Since(began) > 2*time.Second {
			t.Errorf("%s: %d %s after %v", path, r.status, r.body, time.Since(began))
		}
	}
}

// CVE-2025-0315 and its like: what a client sends must not make the server take memory without bound.
func TestUnboundedBodiesCVE2025_0315(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) { p.MaxBody = 1000 })
	b.create("m", nil)
	big := `{"model": "m", "prompt": "` + strings.Repeat("x", 1000) + `"}`
	for _, path := range []string{"/api/generate", "/api/chat", "/api/show", "/api/create", "/api/copy", "/api/pull", "/api/push", "/api/embed", "/api/embeddings"} {
		b.expect(path, big, http.StatusRequestEntityTooLarge, "request body is larger than 1000 bytes")
	}
	if r := b.do("DELETE", "/api/delete", big); r.status != http.StatusRequestEntityTooLarge {
		t.Errorf("delete: %d", r.status)
	}
	// Uploads are not JSON and may be larger.
	b.upload(map[string][]byte{"weights": make([]byte, 5000)})
}

// A client that declares more than it sends leaves no blob behind.
func TestUploadThatBreaksOff(t *testing.T) {
	b := newBed(t)
	digest := "sha256:" + strings.Repeat("0", 64)
	conn, err := net.Dial("tcp", b.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(conn, "POST /api/blobs/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nshort", digest)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	until(t, "the blob directory is empty", func() bool {
		entries, err := os.ReadDir(filepath.Join(b.dir, "blobs"))
		return err == nil && len(entries) == 0
	})
	if r := b.do("HEAD", "/api/blobs/"+digest, ""); r.status != 404 {
		t.Errorf("got %d", r.status)
	}
}

// Errors do not tell where the store is.
func TestErrorsHidePaths(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	if err := os.RemoveAll(filepath.Join(b.dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	for path, body := range map[string]string{
		"/api/create": `{"model": "n", "from": "m"}`, "/api/show": `{"model": "m"}`, "/api/blobs/sha256:" + strings.Repeat("0", 64): "x",
	} {
		if r := b.post(path, body); strings.Contains(r.body, b.dir) {
			t.Errorf("%s: %s", path, r.body)
		}
	}

	// A runner that does not start has a log, and one that fails may quote a file.
	const trace = `it did not start: File "/usr/lib/python3/mlx_lm/utils.py", line 5: open /tmp/ollmlx-1/r1.sock: no; see /v1/models and http://host/usr/lib`
	const public = `it did not start: File "utils.py", line 5: open r1.sock: no; see /v1/models and http://host/usr/lib`
	b = newBed(t)
	b.create("m", nil)
	chat := `{"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], "stream": %t}`
	requests := map[string]string{
		"/api/generate": `{"model": "m", "prompt": "x", "stream": %t}`, "/api/chat": chat, "/v1/chat/completions": chat, "/v1/messages": chat,
		"/v1/completions": `{"model": "m", "prompt": "x", "stream": %t}`, "/v1/responses": `{"model": "m", "input": "x", "stream": %t}`,
	}
	check := func(when string) {
		t.Helper()
		for path, body := range requests {
			for _, stream := range []bool{false, true} {
				r := b.post(path, fmt.Sprintf(body, stream))
				if text := strings.ReplaceAll(r.body, `\"`, `"`); !strings.Contains(text, public) || strings.Contains(text, "ollmlx-1") {
					t.Errorf("%s: %s, stream %t: got %s", when, path, stream, r.body)
				}
			}
		}
	}
	b.starter.OnLoad = func(context.Context, *storeModel, func(*runnerpb.LoadProgress)) error { return errors.New(trace) }
	check("start")
	b = newBed(t)
	b.create("m", nil)
	b.script(schedtest.Content("a"), schedtest.Failed(codes.Internal, trace))
	check("answer")
}
