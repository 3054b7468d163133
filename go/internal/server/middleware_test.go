package server

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func ok(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }

// CVE-2024-28224: a web page that rebinds its name to this machine sends its own name as Host.
func TestDNSRebindingCVE2024_28224(t *testing.T) {
	hostname, _ := os.Hostname()
	own := ""
	if addrs, err := net.InterfaceAddrs(); err == nil && len(addrs) > 0 {
		own = strings.Split(addrs[len(addrs)-1].String(), "/")[0]
	}
	for _, tt := range []struct {
		host  string
		allow bool
	}{
		{"", true}, {"localhost", true}, {"LOCALHOST:11434", true}, {"127.0.0.1:11434", true}, {"127.9.9.9", true},
		{"[::1]:11434", true}, {"[::1]", true}, {"0.0.0.0:11434", true}, {"[::]:1", true}, {"[::ffff:127.0.0.1]:1", true},
		{"192.168.1.20:11434", true}, {"10.0.0.1", true}, {"172.16.0.1", true}, {"[fd00::1]", true},
		{hostname, true}, {strings.ToUpper(hostname) + ":80", true}, {own, true},
		{"mac.local:11434", true}, {"x.localhost", true}, {"host.docker.internal", true},
		{"evil.com", false}, {"evil.com:11434", false}, {"localhost.evil.com", false}, {"notlocalhost", false},
		{"evil.com.", false}, {"localx", false}, {"8.8.8.8", false}, {"[2001:4860:4860::8888]:80", false},
		{"127.0.0.1.evil.com", false}, {"127.0.0.1.nip.io", false}, {"local", false}, {"internal", false}, {"2130706433", false},
		{"localhost:80.evil.com", false}, {"127.0.0.1:evil.com", false}, {"::1%evil.com", false}, {"[::1%evil.com", false}, {"[fe80::1%eth0]:80", false},
	} {
		s := &Server{log: quiet()}
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = tt.host
		s.checkHost(http.HandlerFunc(ok)).ServeHTTP(rec, r)
		if allowed := rec.Code == http.StatusOK; allowed != tt.allow || (!allowed && rec.Code != http.StatusForbidden) {
			t.Errorf("Host %q: got %d, want allowed %v", tt.host, rec.Code, tt.allow)
		}
		if rec.Body.Len() != 0 {
			t.Errorf("Host %q: a body: %s", tt.host, rec.Body)
		}
		// On a public address any name may be the server's.
		s.open.Store(true)
		rec = httptest.NewRecorder()
		s.checkHost(http.HandlerFunc(ok)).ServeHTTP(rec, r)
		if rec.Code != http.StatusOK {
			t.Errorf("Host %q on a public address: got %d", tt.host, rec.Code)
		}
	}
}

func TestLoopbackListeners(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "0.0.0.0:1": false, "[::]:1": false, "192.168.0.1:1": false} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if loopback(a) != want {
			t.Errorf("%s: got %v", addr, !want)
		}
	}
	if !loopback(&net.UnixAddr{Name: "/x", Net: "unix"}) {
		t.Error("a unix socket is open to the network")
	}
}

func TestOrigins(t *testing.T) {
	o, err := newOrigins([]string{"https://chat.example.com", "https://*.example.org", "chrome-extension://*", "http://slash.example/"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		origin string
		status int
	}{
		{"", 200}, {"http://localhost", 200}, {"http://localhost:3000", 200}, {"https://127.0.0.1:8443", 200}, {"HTTP://LOCALHOST:1", 200},
		{"http://0.0.0.0:1", 200}, {"app://obsidian.md", 200}, {"file://", 200}, {"tauri://localhost", 200}, {"vscode-webview://abc", 200}, {"vscode-file://vscode-app", 200},
		{"https://chat.example.com", 200}, {"https://a.example.org", 200}, {"chrome-extension://abcdef", 200}, {"http://slash.example", 200},
		{"http://127.0.0.1:11434", 200},
		{"https://evil.com", 403}, {"http://localhost.evil.com", 403}, {"http://localhostevil.com", 403}, {"https://chat.example.com.evil.com", 403},
		{"https://example.org", 403}, {"null", 403}, {"http://chat.example.com", 403},
	} {
		for _, method := range []string{"POST", "OPTIONS"} {
			rec := httptest.NewRecorder()
			r := httptest.NewRequest(method, "/api/chat", nil)
			r.Host = "127.0.0.1:11434"
			if tt.origin != "" {
				r.Header.Set("Origin", tt.origin)
			}
			o.middleware(http.HandlerFunc(ok)).ServeHTTP(rec, r)
			want := tt.status
			if method == "OPTIONS" && want == 200 {
				want = http.StatusNoContent
			}
			if rec.Code != want {
				t.Errorf("%s from %q: got %d, want %d", method, tt.origin, rec.Code, want)
			}
			allowed := rec.Header().Get("Access-Control-Allow-Origin")
			cross := tt.origin != "" && tt.origin != "http://127.0.0.1:11434" && tt.status == 200
			if (cross && allowed != tt.origin) || (!cross && allowed != "") {
				t.Errorf("%s from %q: allow-origin is %q", method, tt.origin, allowed)
			}
			if cross && method == "OPTIONS" && !strings.Contains(rec.Header().Get("Access-Control-Allow-Headers"), "x-stainless-os") {
				t.Errorf("preflight from %q allows headers %q", tt.origin, rec.Header().Get("Access-Control-Allow-Headers"))
			}
		}
	}
	for _, bad := range []string{"example.com", "http://*.a.*"} {
		if _, err := newOrigins([]string{bad}); err == nil {
			t.Errorf("origin %q was taken", bad)
		}
	}
	all, err := newOrigins([]string{"*"})
	if err != nil || !all.allows("https://anything.example") {
		t.Errorf("*: %v", err)
	}
}

func TestRequestID(t *testing.T) {
	s := &Server{log: quiet()}
	for id, keep := range map[string]bool{"abc-1.2_X": true, "": false, "a b": false, "x\ny": false, strings.Repeat("a", 65): false} {
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header[requestIDHeader] = []string{id}
		var inner string
		s.withRequestID(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { inner = requestID(r.Context()) })).ServeHTTP(rec, r)
		got := rec.Header().Get(requestIDHeader)
		if got != inner || got == "" || (got == id) != keep {
			t.Errorf("id %q: header %q, context %q", id, got, inner)
		}
	}
}

func TestPanicsStayInTheirRequest(t *testing.T) {
	s := &Server{log: quiet()}
	boom := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			_, _ = w.Write([]byte("begun"))
		}
		panic("boom")
	}
	srv := httptest.NewServer(s.recoverPanics(s.withRequestID(s.logRequests(http.HandlerFunc(boom)))))
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/early")
	if err != nil || resp.StatusCode != http.StatusInternalServerError {
		t.Fatalf("got %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	// A response that was begun must not look complete.
	resp, err = http.Get(srv.URL + "/late")
	if err == nil {
		_, err = readAll(resp)
	}
	if err == nil {
		t.Error("a response that broke off looks whole")
	}
}

func readAll(resp *http.Response) (string, error) {
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
