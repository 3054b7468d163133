package sched_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// Random clients with random patience use random models whose runners fail and crash at random. Whatever happens,
// there is at most one live runner for a model and at most MaxLoaded altogether, a leased runner is alive unless it
// crashed, and every request ends.
func TestRandomSchedules(t *testing.T) {
	const maxLoaded, clients, steps = 2, 12, 30
	for seed := range uint64(60) {
		run(t, sched.Params{MaxLoaded: maxLoaded, KeepAlive: 20 * time.Second}, func(t *testing.T, b bed) {
			var mu sync.Mutex
			live, crashed := map[string]*schedtest.Runner{}, map[*schedtest.Runner]bool{}
			rng := rand.New(rand.NewPCG(seed, 0))
			var rngMu sync.Mutex
			roll := func(n int) int { rngMu.Lock(); defer rngMu.Unlock(); return rng.IntN(n) }

			b.OnLoad = func(ctx context.Context, _ *store.Model, _ func(*runnerpb.LoadProgress)) error {
				select {
				case <-time.After(time.Duration(roll(3000)) * time.Millisecond):
				case <-ctx.Done():
					return ctx.Err()
				}
				if roll(10) == 0 {
					return errdefs.New(errdefs.ErrUnavailable, "bad luck")
				}
				return nil
			}
			b.OnStart = func(r *schedtest.Runner) {
				mu.Lock()
				defer mu.Unlock()
				if live[r.Model.Digest] != nil {
					t.Errorf("seed %d: a second runner for %s", seed, r.Model.Name)
				}
				live[r.Model.Digest] = r
				if len(live) > maxLoaded {
					t.Errorf("seed %d: %d runners", seed, len(live))
				}
				r.OnStop = func(context.Context) error {
					time.Sleep(time.Duration(roll(500)) * time.Millisecond)
					mu.Lock()
					defer mu.Unlock()
					if live[r.Model.Digest] == r {
						delete(live, r.Model.Digest)
					}
					return nil
				}
			}
			crash := func(r *schedtest.Runner) {
				mu.Lock()
				defer mu.Unlock()
				if live[r.Model.Digest] == r {
					delete(live, r.Model.Digest)
					crashed[r] = true
					r.Crash(errors.New("killed"))
				}
			}

			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					for range steps {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(roll(20000)+1)*time.Millisecond)
						var keep *api.Duration
						if roll(4) == 0 {
							keep = seconds(float64(roll(4)))
						}
						l, err := b.Acquire(ctx, named(string(rune('a'+roll(4)))), sched.AcquireOptions{KeepAlive: keep})
						if err == nil {
							r := l.Runner().(*schedtest.Runner)
							time.Sleep(time.Duration(roll(2000)) * time.Millisecond)
							mu.Lock()
							ok := r.Alive() || crashed[r]
							mu.Unlock()
							if !ok {
								t.Errorf("seed %d: a leased runner was stopped", seed)
							}
							if roll(15) == 0 {
								crash(r)
							}
							l.Release()
						}
						cancel()
						time.Sleep(time.Duration(roll(1000)) * time.Millisecond)
					}
				})
			}
			wg.Wait()
		})
	}
}
