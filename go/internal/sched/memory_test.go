package sched_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

const mib = 1 << 20

// machine is a sched.Memory and a sched.Spare. Runners hold what their weights take; a, b and c take 100 MiB, d 250 MiB.
type machine struct {
	bed     bed
	total   uint64
	mu      sync.Mutex
	others  uint64
	spare   uint64
	fills   atomic.Int32
	dropped atomic.Int32
}

func (m *machine) Need(model *store.Model) (memory.Need, error) {
	weights := uint64(100 * mib)
	if model.Name.Model == "d" {
		weights = 250 * mib
	}
	return memory.Need{Weights: weights, KVPerToken: 1024, Context: 1024}, nil
}

func (m *machine) Available(uint64) uint64 {
	m.mu.Lock()
	used := m.others + m.spare
	m.mu.Unlock()
	for _, r := range m.bed.Started() {
		used += r.Held()
	}
	return m.total - min(used, m.total)
}

func (m *machine) Overhead() uint64                       { return 7 * mib }
func (m *machine) Learn(*runnerpb.StatusResponse, uint64) {}

func (m *machine) Fill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fills.Add(1)
	m.spare = 10 * mib
}

func (m *machine) Drop(then func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropped.Add(1)
	m.spare = 0
	go then()
}

func (m *machine) Held() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spare
}

func (m *machine) take(n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.others = n
}

// withMemory runs a scheduler over a machine of so many MiB.
func withMemory(t *testing.T, total uint64, p sched.Params, f func(*testing.T, bed, *machine)) {
	m := &machine{total: total * mib}
	p.Memory = m
	run(t, p, func(t *testing.T, b bed) {
		m.bed = b
		b.OnStart = func(r *schedtest.Runner) {
			weights := r.Plan.Weights
			r.OnHeld = func() uint64 { return weights }
		}
		f(t, b, m)
	})
}

func TestLoadsInParallelWhileMemoryLasts(t *testing.T) {
	withMemory(t, 250, sched.Params{}, func(t *testing.T, b bed, m *machine) {
		b.OnLoad = func(context.Context, *store.Model, func(*runnerpb.LoadProgress)) error {
			time.Sleep(10 * time.Second)
			return nil
		}
		began := time.Now()
		first, second, third := b.start(t.Context(), "a", nil), b.start(t.Context(), "b", nil), b.start(t.Context(), "c", nil)
		a, bb := b.lease(first), b.lease(second)
		if d := time.Since(began); d != 10*time.Second {
			t.Errorf("two loads took %v, want 10 s: they fit together", d)
		}
		b.waits(third)
		// A request for a loaded model does not wait behind one that needs a load, as long as it is not the one to go.
		again := b.acquire("b", nil)
		again.Release()
		a.Release()
		b.lease(third).Release()
		b.expect("b;c;")
		bb.Release()
	})
}

// The caches of a loaded model shrink before a model is unloaded for another's sake.
func TestCachesShrinkBeforeModelsGo(t *testing.T) {
	withMemory(t, 206, sched.Params{}, func(t *testing.T, b bed, m *machine) {
		b.acquire("a", nil).Release()
		first := b.Started()[0]
		if first.Plan.KV <= first.Plan.KVMin {
			t.Fatalf("it got no more than the least: %+v", first.Plan)
		}
		var asked uint64
		first.OnTrim = func(_ context.Context, req *runnerpb.TrimRequest) (*runnerpb.TrimResponse, error) {
			asked = req.GetKvCacheBytes()
			return &runnerpb.TrimResponse{KvCacheBytes: asked}, nil
		}
		time.Sleep(time.Second)
		b.acquire("b", nil).Release()
		if asked != first.Plan.KVMin {
			t.Errorf("asked for %d, want %d", asked, first.Plan.KVMin)
		}
		b.expect("a;b;")
		b.acquire("c", nil).Release()
		b.expect("b;c;")
	})
}

