package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/tracing"
)

// requestIDHeader carries the id that joins the log lines of client, host and runner.
const requestIDHeader = "X-Request-Id"

type requestIDKey struct{}

// errPanic is what a client hears of a panic.
var errPanic = errdefs.New(errdefs.ErrInternal, "internal error; the server's log has the details")

// requestID returns the id of the request that ctx belongs to.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// withRequestID gives each request an id: the client's own if it is harmless, else a random one.
func (s *Server) withRequestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(requestIDHeader)
		if !harmlessID(id) {
			id = rand.Text()[:16]
		}
		w.Header().Set(requestIDHeader, id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestIDKey{}, id)))
	})
}

// harmlessID keeps what clients send out of the log's syntax.
func harmlessID(id string) bool {
	return id != "" && len(id) <= 64 && strings.IndexFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}) < 0
}

// recoverPanics keeps a fault in one request from others.
func (s *Server) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.log.Error("server: panic", "id", w.Header().Get(requestIDHeader), "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if rec.status != 0 {
				// What was written cannot be taken back; closing the connection tells the client that more was to come.
				panic(http.ErrAbortHandler)
			}
			// The id is in the context that the handlers saw.
			ctx := context.WithValue(r.Context(), requestIDKey{}, w.Header().Get(requestIDHeader))
			s.failInDialect(w, r.WithContext(ctx), errPanic)
		}()
		next.ServeHTTP(rec, r)
	})
}

// recorder remembers what the log wants to know of a response.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find Flush.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// logRequests logs each request when it ends. What only looks is logged at debug, because clients look often.
func (s *Server) logRequests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec, ok := w.(*recorder)
		if !ok {
			rec = &recorder{ResponseWriter: w}
		}
		next.ServeHTTP(rec, r)
		level := slog.LevelInfo
		switch {
		case rec.status >= 500:
			level = slog.LevelError
		case (r.Method == http.MethodGet || r.Method == http.MethodHead) && rec.status < 400:
			level = slog.LevelDebug
		}
		s.log.Log(r.Context(), level, "request", "id", requestID(r.Context()), "method", r.Method, "path", r.URL.Path,
			"status", rec.status, "bytes", rec.bytes, "seconds", time.Since(began).Seconds(), "remote", r.RemoteAddr)
	})
}

// measure counts requests by route and traces them. It stands next to the routes, for only they know which one it was.
func (s *Server) measure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &recorder{ResponseWriter: w}
		ctx, end := tracing.Request(r, requestID(r.Context()))
		r = r.WithContext(ctx)
		next.ServeHTTP(rec, r)
		status := cmp.Or(rec.status, http.StatusOK)
		s.params.Metrics.HTTP(r.Pattern, status, time.Since(began))
		end(r.Pattern, status)
	})
}

// checkHost refuses requests whose Host header is a foreign name while the server listens on the loopback interface
// only: a web page that rebinds its own name to 127.0.0.1 would otherwise speak to the API as its own origin.
func (s *Server) checkHost(next http.Handler) http.Handler {
	local := newLocalHosts()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.open.Load() && !local.allows(r.Host) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// localHosts knows the names and addresses of this machine.
type localHosts struct {
	hostname string
	// addrs are the addresses of the interfaces, looked up anew after a while because they change.
	addrs   atomic.Pointer[map[netip.Addr]bool]
	fetched atomic.Int64
}

const interfacesMaxAge = 10 * time.Second

func newLocalHosts() *localHosts {
	name, _ := os.Hostname()
	return &localHosts{hostname: strings.ToLower(name)}
}

func (l *localHosts) allows(hostport string) bool {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = hostport, ""
		if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
			host = host[1 : len(host)-1]
		}
	}
	if strings.Trim(port, "0123456789") != "" {
		return false
	}
	host = strings.ToLower(host)
	if addr, err := netip.ParseAddr(host); err == nil {
		// What follows a "%" may be any text, a foreign name too; only brackets bound it.
		if addr.Zone() != "" && !strings.HasPrefix(hostport, "[") {
			return false
		}
		addr = addr.Unmap()
		return addr.IsLoopback() || addr.IsPrivate() || addr.IsUnspecified() || l.own(addr)
	}
	if host == "" || host == "localhost" || (l.hostname != "" && host == l.hostname) {
		return true
	}
	for _, tld := range []string{".localhost", ".local", ".internal"} {
		if strings.HasSuffix(host, tld) {
			return true
		}
	}
	return false
}

// own reports whether addr belongs to an interface of this machine.
func (l *localHosts) own(addr netip.Addr) bool {
	now := time.Now().UnixNano()
	if known := l.addrs.Load(); known != nil && now-l.fetched.Load() < int64(interfacesMaxAge) {
		return (*known)[addr.WithZone("")]
	}
	known := map[netip.Addr]bool{}
	list, _ := net.InterfaceAddrs()
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			known[p.Addr().Unmap().WithZone("")] = true
		}
	}
	l.addrs.Store(&known)
	l.fetched.Store(now)
	return known[addr.WithZone("")]
}
