package runner

import (
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// BenchmarkSession measures what an event costs the host, with a real runner process that sends as fast as it can: one
// message per step, one event per request and step. ns/op is the time per event, limited by the sender; cpu-ns/event is
// the host's own work.
func BenchmarkSession(b *testing.B) {
	for _, requests := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("requests=%d", requests), func(b *testing.B) {
			r := serveFake(b, runnertest.Options{Repeat: endless})
			var streams []*Stream
			for range requests {
				st := mustGenerate(b, b.Context(), r, "word ")
				firstDelta(b, st)
				streams = append(streams, st)
			}
			b.ReportAllocs()
			b.ResetTimer()
			before := cpuTime()
			var wg sync.WaitGroup
			for _, st := range streams {
				wg.Go(func() {
					for got := 0; got < b.N/requests; {
						ev, err := st.Recv()
						if err != nil {
							b.Error(err)
							return
						}
						got += int(ev.GetDelta().GetTokens())
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/event")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			r.kill()
		})
	}
}

// BenchmarkDispatch measures the multiplexer alone: from a decoded step to the readers, without gRPC.
func BenchmarkDispatch(b *testing.B) {
	for _, requests := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("requests=%d", requests), func(b *testing.B) {
			s := &session{streams: make(map[uint64]*Stream)}
			var wg sync.WaitGroup
			for i := range requests {
				st := &Stream{id: uint64(i + 1), session: s, box: newMailbox(), unwatch: func() bool { return true }}
				s.streams[st.id] = st
				wg.Go(func() {
					for {
						if _, err := st.Recv(); err == io.EOF {
							return
						}
					}
				})
			}
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += requests {
				s.dispatch(step(requests, func(id uint64) *runnerpb.Event {
					return &runnerpb.Event{RequestId: id, Kind: &runnerpb.Event_Delta{Delta: &runnerpb.Delta{Content: "word ", Tokens: 1}}}
				}))
			}
			s.dispatch(step(requests, func(id uint64) *runnerpb.Event {
				return &runnerpb.Event{RequestId: id, Kind: &runnerpb.Event_Finished{Finished: &runnerpb.Finished{}}}
			}))
			wg.Wait()
		})
	}
}

// BenchmarkStart measures how long a runner takes from Start to its first answer, and to its end, without a model.
func BenchmarkStart(b *testing.B) {
	p, _ := fakeParams(b, runnertest.Options{})
	for range b.N {
		r, err := Start(b.Context(), p)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Stop(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func step(requests int, event func(id uint64) *runnerpb.Event) *runnerpb.StepEvents {
	events := make([]*runnerpb.Event, requests)
	for i := range events {
		events[i] = event(uint64(i + 1))
	}
	return &runnerpb.StepEvents{Events: events}
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
