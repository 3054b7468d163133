package server

import (
	"fmt"
	"net/http"
	"strings"
)

// localOrigins may always call the API from a browser: pages of this machine and the shells of desktop programs.
var localOrigins = []string{
	"http://localhost", "https://localhost", "http://localhost:*", "https://localhost:*",
	"http://127.0.0.1", "https://127.0.0.1", "http://127.0.0.1:*", "https://127.0.0.1:*",
	"http://0.0.0.0", "https://0.0.0.0", "http://0.0.0.0:*", "https://0.0.0.0:*",
	"app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*",
}

// corsHeaders may be sent by a page of an allowed origin. The last ones are those of OpenAI's client library.
var corsHeaders = strings.Join([]string{
	"Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", requestIDHeader,
	"anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access", "x-api-key",
	"OpenAI-Beta", "x-stainless-arch", "x-stainless-async", "x-stainless-custom-poll-interval",
	"x-stainless-helper-method", "x-stainless-lang", "x-stainless-os", "x-stainless-package-version",
	"x-stainless-poll-helper", "x-stainless-retry-count", "x-stainless-runtime", "x-stainless-runtime-version",
	"x-stainless-timeout",
}, ",")

const corsMethods = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"

// origins decides which web pages may call the API (CORS).
type origins struct {
	any      bool
	exact    map[string]bool
	patterns []pattern
}

// pattern is an origin with one "*" in it, which stands for any text.
type pattern struct{ prefix, suffix string }

func (p pattern) matches(origin string) bool {
	return len(origin) >= len(p.prefix)+len(p.suffix) && strings.HasPrefix(origin, p.prefix) && strings.HasSuffix(origin, p.suffix)
}

func newOrigins(extra []string) (*origins, error) {
	o := &origins{exact: map[string]bool{}}
	for _, s := range append(append([]string(nil), localOrigins...), extra...) {
		s = strings.ToLower(strings.TrimSuffix(strings.TrimSpace(s), "/"))
		switch {
		case s == "":
		case s == "*":
			o.any = true
		case strings.Count(s, "*") > 1:
			return nil, fmt.Errorf("origin %q has more than one *", s)
		case !strings.Contains(s, "://"):
			return nil, fmt.Errorf("origin %q has no scheme; write for example \"https://%s\"", s, s)
		case strings.Contains(s, "*"):
			prefix, suffix, _ := strings.Cut(s, "*")
			o.patterns = append(o.patterns, pattern{prefix, suffix})
		default:
			o.exact[s] = true
		}
	}
	return o, nil
}

func (o *origins) allows(origin string) bool {
	origin = strings.ToLower(origin)
	if o.any || o.exact[origin] {
		return true
	}
	for _, p := range o.patterns {
		if p.matches(origin) {
			return true
		}
	}
	return false
}

// middleware refuses requests of foreign pages, answers preflights, and marks the answers to allowed pages as theirs.
func (o *origins) middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		same := origin == "http://"+r.Host || origin == "https://"+r.Host
		switch {
		case origin == "" || same:
			if r.Method == http.MethodOptions {
				w.WriteHeader(http.StatusNoContent)
				return
			}
		case !o.allows(origin):
			w.WriteHeader(http.StatusForbidden)
			return
		default:
			h := w.Header()
			h.Add("Vary", "Origin")
			h.Set("Access-Control-Allow-Origin", origin)
			if o.any {
				h.Set("Access-Control-Allow-Origin", "*")
			}
			if r.Method == http.MethodOptions {
				h.Set("Access-Control-Allow-Methods", corsMethods)
				h.Set("Access-Control-Allow-Headers", corsHeaders)
				h.Set("Access-Control-Max-Age", "43200")
				w.WriteHeader(http.StatusNoContent)
				return
			}
			h.Set("Access-Control-Expose-Headers", requestIDHeader+","+anthropicRequestIDHeader)
		}
		next.ServeHTTP(w, r)
	})
}
