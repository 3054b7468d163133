package sched_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollama/ollama/api"
	"pgregory.net/rapid"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// A schedule is everything that happens to a scheduler: which clients ask for which models when and for how long, how
// long loads and stops take, what fails, crashes and hangs, and what other programs take of the memory.
type schedule struct {
	// Total is the machine's memory, Models what each takes without requests.
	Total     uint64
	Models    []uint64
	MaxLoaded int
	Clients   [][]request
	// Loads and Stops are taken in turn.
	Loads []load
	Stops []time.Duration
	// Others are what other programs take, each for some seconds in turn.
	Others []uint64
}

type request struct {
	Model int
	Pause time.Duration
	// Patience is how long the client waits for its runner; 0: as long as it takes.
	Patience time.Duration
	Hold     time.Duration
	// Cache is the share of what the caches may use that the request fills, in percent.
	Cache     uint64
	KeepAlive *time.Duration
	// End is what becomes of the runner: 0 nothing, 1 it crashes, 2 it hangs.
	End int
}

type load struct {
	Takes time.Duration
	Fails bool
}

func millis(t *rapid.T, most int, label string) time.Duration {
	return time.Duration(rapid.IntRange(0, most).Draw(t, label)) * time.Millisecond
}

func drawSchedule(t *rapid.T, counted, pressed bool) schedule {
	s := schedule{Total: 1000, MaxLoaded: rapid.IntRange(0, 3).Draw(t, "max loaded")}
	for range rapid.IntRange(2, 5).Draw(t, "models") {
		s.Models = append(s.Models, rapid.Uint64Range(10, 1100).Draw(t, "weights"))
	}
	if !counted {
		s.Total, s.MaxLoaded = 0, max(s.MaxLoaded, 1)
	}
	for range rapid.IntRange(1, 8).Draw(t, "clients") {
		var client []request
		for range rapid.IntRange(1, 10).Draw(t, "requests") {
			r := request{
				Model: rapid.IntRange(0, len(s.Models)-1).Draw(t, "model"), Pause: millis(t, 3000, "pause"),
				Hold: millis(t, 3000, "hold"), Cache: rapid.Uint64Range(0, 100).Draw(t, "cache"),
			}
			if rapid.Bool().Draw(t, "impatient") {
				r.Patience = millis(t, 20000, "patience") + 1
			}
			if rapid.IntRange(0, 3).Draw(t, "has keep-alive") == 0 {
				d := millis(t, 3000, "keep-alive")
				r.KeepAlive = &d
			}
			if rapid.IntRange(0, 9).Draw(t, "ends badly") == 0 {
				r.End = rapid.IntRange(1, 2).Draw(t, "how")
			}
			client = append(client, r)
		}
		s.Clients = append(s.Clients, client)
	}
	for range 8 {
		s.Loads = append(s.Loads, load{millis(t, 4000, "load"), rapid.IntRange(0, 9).Draw(t, "fails") == 0})
		s.Stops = append(s.Stops, millis(t, 500, "stop"))
		if pressed {
			s.Others = append(s.Others, rapid.Uint64Range(0, 1200).Draw(t, "others"))
		}
	}
	return s
}

// world is what a schedule plays in. It notes what must not be.
type world struct {
	schedule
	mu       sync.Mutex
	used     map[*schedtest.Runner]uint64
	loading  map[string]uint64
	live     map[string]bool
	bad      map[*schedtest.Runner]bool
	others   uint64
	loads    int
	stops    int
	breaches []string
}

func (w *world) breach(format string, args ...any) {
	w.breaches = append(w.breaches, fmt.Sprintf(format, args...))
}

// sum is what all runners have; the caller holds mu.
func (w *world) sum() (n uint64) {
	for _, u := range w.used {
		n += u
	}
	for _, u := range w.loading {
		n += u
	}
	return n
}

