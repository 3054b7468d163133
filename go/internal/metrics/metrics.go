// Package metrics counts what the server does, for Prometheus.
//
// Whoever does something tells a Metrics; /metrics shows it. What can be asked for at the moment of a scrape (memory,
// batches, caches) is not counted here but collected then, see Collect. The invariant: the number of series is bounded,
// whatever names clients send. A model gets a label only after it was found in the store, and from MaxModels on all
// further ones share the label "other"; routes are those of the server.
package metrics

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ollmlx/ollmlx/go/internal/version"
)

// MaxModels bounds the values of the label "model".
const MaxModels = 100

// otherModels is the label of models beyond MaxModels, and otherRoute of paths that are no route.
const (
	otherModels = "other"
	otherRoute  = "other"
)

// Metrics has its own registry. Its methods may be called by any goroutine.
type Metrics struct {
	registry *prometheus.Registry

	httpRequests *prometheus.CounterVec
	httpDuration *prometheus.HistogramVec
	requests     *prometheus.CounterVec
	promptTokens *prometheus.CounterVec
	cachedTokens *prometheus.CounterVec
	tokens       *prometheus.CounterVec
	firstToken   *prometheus.HistogramVec
	perToken     *prometheus.HistogramVec
	queueWait    prometheus.Histogram
	queueLength  prometheus.Gauge
	refused      *prometheus.CounterVec
	loads        *prometheus.CounterVec
	loadDuration *prometheus.HistogramVec
	unloads      *prometheus.CounterVec
	crashes      *prometheus.CounterVec
	cacheTrims   prometheus.Counter

	mu     sync.Mutex
	models map[string]*Model
}

// New returns counters that stand at zero.
func New() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), models: map[string]*Model{}}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(v)
		return v
	}
	seconds := []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	m.httpRequests = counter("ollmlx_http_requests_total", "HTTP requests by route and status code.", "route", "code")
	m.httpDuration = histogram("ollmlx_http_request_duration_seconds", "Duration of HTTP requests, streams to their end.", seconds, "route")
	m.requests = counter("ollmlx_requests_total", "Requests that a runner worked on, by how they ended: ok, canceled, died (the runner did), failed.", "model", "outcome")
	m.promptTokens = counter("ollmlx_prompt_tokens_total", "Tokens of prompts, cached ones included.", "model")
	m.cachedTokens = counter("ollmlx_prompt_cached_tokens_total", "Tokens of prompts that were found in the prefix cache.", "model")
	m.tokens = counter("ollmlx_generated_tokens_total", "Tokens generated.", "model")
	m.firstToken = histogram("ollmlx_time_to_first_token_seconds", "From the request to its first token, with queue and load.", seconds, "model")
	m.perToken = histogram("ollmlx_time_per_token_seconds", "From one token of a request to the next.",
		[]float64{.001, .0025, .005, .01, .02, .03, .05, .075, .1, .15, .25, .5, 1, 2.5}, "model")
	m.loads = counter("ollmlx_loads_total", "Loads of models by how they ended: ok, failed.", "model", "outcome")
	m.loadDuration = histogram("ollmlx_load_duration_seconds", "Duration of loads that ended well.", seconds, "model")
	m.unloads = counter("ollmlx_unloads_total", "Models unloaded: expired, evicted, pressure, abandoned, shutdown.", "reason")
	m.crashes = counter("ollmlx_runner_crashes_total", "Runners that ended by themselves, or were killed because they hung.", "model")
	m.refused = counter("ollmlx_refused_total", "Requests refused before a runner saw them: queue (it was full), memory (the model does not fit), failing (it fails repeatedly).", "reason")

	m.queueWait = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "ollmlx_queue_wait_seconds", Help: "How long requests waited for a loaded model, load included.", Buckets: append([]float64{.0001, .001}, seconds...),
	})
	m.queueLength = prometheus.NewGauge(prometheus.GaugeOpts{Name: "ollmlx_queue_length", Help: "Requests that wait for a model to be loaded."})
	m.cacheTrims = prometheus.NewCounter(prometheus.CounterOpts{Name: "ollmlx_cache_trims_total", Help: "Times that the caches of a model were shrunk for the sake of others."})
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ollmlx_build_info", Help: "Always 1; the labels tell the build.", ConstLabels: prometheus.Labels{"version": version.Version, "commit": version.Commit},
	})
	build.Set(1)
	m.registry.MustRegister(m.queueWait, m.queueLength, m.cacheTrims, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler shows all in the format that the client asks for.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: nil})
}