func TestCachesThatCannotShrink(t *testing.T) {
	withMemory(t, 206, sched.Params{}, func(t *testing.T, b bed, m *machine) {
		b.acquire("a", nil).Release()
		b.Started()[0].OnTrim = func(context.Context, *runnerpb.TrimRequest) (*runnerpb.TrimResponse, error) {
			return nil, errdefs.New(errdefs.ErrUnavailable, "no")
		}
		b.acquire("b", nil).Release()
		b.expect("b;")
	})
}

// A model that needs much is not kept out by small ones that come and go.
func TestSmallModelsDoNotStarveABigOne(t *testing.T) {
	withMemory(t, 320, sched.Params{}, func(t *testing.T, b bed, m *machine) {
		stop := make(chan struct{})
		var small sync.WaitGroup
		for i, name := range []string{"a", "b", "c", "a", "b", "c"} {
			small.Go(func() {
				time.Sleep(time.Duration(i) * 700 * time.Millisecond)
				for {
					select {
					case <-stop:
						return
					default:
					}
					l, err := b.Acquire(t.Context(), named(name), sched.AcquireOptions{KeepAlive: seconds(0)})
					if err != nil {
						t.Error(err)
						return
					}
					time.Sleep(3 * time.Second)
					l.Release()
				}
			})
		}
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		l, err := b.Acquire(ctx, named("d"), sched.AcquireOptions{})
		if err != nil {
			t.Fatalf("the big model: %v", err)
		}
		l.Release()
		close(stop)
		small.Wait()
	})
}

func TestAModelThatCannotFitIsRefusedWithNumbers(t *testing.T) {
	withMemory(t, 200, sched.Params{}, func(t *testing.T, b bed, m *machine) {
		busy := b.acquire("a", nil)
		_, err := b.Acquire(t.Context(), named("d"), sched.AcquireOptions{})
		want := "model requires 251.0 MiB but only 200.0 MiB are available (after 7.0 MiB overhead)"
		if err == nil || !strings.HasPrefix(err.Error(), want) || !errors.Is(err, errdefs.ErrPrecondition) {
			t.Errorf("got %v, want %q and the remedy", err, want)
		}
		if len(b.Failing()) > 0 {
			t.Error("a model that does not fit is no failing one")
		}
		b.expect("a;")
		busy.Release()
	})
}

// Other programs that need memory get that of caches first, then that of idle models, never that of busy ones.
func TestPressureFromOtherPrograms(t *testing.T) {
	withMemory(t, 1000, sched.Params{KeepAlive: time.Hour}, func(t *testing.T, b bed, m *machine) {
		busy := b.acquire("a", nil)
		b.acquire("b", nil).Release()
		time.Sleep(time.Second)
		b.acquire("c", nil).Release()
		var trims atomic.Int32
		for _, r := range b.Started() {
			r.OnTrim = func(_ context.Context, req *runnerpb.TrimRequest) (*runnerpb.TrimResponse, error) {
				trims.Add(1)
				return &runnerpb.TrimResponse{KvCacheBytes: req.GetKvCacheBytes()}, nil
			}
		}
		m.take(2000 * mib)
		time.Sleep(5 * time.Second)
		if synctest.Wait(); trims.Load() != 3 {
			t.Errorf("%d caches were shrunk, want 3", trims.Load())
		}
		b.expect("a;b;c;")
		time.Sleep(10 * time.Second)
		b.expect("a;c;")
		time.Sleep(time.Hour)
		b.expect("a;")
		m.take(0)
		busy.Release()
	})
}

