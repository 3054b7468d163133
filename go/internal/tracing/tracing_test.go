package tracing_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/ollmlx/ollmlx/go/internal/tracing"
)

// What reaches a collector that the standard variable names: a request as a child of its client's span, with the spans
// under it.
func TestTracesReachTheCollector(t *testing.T) {
	var mu sync.Mutex
	spans := map[string]*tracepb.Span{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, resource := range request.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				for _, span := range scope.GetSpans() {
					spans[span.GetName()] = span
				}
			}
		}
	}))
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)

	stop, err := tracing.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/api/chat", nil)
	r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	ctx, end := tracing.Request(r, "id-1")
	_, inner := tracing.Span(ctx, "generate")
	tracing.End(inner, errors.New("the runner died"))
	end("POST /api/chat", 500)
	if err := stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	outer, generate := spans["POST /api/chat"], spans["generate"]
	if outer == nil || generate == nil {
		t.Fatalf("got %v", spans)
	}
	if got := string(outer.GetParentSpanId()); got != "\xb7\xadkqi 31" {
		t.Errorf("the parent of the request is %x", got)
	}
	if string(generate.GetParentSpanId()) != string(outer.GetSpanId()) || generate.GetStatus().GetMessage() != "the runner died" {
		t.Errorf("got %v", generate)
	}
}
