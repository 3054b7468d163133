package server

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/ollmlx/ollmlx/go/internal/sched"
)

// A body may come compressed; what comes out of it is bounded like any other.
func TestCompressedBody(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) { p.MaxBody = 1 << 20 })
	pack := func(text string, o ...zstd.EOption) string {
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf, o...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.String()
	}
	const body = `{"model": "nope", "input": "hi"}`
	for _, tt := range []struct {
		name, encoding, body string
		status               int
		text                 string
	}{
		{"compressed", "zstd", pack(body), 404, "model 'nope' not found"},
		{"in another case", "ZSTD", pack(body), 404, "model 'nope' not found"},
		{"not compressed", "zstd", body, 400, "reading the request body: "},
		{"cut off", "zstd", pack(strings.Repeat(body, 9))[:40], 400, "reading the request body: "},
		{"empty", "zstd", pack(""), 400, "missing request body"},
		{"a bomb", "zstd", pack(strings.Repeat(" ", 2<<20) + body), 413, "request body is larger than 1048576 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequest("POST", b.http.URL+"/v1/responses", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Encoding", tt.encoding)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := readAll(resp)
			if err != nil || resp.StatusCode != tt.status || !strings.Contains(got, `"message":"`+tt.text) {
				t.Errorf("got %d %s, %v", resp.StatusCode, got, err)
			}
		})
	}
}
