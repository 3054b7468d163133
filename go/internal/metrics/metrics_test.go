package metrics_test

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ollmlx/ollmlx/go/internal/metrics"
	"github.com/ollmlx/ollmlx/go/internal/sched"
)

func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// The number of series does not grow with the names that clients come up with.
func TestLabelsAreBounded(t *testing.T) {
	m := metrics.New()
	for i := range 3 * metrics.MaxModels {
		model := m.Model(fmt.Sprintf("model-%d", i))
		model.FirstToken(time.Second, 1)
		model.Tokens(time.Second, 3)
		model.Ended("ok")
	}
	m.HTTP("", 404, time.Second)
	text := scrape(t, m)
	if n := strings.Count(text, "ollmlx_generated_tokens_total{"); n != metrics.MaxModels+1 {
		t.Errorf("%d series, want %d", n, metrics.MaxModels+1)
	}
	for _, want := range []string{
		`ollmlx_generated_tokens_total{model="model-0"} 4`,
		fmt.Sprintf(`ollmlx_generated_tokens_total{model="other"} %d`, 4*2*metrics.MaxModels),
		`ollmlx_http_requests_total{code="404",route="other"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing", want)
		}
	}
}

var (
	descName = regexp.MustCompile(`fqName: "([^"]+)"`)
	usedName = regexp.MustCompile(`\b(?:ollmlx|process|go)_[a-z0-9_]+`)
)

// Each panel of the dashboard asks for what there is.
func TestDashboardAsksForWhatThereIs(t *testing.T) {
	m := metrics.New()
	s := sched.New(sched.Params{Metrics: m})
	t.Cleanup(func() { _ = s.Shutdown(t.Context()) })
	m.Register(s.Collector())
	known := map[string]bool{}
	ch := make(chan *prometheus.Desc)
	go func() { m.Describe(ch); close(ch) }()
	for d := range ch {
		name := descName.FindStringSubmatch(d.String())[1]
		for _, suffix := range []string{"", "_bucket", "_count", "_sum"} {
			known[name+suffix] = true
		}
	}
	raw, err := os.ReadFile("../../../docs/grafana/ollmlx.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &dashboard); err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			names := usedName.FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s: %q names no metric", p.Title, target.Expr)
			}
			for _, name := range names {
				asked[name] = true
				if !known[name] {
					t.Errorf("%s: there is no %s", p.Title, name)
				}
			}
		}
	}
	for name := range known {
		if !strings.HasPrefix(name, "ollmlx_") || strings.HasPrefix(name, "ollmlx_build_info") || strings.Contains(name, "prefix_cache_") {
			continue
		}
		base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
		if !asked[base] && !asked[base+"_bucket"] {
			t.Errorf("no panel shows %s", base)
		}
	}
}
