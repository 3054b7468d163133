package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

// endless is a stream of n tokens without any work behind them.
type endless struct {
	event, last *runnerpb.Event
	n           int
}

func (s *endless) Close() {}

func (s *endless) Recv() (*runnerpb.Event, error) {
	switch s.n--; {
	case s.n >= 0:
		return s.event, nil
	case s.n == -1:
		return s.last, nil
	}
	return nil, io.EOF
}

func benchBed(b *testing.B, tokens int) *bed {
	bed := newBed(b)
	bed.create("m", nil)
	bed.answer = func(context.Context, *runnerpb.GenerateRequest) (sched.Stream, error) {
		return &endless{schedtest.Content(" token"), schedtest.Stop(), tokens}, nil
	}
	return bed
}

// discard is a response writer that costs nothing, so that what remains is the handler.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) Flush()                      {}

// BenchmarkChatEvent is what one event costs in the handler: reading it, encoding it, and the calls of Write and Flush.
func BenchmarkChatEvent(b *testing.B) {
	bed := benchBed(b, b.N)
	r := httptest.NewRequest("POST", "http://localhost/api/chat", strings.NewReader(hi))
	b.ReportAllocs()
	b.ResetTimer()
	bed.server.Handler().ServeHTTP(&discard{http.Header{}}, r)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkChatOverTCP is what one event costs over a real connection, with its reader on the same machine.
func BenchmarkChatOverTCP(b *testing.B) {
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			bed := benchBed(b, b.N/streams+1)
			b.ReportAllocs()
			b.ResetTimer()
			done := make(chan error)
			for range streams {
				go func() {
					resp, err := http.Post(bed.http.URL+"/api/chat", "", strings.NewReader(hi))
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
					done <- err
				}()
			}
			for range streams {
				if err := <-done; err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
