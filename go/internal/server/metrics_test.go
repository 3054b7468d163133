package server

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/metrics"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

func withMetrics(p *Params, sp *sched.Params) {
	p.Metrics = metrics.New()
	sp.Metrics = p.Metrics
}

func TestMetrics(t *testing.T) {
	b := newBed(t, withMetrics)
	b.server.params.Metrics.Register(b.sched.Collector())
	b.create("plain", nil)
	b.script(schedtest.Content("a"), schedtest.Content("b"), schedtest.Finished(runnerpb.Finished_REASON_STOP, &runnerpb.Usage{
		PromptTokens: 7, CachedPromptTokens: 4, CompletionTokens: 2,
	}))
	b.post("/api/generate", `{"model": "plain", "prompt": "x"}`)
	for _, path := range []string{"/api/nonsense", "/api/other"} {
		b.do("GET", path, "")
	}
	r := b.do("GET", "/metrics", "")
	for _, want := range []string{
		`ollmlx_http_requests_total{code="200",route="POST /api/generate"} 1`,
		`ollmlx_requests_total{model="plain:latest",outcome="ok"} 1`,
		`ollmlx_generated_tokens_total{model="plain:latest"} 2`,
		`ollmlx_prompt_tokens_total{model="plain:latest"} 7`,
		`ollmlx_prompt_cached_tokens_total{model="plain:latest"} 4`,
		`ollmlx_time_to_first_token_seconds_count{model="plain:latest"} 1`,
		`ollmlx_loads_total{model="plain:latest",outcome="ok"} 1`,
		`ollmlx_model_loaded{device="cpu",model="plain:latest",state="idle"} 1`,
		`ollmlx_model_memory_bytes{model="plain:latest",part="arrays"} 1500`,
	} {
		if !strings.Contains(r.body, want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
	if strings.Contains(r.body, "nonsense") {
		t.Error("a path that is no route has a series of its own")
	}
}

func TestMetricsNeedTheKey(t *testing.T) {
	b := newBed(t, withKeys("secret"))
	if r := b.with("GET", "/metrics", nil); r.status != 401 {
		t.Errorf("without a key: status %d, want 401", r.status)
	}
	if r := b.with("GET", "/metrics", map[string]string{"Authorization": "Bearer secret"}); r.status != 200 {
		t.Errorf("with the key: status %d, want 200", r.status)
	}
}

// A model that fails again and again: 503 with the time to wait, in each dialect, and the list of loaded models says so.
func TestFailingModel(t *testing.T) {
	b := newBed(t)
	b.create("plain", nil)
	b.starter.OnLoad = func(context.Context, *store.Model, func(*runnerpb.LoadProgress)) error {
		return errdefs.New(errdefs.ErrUnavailable, "killed by SIGSEGV")
	}
	body := `{"model": "plain", "prompt": "x", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}`
	for range 2 {
		if r := b.do("POST", "/api/generate", body); r.status != 500 {
			t.Errorf("status %d, want 500", r.status)
		}
	}
	for _, path := range []string{"/api/generate", "/v1/chat/completions", "/v1/messages"} {
		r := b.do("POST", path, body)
		if n, err := strconv.Atoi(r.header.Get("Retry-After")); r.status != 503 || err != nil || n < 1 || n > 30 || !strings.Contains(r.body, "killed by SIGSEGV (failed 2 times in a row") {
			t.Errorf("%s: status %d, Retry-After %q: %s", path, r.status, r.header.Get("Retry-After"), r.body)
		}
	}
	var ps struct {
		Models  []any
		Failing []struct {
			Name     string
			Failures int
			Error    string
			RetryAt  time.Time `json:"retry_at"`
		}
	}
	if err := json.Unmarshal([]byte(b.do("GET", "/api/ps", "").body), &ps); err != nil {
		t.Fatal(err)
	}
	if len(ps.Models) != 0 || len(ps.Failing) != 1 || ps.Failing[0].Name != "plain:latest" || ps.Failing[0].Failures != 2 ||
		ps.Failing[0].Error != "killed by SIGSEGV" || time.Until(ps.Failing[0].RetryAt) > time.Second {
		t.Errorf("got %+v", ps)
	}
}
