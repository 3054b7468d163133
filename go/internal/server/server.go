// Package server is the HTTP side of ollmlx.
//
// A route is a translation: it reads its dialect's JSON into a runnerpb.GenerateRequest, acquires a runner from the
// scheduler, and writes its dialect's JSON from the runner's events. The files named native_* are Ollama's own API.
// Two invariants hold for every route: a name reaches a model only through modelname and the store, and an error
// reaches a client only through errdefs.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/metrics"
	"github.com/ollmlx/ollmlx/go/internal/registry"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// Params configures a Server.
type Params struct {
	// Store and Scheduler are required. Serve shuts the scheduler down; the store stays the caller's.
	Store     *store.Store
	Scheduler *sched.Scheduler
	// Puller and Pusher bring models from elsewhere and send them there. Nil: the routes answer that they cannot.
	Puller registry.Puller
	Pusher registry.Pusher
	// Converter quantizes and checks adapters for /api/create. Nil: it answers that it cannot.
	Converter store.Converter
	// Version is what /api/version tells. Clients compare it with the versions of Ollama.
	Version string
	// Origins are browser origins that are allowed besides the local ones. "*" matches any text.
	Origins []string
	// APIKeys are keys of which a request must carry one; without any, everyone may ask.
	APIKeys []string
	// MaxBody bounds the JSON body of a request, images included. 0: DefaultMaxBody.
	MaxBody int64
	// DrainTimeout is how long running requests may go on when Serve is told to end. 0: DefaultDrainTimeout.
	DrainTimeout time.Duration
	// PingInterval is how long an event stream is silent before a sign of life is sent. 0: DefaultPingInterval.
	PingInterval time.Duration
	// PrefillInterval is how long a stream of the native API is silent before it tells the progress of the prefill. 0:
	// DefaultPrefillInterval.
	PrefillInterval time.Duration
	// StopTimeout is how long the stop of all runners may take after that. 0: DefaultStopTimeout.
	StopTimeout time.Duration
	Logger      *slog.Logger
	// Metrics counts requests and is shown at /metrics. Nil: its own.
	Metrics *metrics.Metrics
}

// Bounds that hold when Params leaves them open.
const (
	DefaultMaxBody      = 256 << 20
	DefaultDrainTimeout = 10 * time.Second
	DefaultStopTimeout  = 20 * time.Second
	// Most clients give up a silent stream after half a minute or more.
	DefaultPrefillInterval = 5 * time.Second
)

// headerTimeout bounds how long a client may take to send its request's head; a body may take as long as it likes,
// since uploads of weights do.
const headerTimeout = 30 * time.Second

// errStopping is the cause with which requests end that outlast the drain.
var errStopping = errdefs.New(errdefs.ErrUnavailable, "the server is shutting down")

// Server serves the API. Its handler may be used without Serve, for example in tests.
type Server struct {
	params  Params
	log     *slog.Logger
	handler http.Handler
	// open is true when the server listens on more than the loopback interface; then the Host header says nothing.
	open atomic.Bool
}

// New returns a server that is ready to serve.
func New(p Params) (*Server, error) {
	if p.Store == nil || p.Scheduler == nil {
		return nil, errors.New("server: Params need a Store and a Scheduler")
	}
	if p.MaxBody <= 0 {
		p.MaxBody = DefaultMaxBody
	}
	if p.DrainTimeout <= 0 {
		p.DrainTimeout = DefaultDrainTimeout
	}
	if p.StopTimeout <= 0 {
		p.StopTimeout = DefaultStopTimeout
	}
	if p.PrefillInterval <= 0 {
		p.PrefillInterval = DefaultPrefillInterval
	}
	if p.PingInterval <= 0 {
		p.PingInterval = DefaultPingInterval
	}
	if p.Logger == nil {
		p.Logger = slog.Default()
	}
	if p.Metrics == nil {
		p.Metrics = metrics.New()
	}
	s := &Server{params: p, log: p.Logger}
	origins, err := newOrigins(p.Origins)
	if err != nil {
		return nil, err
	}
	s.handler = s.recoverPanics(s.withRequestID(s.logRequests(s.checkHost(origins.middleware(s.checkKey(withLoadProgress(s.measure(s.routes()))))))))
	return s, nil
}