// check notes when runners have more than there is.
func (w *world) check() {
	if n := w.sum(); w.Total > 0 && n > w.Total {
		w.breach("%d bytes of %d are used", n, w.Total)
	}
}

// Need and the others make world a sched.Memory.
func (w *world) Need(m *store.Model) (memory.Need, error) {
	return memory.Need{Base: 5, Weights: w.Models[int(m.Name.Model[0]-'a')], KVPerToken: 1, Context: 20}, nil
}

func (w *world) Available(uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Total - min(w.Total, w.sum()+w.others)
}

func (w *world) Overhead() uint64                       { return 0 }
func (w *world) Learn(*runnerpb.StatusResponse, uint64) {}
func (w *world) nextLoad() load                         { w.loads++; return w.Loads[w.loads%len(w.Loads)] }
func (w *world) nextStop() time.Duration                { w.stops++; return w.Stops[w.stops%len(w.Stops)] }
func (w *world) weights(m *store.Model) uint64          { return 5 + w.Models[int(m.Name.Model[0]-'a')] }
func (w *world) locked(f func())                        { w.mu.Lock(); defer w.mu.Unlock(); f() }
func (w *world) fill(r *schedtest.Runner, percent uint64) {
	w.locked(func() { w.fillLocked(r, percent) })
}

func (w *world) fillLocked(r *schedtest.Runner, percent uint64) {
	if _, alive := w.used[r]; alive && r.Plan != nil {
		w.used[r] = max(w.used[r], w.weights(r.Model)+r.Plan.KV*percent/100)
		w.check()
	}
}

func (w *world) load(ctx context.Context, m *store.Model, _ func(*runnerpb.LoadProgress)) error {
	var l load
	w.locked(func() {
		l = w.nextLoad()
		if w.live[m.Digest] {
			w.breach("a second runner for %s", m.Name.Model)
		}
		w.live[m.Digest] = true
		if n := len(w.live); w.MaxLoaded > 0 && n > w.MaxLoaded {
			w.breach("%d runners, at most %d", n, w.MaxLoaded)
		}
	})
	gone := func() { w.locked(func() { delete(w.live, m.Digest); delete(w.loading, m.Digest) }) }
	for part := range uint64(4) {
		select {
		case <-time.After(l.Takes / 4):
		case <-ctx.Done():
			gone()
			return ctx.Err()
		}
		w.locked(func() {
			if w.Total > 0 {
				w.loading[m.Digest] = w.weights(m) * (part + 1) / 4
			}
			w.check()
		})
	}
	if l.Fails {
		gone()
		return errdefs.New(errdefs.ErrUnavailable, "bad luck")
	}
	return nil
}

