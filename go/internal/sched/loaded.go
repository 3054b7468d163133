package sched

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// statusTimeout bounds the wait for a runner's memory figures; without them the size of its weights is told.
const statusTimeout = 500 * time.Millisecond

// Loaded describes a model that has a runner or is getting one.
type Loaded struct {
	Model *store.Model
	// Size is the memory that the runner's arrays take, SizeVRAM the part of it on a GPU.
	Size, SizeVRAM int64
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
		x := Loaded{Model: e.model, Size: e.model.Size, Leases: e.leases, Loading: e.phase == loading, instance: e.instance}
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

// measure fills in what the runner knows.
func (x *Loaded) measure(ctx context.Context) {
	if x.instance == nil {
		return
	}
	info := x.instance.Info()
	x.ContextLength = int(info.GetContextLength())
	x.Size = int64(info.GetWeightBytes())
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if st, err := x.instance.Status(ctx, &runnerpb.StatusRequest{}); err == nil {
		x.Size = max(x.Size, int64(st.GetMemory().GetActiveBytes()))
	}
	if onGPU(info) {
		x.SizeVRAM = x.Size
	}
}

func onGPU(info *runnerpb.ModelInfo) bool {
	return info.GetDevice() != "" && info.GetDevice() != "cpu"
}
