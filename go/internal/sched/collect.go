package sched

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollmlx/ollmlx/go/internal/metrics"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// scrapeTimeout bounds the questions to runners that a scrape makes.
const scrapeTimeout = 2 * time.Second

var (
	descLoaded = prometheus.NewDesc("ollmlx_model_loaded", "1 for each loaded model; the labels tell its state (loading, idle, busy, draining, stopping) and device.",
		[]string{"model", "state", "device"}, nil)
	descLeases = prometheus.NewDesc("ollmlx_model_requests", "Requests that use a loaded model now.", []string{"model"}, nil)
	descMemory = prometheus.NewDesc("ollmlx_model_memory_bytes",
		"Memory of a loaded model: promised (what it may take), estimated (what it takes without requests, as reckoned before the load), held (private memory of its process), and of the engine: weights, arrays, pool, kv_cache, prefix_cache.",
		[]string{"model", "part"}, nil)
	descBatch   = prometheus.NewDesc("ollmlx_model_batch_rows", "Requests in the batch of a loaded model.", []string{"model"}, nil)
	descQueued  = prometheus.NewDesc("ollmlx_model_batch_queued", "Requests that wait for a place in the batch of a loaded model.", []string{"model"}, nil)
	descHits    = prometheus.NewDesc("ollmlx_model_prefix_cache_hit_tokens", "Tokens of prompts found in the prefix cache since the model was loaded.", []string{"model"}, nil)
	descMisses  = prometheus.NewDesc("ollmlx_model_prefix_cache_miss_tokens", "Tokens of prompts not found in the prefix cache since the model was loaded.", []string{"model"}, nil)
	descFailing = prometheus.NewDesc("ollmlx_models_failing", "Models that are not started for now because they failed repeatedly.", nil, nil)
	descFree    = prometheus.NewDesc("ollmlx_memory_available_bytes", "Memory that further models may take.", nil, nil)
)

// collector shows what the scheduler and its runners are like at the moment of a scrape.
type collector struct {
	s       *Scheduler
	metrics *metrics.Metrics
}

// Collector returns what a Metrics asks at each scrape.
func (s *Scheduler) Collector() prometheus.Collector { return collector{s, s.params.Metrics} }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLoaded, descLeases, descMemory, descBatch, descQueued, descHits, descMisses, descFailing, descFree} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	seen := map[string]bool{}
	for _, x := range c.s.Loaded(ctx) {
		model := c.metrics.Label(modelname.Display(x.Model.Name))
		if seen[model] {
			// Two that are beyond the bound of labels, or one that ends while its successor loads.
			continue
		}
		seen[model] = true
		gauge(descLoaded, 1, model, x.State, x.Info.GetDevice())
		gauge(descLeases, float64(x.Leases), model)
		parts := map[string]uint64{"held": x.Held, "promised": x.Promised}
		if x.Plan != nil {
			parts["estimated"] = x.Plan.Base + x.Plan.Weights
		}
		if x.Info != nil {
			parts["weights"] = x.Info.GetWeightBytes()
		}
		if st := x.Status; st != nil {
			m := st.GetMemory()
			parts["arrays"], parts["pool"] = m.GetActiveBytes(), m.GetPoolBytes()
			parts["kv_cache"], parts["prefix_cache"] = m.GetKvCacheBytes(), st.GetPrefixCache().GetBytes()
			gauge(descBatch, float64(st.GetRunning()), model)
			gauge(descQueued, float64(st.GetQueued()), model)
			gauge(descHits, float64(st.GetPrefixCache().GetHitTokens()), model)
			gauge(descMisses, float64(st.GetPrefixCache().GetMissTokens()), model)
		}
		for part, bytes := range parts {
			gauge(descMemory, float64(bytes), model, part)
		}
	}
	gauge(descFailing, float64(len(c.s.Failing())))
	if m := c.s.params.Memory; m != nil {
		free := make(chan int64, 1)
		if c.s.do(func(l *loop) { free <- l.room().bytes }) {
			gauge(descFree, float64(max(<-free, 0)))
		}
	}
}