// Register adds a collector that is asked at each scrape.
func (m *Metrics) Register(c prometheus.Collector) { m.registry.MustRegister(c) }

// Describe names all metrics, whether they have values or not.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { m.registry.Describe(ch) }

// HTTP counts a request. An empty route is none of the server's.
func (m *Metrics) HTTP(route string, code int, d time.Duration) {
	if route == "" {
		route = otherRoute
	}
	m.httpRequests.WithLabelValues(route, strconv.Itoa(code)).Inc()
	m.httpDuration.WithLabelValues(route).Observe(d.Seconds())
}

// Waited counts how long a request waited for its runner.
func (m *Metrics) Waited(d time.Duration) { m.queueWait.Observe(d.Seconds()) }

// Queued tells how many requests wait.
func (m *Metrics) Queued(n int) { m.queueLength.Set(float64(n)) }

// Refused counts a request that no runner saw.
func (m *Metrics) Refused(reason string) { m.refused.WithLabelValues(reason).Inc() }

// Loaded counts a load.
func (m *Metrics) Loaded(model, outcome string, d time.Duration) {
	label := m.Label(model)
	m.loads.WithLabelValues(label, outcome).Inc()
	if outcome == "ok" {
		m.loadDuration.WithLabelValues(label).Observe(d.Seconds())
	}
}

// Unloaded counts a runner that is stopped.
func (m *Metrics) Unloaded(reason string) { m.unloads.WithLabelValues(reason).Inc() }

// Crashed counts a runner that ended by itself.
func (m *Metrics) Crashed(model string) { m.crashes.WithLabelValues(m.Label(model)).Inc() }

// Trimmed counts caches that were shrunk.
func (m *Metrics) Trimmed() { m.cacheTrims.Inc() }

// Label returns the label of a model.
func (m *Metrics) Label(model string) string { return m.Model(model).label }

// Model returns the counters of a model, which must exist in the store.
func (m *Metrics) Model(name string) *Model {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.models[name]; x != nil {
		return x
	}
	if len(m.models) >= MaxModels {
		name = otherModels
		if x := m.models[name]; x != nil {
			return x
		}
	}
	x := &Model{
		label: name, requests: m.requests.MustCurryWith(prometheus.Labels{"model": name}),
		promptTokens: m.promptTokens.WithLabelValues(name), cachedTokens: m.cachedTokens.WithLabelValues(name),
		tokens: m.tokens.WithLabelValues(name), firstToken: m.firstToken.WithLabelValues(name), perToken: m.perToken.WithLabelValues(name),
	}
	m.models[name] = x
	return x
}

// Model counts the requests of one model.
type Model struct {
	label                              string
	requests                           *prometheus.CounterVec
	promptTokens, cachedTokens, tokens prometheus.Counter
	firstToken, perToken               prometheus.Observer
}

// Ended counts a request: "ok", "canceled", "died" or "failed".
func (m *Model) Ended(outcome string) { m.requests.WithLabelValues(outcome).Inc() }

// Prompt counts the tokens of a prompt, cached ones among them.
func (m *Model) Prompt(tokens, cached uint32) {
	m.promptTokens.Add(float64(tokens))
	m.cachedTokens.Add(float64(cached))
}

// FirstToken counts the first n tokens of an answer, d after its request.
func (m *Model) FirstToken(d time.Duration, n uint32) {
	m.firstToken.Observe(d.Seconds())
	m.tokens.Add(float64(n))
}

// Tokens counts n further tokens, d after the one before.
func (m *Model) Tokens(d time.Duration, n uint32) {
	m.perToken.Observe(d.Seconds() / float64(n))
	m.tokens.Add(float64(n))
}
