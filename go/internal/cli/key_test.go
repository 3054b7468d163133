package cli

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/config"
)

// runWithKeys runs a command with a list of API keys in its configuration.
func runWithKeys(host config.Host, keys []string, args ...string) result {
	var out, errOut bytes.Buffer
	code := Run(context.Background(), Params{
		Config: config.Config{Host: host, APIKeys: keys},
		In:     strings.NewReader(""), Out: &out, Err: &errOut,
	}, args)
	return result{code, out.String(), errOut.String()}
}

func TestCommandsSendTheFirstKey(t *testing.T) {
	f := newFakeServer(t)
	var sent atomic.Value
	f.mux.HandleFunc("DELETE /api/delete", func(_ http.ResponseWriter, r *http.Request) {
		sent.Store(r.Header.Get("Authorization"))
	})
	for _, tt := range []struct {
		keys []string
		want string
	}{
		{nil, ""},
		{[]string{"one"}, "Bearer one"},
		{[]string{"one", "two"}, "Bearer one"},
	} {
		if r := runWithKeys(f.host(t), tt.keys, "rm", "m"); r.code != 0 || sent.Load() != tt.want {
			t.Errorf("%v: sent %q, %+v", tt.keys, sent.Load(), r)
		}
	}
}

// A server that redirects to another one does not get the other one the key.
func TestKeyStaysWithItsServer(t *testing.T) {
	var leaked atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		leaked.Store(r.Header.Get("Authorization") != "")
	}))
	t.Cleanup(other.Close)
	f := newFakeServer(t)
	f.mux.Handle("GET /api/tags", http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	runWithKeys(f.host(t), []string{"secret"}, "list")
	if leaked.Load() {
		t.Error("the key went to another server")
	}
}

func TestRefusedKeyIsExplained(t *testing.T) {
	f := newFakeServer(t)
	f.answers("DELETE /api/delete", 401, `{"error": "unauthorized"}`)
	f.answers("POST /api/pull", 401, `{"error": "unauthorized"}`)
	for _, args := range [][]string{{"rm", "m"}, {"pull", "m"}} {
		if r := runWithKeys(f.host(t), nil, args...); r.code != 1 || !strings.Contains(r.err, "OLLMLX_API_KEY") {
			t.Errorf("%v: %+v", args, r)
		}
	}
}