// Handler returns the whole API with its middleware.
func (s *Server) Handler() http.Handler { return s.handler }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	// A GET pattern serves HEAD too.
	mux.HandleFunc("GET /{$}", s.handleRoot)
	mux.Handle("GET /metrics", s.params.Metrics.Handler())
	mux.HandleFunc("GET /api/version", s.handleVersion)
	mux.HandleFunc("GET /api/status", s.handleStatus)
	mux.HandleFunc("GET /api/tags", s.handleTags)
	mux.HandleFunc("GET /api/ps", s.handlePs)
	mux.HandleFunc("POST /api/show", s.handleShow)
	mux.HandleFunc("POST /api/generate", s.handleGenerate)
	mux.HandleFunc("POST /api/chat", s.handleChat)
	mux.HandleFunc("POST /api/embed", s.handleEmbed)
	mux.HandleFunc("POST /api/embeddings", s.handleEmbeddings)
	mux.HandleFunc("POST /api/create", s.handleCreate)
	mux.HandleFunc("POST /api/pull", s.handlePull)
	mux.HandleFunc("POST /api/push", s.handlePush)
	mux.HandleFunc("POST /api/copy", s.handleCopy)
	mux.HandleFunc("DELETE /api/delete", s.handleDelete)
	mux.HandleFunc("HEAD /api/blobs/{digest}", s.handleHeadBlob)
	mux.HandleFunc("POST /api/blobs/{digest}", s.handlePutBlob)
	mux.HandleFunc("GET /v1/models", s.handleListModels)
	mux.HandleFunc("GET /v1/models/{model...}", s.handleRetrieveModel)
	mux.HandleFunc("POST /v1/chat/completions", s.handleChatCompletions)
	mux.HandleFunc("POST /v1/completions", s.handleCompletions)
	mux.HandleFunc("POST /v1/embeddings", s.handleOpenAIEmbeddings)
	mux.HandleFunc("POST /v1/rerank", s.handleRerank)
	mux.HandleFunc("POST /v2/rerank", s.handleRerank)
	mux.HandleFunc("POST /v1/responses", s.handleResponses)
	mux.HandleFunc("POST /v1/responses/input_tokens", s.handleInputTokens)
	mux.HandleFunc("POST /v1/messages", s.handleMessages)
	mux.HandleFunc("POST /v1/messages/count_tokens", s.handleCountTokens)
	s.addAbsentRoutes(mux)
	return mux
}

// Serve answers requests on ln until ctx ends. Then it stops listening, lets running requests go on for the drain
// timeout, ends what is left, and stops all runners. It closes ln and returns nil after such an end.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.open.Store(!loopback(ln.Addr()))
	base, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	hs := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       2 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(ln) }()

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		s.drain(hs, abort)
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.params.StopTimeout)
	defer cancel()
	return errors.Join(err, s.params.Scheduler.Shutdown(stop))
}

// drain waits for running requests as long as it may, then ends them.
func (s *Server) drain(hs *http.Server, abort context.CancelCauseFunc) {
	s.log.Info("server: shutting down, running requests may end", "timeout", s.params.DrainTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), s.params.DrainTimeout)
	defer cancel()
	if hs.Shutdown(ctx) == nil {
		return
	}
	s.log.Warn("server: ending the requests that still run")
	abort(errStopping)
	// Handlers see that at once; the second wait lets them write their last line.
	ctx, cancel = context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if hs.Shutdown(ctx) != nil {
		_ = hs.Close()
	}
}

// loopback reports whether only this machine can reach addr. An address without an IP, such as a unix socket, counts.
func loopback(addr net.Addr) bool {
	ap, err := netip.ParseAddrPort(addr.String())
	return err != nil || ap.Addr().Unmap().IsLoopback()
}
