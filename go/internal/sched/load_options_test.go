package sched_test

import (
	"testing"
	"testing/synctest"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// A request that wants its model loaded in another way gets a runner of its own, and the old one goes when nothing uses it.
func TestOtherLoadOptionsReplaceTheRunner(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		wide := func(numCtx uint32) *store.Model {
			m := named("a")
			m.Load = &runnerpb.LoadRequest{NumCtx: numCtx}
			return m
		}
		acquire := func(m *store.Model) *sched.Lease {
			l, err := b.Acquire(t.Context(), m, sched.AcquireOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		first := acquire(wide(4096))
		acquire(wide(4096)).Release()
		if n := len(b.Started()); n != 1 {
			t.Fatalf("got %d runners for equal options, want 1", n)
		}
		second := acquire(wide(8192))
		synctest.Wait()
		if r := b.Started(); len(r) != 2 || !r[0].Alive() || r[1].Model.Load.GetNumCtx() != 8192 {
			t.Fatalf("got %d runners, want the old one to stay while it is used", len(r))
		}
		first.Release()
		synctest.Wait()
		if r := b.Started(); r[0].Alive() || !r[1].Alive() {
			t.Error("the old runner should be gone, and the new one stay")
		}
		second.Release()
		acquire(named("b")).Release()
		synctest.Wait()
		if r := b.Started(); !r[1].Alive() {
			t.Error("another model should not replace it")
		}
	})
}
