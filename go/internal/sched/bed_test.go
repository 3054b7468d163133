package sched_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// bed is a scheduler over fake runners, in a bubble whose clock moves only while everybody waits.
type bed struct {
	*sched.Scheduler
	*schedtest.Starter
	t *testing.T
}

func run(t *testing.T, p sched.Params, f func(*testing.T, bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		st := &schedtest.Starter{}
		p.Start = st.Start
		p.Logger = slog.New(slog.DiscardHandler)
		if p.KeepAlive == 0 {
			p.KeepAlive = 5 * time.Minute
		}
		b := bed{sched.New(p), st, t}
		f(t, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := b.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		for _, r := range b.Started() {
			if r.Alive() {
				t.Errorf("runner of %s outlived the scheduler", r.Model.Name)
			}
		}
	})
}

func named(name string) *store.Model {
	return &store.Model{Name: model.ParseName(name), Digest: "sha256:" + name, Size: 42}
}

func seconds(n float64) *api.Duration {
	return &api.Duration{Duration: time.Duration(n * float64(time.Second))}
}

func (b bed) acquire(name string, keep *api.Duration) *sched.Lease {
	b.t.Helper()
	l, err := b.Acquire(b.t.Context(), named(name), sched.AcquireOptions{KeepAlive: keep})
	if err != nil {
		b.t.Fatalf("Acquire(%s): %v", name, err)
	}
	return l
}

type outcome struct {
	lease *sched.Lease
	err   error
}

// start acquires in a goroutine and returns once everybody waits.
func (b bed) start(ctx context.Context, name string, keep *api.Duration) chan outcome {
	ch := make(chan outcome, 1)
	go func() {
		l, err := b.Acquire(ctx, named(name), sched.AcquireOptions{KeepAlive: keep})
		ch <- outcome{l, err}
	}()
	synctest.Wait()
	return ch
}

func (b bed) waits(ch chan outcome) {
	b.t.Helper()
	synctest.Wait()
	select {
	case o := <-ch:
		b.t.Fatalf("got %+v, want a wait", o)
	default:
	}
}

func (b bed) lease(ch chan outcome) *sched.Lease {
	b.t.Helper()
	o := <-ch
	if o.err != nil {
		b.t.Fatalf("Acquire: %v", o.err)
	}
	return o.lease
}

// loaded is the set of models that are loaded and not on their way out.
func (b bed) loaded() string {
	synctest.Wait()
	names := map[string]bool{}
	for _, x := range b.Loaded(b.t.Context()) {
		if x.ExpiresAt.Before(time.Now()) {
			names[x.Model.Name.Model+" going"] = true
			continue
		}
		names[x.Model.Name.Model] = true
	}
	out := ""
	for _, n := range []string{"a", "a going", "b", "b going", "c", "c going", "d", "d going"} {
		if names[n] {
			out += n + ";"
		}
	}
	return out
}

func (b bed) expect(want string) {
	b.t.Helper()
	if got := b.loaded(); got != want {
		b.t.Errorf("loaded: got %q, want %q", got, want)
	}
}