func (w *world) started(r *schedtest.Runner) {
	r.OnEnd = func() { w.locked(func() { delete(w.used, r); delete(w.live, r.Model.Digest) }) }
	w.locked(func() {
		delete(w.loading, r.Model.Digest)
		if w.Total > 0 {
			w.used[r] = w.weights(r.Model)
		}
	})
	r.OnHeld = func() uint64 { w.mu.Lock(); defer w.mu.Unlock(); return w.used[r] }
	r.OnTrim = func(_ context.Context, req *runnerpb.TrimRequest) (*runnerpb.TrimResponse, error) {
		time.Sleep(10 * time.Millisecond)
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, alive := w.used[r]; !alive {
			return nil, errdefs.ErrUnavailable
		}
		plan := *r.Plan
		plan.KV = req.GetKvCacheBytes()
		r.Plan = &plan
		w.used[r] = min(w.used[r], w.weights(r.Model)+plan.KV)
		return &runnerpb.TrimResponse{KvCacheBytes: plan.KV}, nil
	}
	r.OnStatus = func(ctx context.Context) (*runnerpb.StatusResponse, error) {
		var hangs bool
		w.locked(func() { hangs = w.bad[r] && r.Alive() })
		if hangs {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return &runnerpb.StatusResponse{State: runnerpb.StatusResponse_STATE_READY}, nil
	}
	r.OnStop = func(context.Context) error {
		var d time.Duration
		w.locked(func() { d = w.nextStop() })
		if r.Alive() {
			time.Sleep(d)
		}
		return nil
	}
}

const patient = 2 * time.Hour

func (w *world) client(ctx context.Context, s *sched.Scheduler, requests []request) {
	for _, q := range requests {
		time.Sleep(q.Pause)
		patience := q.Patience
		if patience == 0 {
			patience = patient
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		var o sched.AcquireOptions
		if q.KeepAlive != nil {
			o.KeepAlive = &api.Duration{Duration: *q.KeepAlive}
		}
		lease, err := s.Acquire(ctx, named(string(rune('a'+q.Model))), o)
		if err == nil {
			w.use(lease, q)
			lease.Release()
		} else if q.Patience == 0 && ctx.Err() != nil {
			w.locked(func() { w.breach("a request for %c starved", 'a'+q.Model) })
		}
		cancel()
	}
}

func (w *world) use(lease *sched.Lease, q request) {
	r := lease.Instance().(*schedtest.Runner)
	w.fill(r, q.Cache)
	select {
	case <-time.After(q.Hold):
	case <-lease.Died():
	}
	switch q.End {
	case 1:
		w.locked(func() { w.bad[r] = true })
		r.Crash(errors.New("killed"))
	case 2:
		w.locked(func() { w.bad[r] = true })
		<-lease.Died()
	default:
		w.locked(func() {
			if !r.Alive() && !w.bad[r] {
				w.breach("the runner of %s was stopped under a request", r.Model.Name.Model)
			}
		})
	}
}

// play runs a schedule to its end in fake time and returns what must not have been.
func play(t *testing.T, s schedule) []string {
	w := &world{
		schedule: s, used: map[*schedtest.Runner]uint64{}, loading: map[string]uint64{}, live: map[string]bool{}, bad: map[*schedtest.Runner]bool{},
	}
	synctest.Test(t, func(t *testing.T) {
		st := &schedtest.Starter{OnLoad: w.load, OnStart: w.started}
		p := sched.Params{
			Start: st.Start, KeepAlive: 20 * time.Second, MaxLoaded: s.MaxLoaded, HangAfter: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
		}
		if s.Total > 0 {
			p.Memory = w
		}
		scheduler := sched.New(p)
		var clients sync.WaitGroup
		for _, requests := range s.Clients {
			clients.Go(func() { w.client(t.Context(), scheduler, requests) })
		}
		ended := make(chan struct{})
		var others sync.WaitGroup
		if len(s.Others) > 0 {
			others.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-time.After(7 * time.Second):
					case <-ended:
						return
					}
					// Every other time they leave everything to us: somebody who needs it all must get it.
					w.locked(func() { w.others = s.Others[i%len(s.Others)] * uint64(i%2) })
				}
			})
		}
		clients.Wait()
		close(ended)
		others.Wait()
		if err := scheduler.Shutdown(t.Context()); err != nil {
			w.breach("Shutdown: %v", err)
		}
		// Questions to runners that were killed meanwhile end with their time.
		time.Sleep(time.Minute)
		if len(w.live) > 0 {
			w.breach("left: %v", w.live)
		}
	})
	return w.breaches
}

// Whatever happens, there is at most one runner for a model; places and memory are never exceeded; no runner is stopped
// under a request; every request ends, and one that waits is served or refused in the end.
func TestRandomSchedules(t *testing.T) {
	for _, tt := range []struct {
		name             string
		counted, pressed bool
	}{
		{"places", false, false},
		{"memory", true, false},
		{"memory that others take too", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				if breaches := play(t, drawSchedule(rt, tt.counted, tt.pressed)); len(breaches) > 0 {
					rt.Fatalf("%d breaches, the first: %s", len(breaches), breaches[0])
				}
			})
		})
	}
}
