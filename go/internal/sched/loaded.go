package sched

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// statusTimeout bounds the wait for a runner's memory figures; without them the size of its weights is told.
const statusTimeout = 500 * time.Millisecond

// Loaded describes a model that has a runner or is getting one.
type Loaded struct {
	// Model is the one that was asked for last, Others are those that its runner has served besides: models that differ
	// in nothing but what the host reads, and adapters of one base.
	Model  *store.Model
	Others []*store.Model
	// Size is the memory that the runner's arrays take, SizeVRAM the part of it on a GPU.
	Size, SizeVRAM int64
	// Promised is what the runner may take, Held what it has, in bytes; 0 where nobody counts.
	Promised, Held uint64
	// Plan is what the promise is made of; nil where nobody counts.
	Plan *memory.Plan
	// State is "loading", "idle", "busy", "draining" (it takes no more requests, another model waits for its place) or
	// "stopping".
	State string
	// Status is what the runner told; nil if it did not.
	Status *runnerpb.StatusResponse
	// Info is the loaded model; nil while it loads.
	Info *runnerpb.ModelInfo
	// ContextLength is what requests get by default; 0 while the model loads.
	ContextLength int
	// ExpiresAt is when the runner goes if nothing uses it any more; in the past for one that is going.
	ExpiresAt time.Time
	// Leases is the number of requests that use it now.
	Leases int
	// Loading is true until the model is ready.
	Loading bool

	instance Instance
}

// Failing returns the models that are not started for now because they failed repeatedly.
func (s *Scheduler) Failing() []*Failing {
	ch := make(chan []*Failing, 1)
	if !s.do(func(l *loop) { ch <- l.failures.open(time.Now()) }) {
		return nil
	}
	return <-ch
}

// Loaded returns all loaded models, the one that stays longest first.
func (s *Scheduler) Loaded(ctx context.Context) []Loaded {
	ch := make(chan []Loaded, 1)
	if !s.do(func(l *loop) { ch <- l.snapshot() }) {
		return nil
	}
	models := <-ch
	var wg sync.WaitGroup
	for i := range models {
		wg.Go(func() { models[i].measure(ctx) })
	}
	wg.Wait()
	slices.SortStableFunc(models, func(a, b Loaded) int {
		return cmp.Or(b.ExpiresAt.Compare(a.ExpiresAt), cmp.Compare(modelname.Display(a.Model.Name), modelname.Display(b.Model.Name)))
	})
	return models
}

func (l *loop) snapshot() []Loaded {
	now := time.Now()
	models := make([]Loaded, 0, len(l.entries))
	for _, e := range l.entries {
		x := Loaded{Model: e.model, Others: e.others(), Size: e.model.Size, Leases: e.leases, Loading: e.phase == loading, instance: e.instance, Promised: e.committed, Held: e.held(), Plan: e.plan, State: e.state()}
		switch {
		case e.phase == stopping:
			x.ExpiresAt = now.Add(-time.Second)
		case !e.expires.IsZero():
			x.ExpiresAt = e.expires
		case e.keepAlive < 0:
			x.ExpiresAt = now.Add(Forever)
		default:
			x.ExpiresAt = now.Add(e.keepAlive)
		}
		models = append(models, x)
	}
	return models
}

func (e *entry) state() string {
	switch {
	case e.phase == loading:
		return "loading"
	case e.phase == stopping:
		return "stopping"
	case e.draining:
		return "draining"
	case e.leases > 0:
		return "busy"
	}
	return "idle"
}

// measure fills in what the runner knows.
func (x *Loaded) measure(ctx context.Context) {
	if x.instance == nil {
		return
	}
	info := x.instance.Info()
	x.Info = info
	x.ContextLength = int(info.GetContextLength())
	x.Size = int64(info.GetWeightBytes())
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if st, err := x.instance.Status(ctx, &runnerpb.StatusRequest{}); err == nil {
		x.Status = st
		x.Size = max(x.Size, int64(st.GetMemory().GetActiveBytes()))
	}
	if onGPU(info) {
		x.SizeVRAM = x.Size
	}
}

func onGPU(info *runnerpb.ModelInfo) bool {
	return info.GetDevice() != "" && info.GetDevice() != "cpu"
}