func TestARunnerThatHangsIsKilled(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status func(ctx context.Context) (*runnerpb.StatusResponse, error)
		within time.Duration
		why    string
	}{
		{"silent", func(ctx context.Context) (*runnerpb.StatusResponse, error) { <-ctx.Done(); return nil, ctx.Err() }, 35 * time.Second, "did not answer for 30s"},
		{"endless step", func(context.Context) (*runnerpb.StatusResponse, error) {
			return &runnerpb.StatusResponse{StepAgeNs: int64(time.Hour)}, nil
		}, 5 * time.Second, "a step of its engine has not ended for 1h0m0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, sched.Params{HangAfter: 30 * time.Second, StepLimit: time.Minute}, func(t *testing.T, b bed) {
				b.OnStart = func(r *schedtest.Runner) {
					if len(b.Started()) == 0 {
						r.OnStatus = tt.status
					}
				}
				l := b.acquire("a", nil)
				hung := b.Started()[0]
				select {
				case <-l.Died():
				case <-time.After(tt.within):
					t.Fatal("it was not killed")
				}
				if err := hung.Err(); err == nil || !strings.Contains(err.Error(), tt.why) {
					t.Errorf("got %v, want %q", err, tt.why)
				}
				l.Release()
				again := b.acquire("a", nil)
				time.Sleep(10 * time.Minute)
				if !b.Started()[1].Alive() {
					t.Error("one that answers was killed")
				}
				again.Release()
			})
		})
	}
}

func TestASpareRunnerWaitsWhenThereIsRoom(t *testing.T) {
	m := &machine{total: 2000 * mib}
	run(t, sched.Params{Memory: m, Spare: m}, func(t *testing.T, b bed) {
		m.bed = b
		busy := b.acquire("a", seconds(10000))
		time.Sleep(time.Minute)
		if m.fills.Load() != 0 {
			t.Error("a spare runner was started beside a busy one")
		}
		busy.Release()
		time.Sleep(2 * time.Second)
		if synctest.Wait(); m.fills.Load() != 0 {
			t.Error("a spare runner was started at once")
		}
		time.Sleep(5 * time.Second)
		if synctest.Wait(); m.fills.Load() != 1 || m.dropped.Load() != 0 {
			t.Errorf("started %d, dropped %d, want 1 and 0", m.fills.Load(), m.dropped.Load())
		}
		m.take(3000 * mib)
		time.Sleep(5 * time.Second)
		if synctest.Wait(); m.fills.Load() != 1 || m.dropped.Load() != 1 {
			t.Errorf("under pressure: started %d, dropped %d, want 1 and 1", m.fills.Load(), m.dropped.Load())
		}
		m.take(1500 * mib)
		time.Sleep(time.Minute)
		if synctest.Wait(); m.fills.Load() != 1 {
			t.Error("a spare runner was started with little memory left")
		}
		m.take(0)
	})
}

// Work that is no model gets its memory as a model does: idle ones make room for it, and others wait until it is done.
func TestReserve(t *testing.T) {
	withMemory(t, 215, sched.Params{}, func(t *testing.T, b bed, m *machine) {
		b.acquire("a", nil).Release()
		busy := b.acquire("b", nil)
		done := make(chan func(), 1)
		reserve := func(ctx context.Context, bytes uint64) {
			release, err := b.Reserve(ctx, "converting x", bytes)
			if err != nil {
				t.Error(err)
			}
			done <- release
		}
		go reserve(t.Context(), 90*mib)
		release := <-done
		b.expect("b;")
		waiting := b.start(t.Context(), "a", nil)
		b.waits(waiting)
		release()
		release()
		b.lease(waiting).Release()

		// It waits for a busy one, and who gives up leaves nothing behind.
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() {
			_, err := b.Reserve(ctx, "converting x", 200*mib)
			result <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-result; !errors.Is(err, sched.ErrRequestCanceled) {
			t.Errorf("got %v", err)
		}
		busy.Release()
		if _, err := b.Reserve(t.Context(), "converting x", 300*mib); !errors.Is(err, errdefs.ErrPrecondition) || !strings.Contains(err.Error(), "converting x does not fit into memory") {
			t.Errorf("got %v", err)
		}
		go reserve(t.Context(), 200*mib)
		(<-done)()
		b.expect("")
	})
}
