// Package registrytest runs a real registry, that of the distribution project, for tests, and a proxy before it that
// keeps a log and can fail in every way that a network or a hostile server can.
package registrytest

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// binary is the registry, built once by Build.
var binary string

// Main builds the registry and runs the tests; it is for TestMain. The registry is a module of its own, so that what it
// depends on stays out of ours.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "registry")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	_, here, _, _ := runtime.Caller(0)
	binary = filepath.Join(dir, "registry")
	build := exec.Command("go", "build", "-o", binary, "./server")
	build.Dir = filepath.Join(filepath.Dir(here), "..", "..", "..", "..", "tests", "registry")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic("the registry for the tests cannot be built: " + err.Error())
	}
	return m.Run()
}

// Request is what the proxy saw of a request.
type Request struct {
	Method, Path, Query string
	Header              http.Header
	// Sent is how many bytes of body the answer had so far, as far as they got through.
	Sent int64
}

// Fault handles a request in the registry's place; next is the registry.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Registry is a running registry behind its proxy.
type Registry struct {
	// Host is where the proxy listens.
	Host string

	mu    sync.Mutex
	log   []*Request
	fault Fault
	open  int
}

// Start starts an empty registry.
func Start(t testing.TB) *Registry {
	t.Helper()
	if binary == "" {
		t.Fatal("registrytest.Main was not called")
	}
	cmd := exec.Command(binary)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // ends it
		if err := cmd.Wait(); err != nil {
			t.Errorf("the registry ended with %v", err)
		}
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the registry did not start: %v", err)
	}
	return before(t, strings.TrimSpace(addr))
}

// before starts the proxy.
func before(t testing.TB, addr string) *Registry {
	r := &Registry{}
	forward := &httputil.ReverseProxy{
		// The Host header stays, so that the registry names the proxy in its locations.
		Rewrite:       func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host = "http", addr },
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		FlushInterval: -1,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		entry, fault := r.enter(req)
		defer r.leave()
		cw := &countingWriter{ResponseWriter: w, r: r, entry: entry}
		if fault == nil {
			forward.ServeHTTP(cw, req)
			return
		}
		fault(cw, req, forward)
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	r.Host = server.Listener.Addr().String()
	return r
}

func (r *Registry) enter(req *http.Request) (*Request, Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &Request{Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Header: req.Header.Clone()}
	r.log = append(r.log, e)
	r.open++
	return e, r.fault
}

func (r *Registry) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
}

// SetFault lets a fault handle all further requests; nil ends that.
func (r *Registry) SetFault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

// Log returns the requests so far.
func (r *Registry) Log() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	var log []Request
	for _, e := range r.log {
		log = append(log, *e)
	}
	return log
}

// ClearLog forgets the requests so far.
func (r *Registry) ClearLog() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = nil
}

// Open is how many requests are being handled.
func (r *Registry) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open
}

// BlobBytes is how many bytes of a blob were sent since the log was cleared.
func (r *Registry) BlobBytes(digest string) int64 {
	var n int64
	for _, e := range r.Log() {
		if e.Method == http.MethodGet && strings.HasSuffix(e.Path, "/blobs/"+digest) {
			n += e.Sent
		}
	}
	return n
}

type countingWriter struct {
	http.ResponseWriter
	r     *Registry
	entry *Request
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.r.mu.Lock()
	w.entry.Sent += int64(n)
	w.r.mu.Unlock()
	return n, err
}

// Unwrap gives http.ResponseController what it needs.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Drop breaks the connection.
func Drop() { panic(http.ErrAbortHandler) }

// Change gives a fault that lets answers through a filter of their body, made anew for each request.
func Change(filter func(r *http.Request) func(b []byte) []byte) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&changingWriter{w, filter(r)}, r)
	}
}

type changingWriter struct {
	http.ResponseWriter
	filter func([]byte) []byte
}

func (w *changingWriter) Write(b []byte) (int, error) {
	if _, err := w.ResponseWriter.Write(w.filter(b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (w *changingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// CutAfter gives a fault that breaks the connection of each answer to a matching request after some bytes of body.
func CutAfter(n int, match func(r *http.Request) bool) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !match(r) {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(&cuttingWriter{w, n, func() { Drop() }}, r)
	}
}

// StallAfter is CutAfter with silence instead of an end, until the client gives up.
func StallAfter(n int, match func(r *http.Request) bool) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !match(r) {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(&cuttingWriter{w, n, func() { <-r.Context().Done(); Drop() }}, r)
	}
}

type cuttingWriter struct {
	http.ResponseWriter
	left int
	end  func()
}

func (w *cuttingWriter) Write(b []byte) (int, error) {
	if len(b) <= w.left {
		w.left -= len(b)
		return w.ResponseWriter.Write(b)
	}
	n, err := w.ResponseWriter.Write(b[:w.left])
	w.left -= n
	if err = errors.Join(err, http.NewResponseController(w.ResponseWriter).Flush()); err != nil {
		return n, err
	}
	w.end()
	return n, net.ErrClosed
}

func (w *cuttingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// IsBlob matches requests for blobs, or for one of them.
func IsBlob(digest string) func(r *http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"+digest) && !strings.Contains(r.URL.Path, "/uploads/")
	}
}

// Other starts a second host, which keeps a log as well.
func Other(t testing.TB, handler http.HandlerFunc) *Registry {
	r := &Registry{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		entry, _ := r.enter(req)
		defer r.leave()
		handler(&countingWriter{ResponseWriter: w, r: r, entry: entry}, req)
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = u.Host
	return r
}
