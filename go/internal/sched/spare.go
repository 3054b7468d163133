package sched

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/runner"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

const (
	// spareFailurePause is how long no spare runner is started after one that failed.
	spareFailurePause = time.Minute
	// importTimeout bounds the wait for the end of a spare runner's imports.
	importTimeout  = 2 * time.Minute
	importInterval = 250 * time.Millisecond
)

// SpareRunner keeps one runner of an engine that has done its imports and waits for a model, so that a load takes as long
// as the load and not seconds more. It is filled when the scheduler says so, taken by a load, and dropped when its memory
// is needed.
type SpareRunner struct {
	params runner.Params
	memory Memory
	log    *slog.Logger

	mu      sync.Mutex
	current *spare
	failed  time.Time
}

// spare is a runner on its way; ready is closed when runner is set, or nil for good.
type spare struct {
	cancel context.CancelFunc
	ready  chan struct{}
	runner *runner.Runner
}

// NewSpareRunner returns an empty SpareRunner for the engine of p. Memory learns from it what runners compute on.
func NewSpareRunner(p runner.Params, engine string, m Memory) *SpareRunner {
	p.Engine, p.Warm, p.ModelName = engine, true, ""
	log := p.Logger
	if log == nil {
		log = slog.Default()
	}
	return &SpareRunner{params: p, memory: m, log: log}
}

// Fill implements Spare.
func (s *SpareRunner) Fill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.alive() || time.Since(s.failed) < spareFailurePause {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &spare{cancel: cancel, ready: make(chan struct{})}
	s.current = x
	go s.start(ctx, x)
}

func (s *SpareRunner) start(ctx context.Context, x *spare) {
	defer x.cancel()
	r, err := runner.Start(ctx, s.params)
	if err != nil {
		s.mu.Lock()
		if ctx.Err() == nil {
			s.failed = time.Now()
			s.log.Warn("sched: no spare runner could be started", "error", err)
		}
		if s.current == x {
			s.current = nil
		}
		s.mu.Unlock()
		close(x.ready)
		return
	}
	x.runner = r
	close(x.ready)
	s.learn(ctx, x)
}

// learn waits for the imports of a spare runner, which tells then what it computes on and what it takes without a model.
func (s *SpareRunner) learn(ctx context.Context, x *spare) {
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	ticker := time.NewTicker(importInterval)
	defer ticker.Stop()
	for {
		st, err := x.runner.Status(ctx, &runnerpb.StatusRequest{})
		if err != nil || st.GetModel() != nil || st.GetState() != runnerpb.StatusResponse_STATE_IDLE {
			return
		}
		if st.GetImported() {
			s.log.Debug("sched: a spare runner is ready", "runner", x.runner.ID())
			if s.memory != nil {
				s.memory.Learn(st, 0)
			}
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// take hands over the spare runner, nil if there is none for the engine. One that is just starting is waited for.
func (s *SpareRunner) take(ctx context.Context, engine string) *runner.Runner {
	if s == nil || engine != s.params.Engine {
		return nil
	}
	s.mu.Lock()
	x := s.current
	s.current = nil
	s.mu.Unlock()
	if x == nil {
		return nil
	}
	select {
	case <-x.ready:
	case <-ctx.Done():
		x.drop()
		return nil
	}
	if !x.alive() {
		return nil
	}
	return x.runner
}

// Drop implements Spare.
func (s *SpareRunner) Drop(then func()) {
	s.mu.Lock()
	x := s.current
	s.current = nil
	s.mu.Unlock()
	go func() {
		if x != nil {
			x.drop()
		}
		then()
	}()
}

// Held implements Spare.
func (s *SpareRunner) Held() uint64 {
	s.mu.Lock()
	x := s.current
	s.mu.Unlock()
	switch {
	case !x.alive():
		return 0
	case x.runner == nil:
		return 1
	}
	return max(memory.OfProcess(x.runner.PID()), 1)
}

// alive reports whether the runner is there or on its way.
func (x *spare) alive() bool {
	if x == nil {
		return false
	}
	select {
	case <-x.ready:
	default:
		return true
	}
	if x.runner == nil {
		return false
	}
	select {
	case <-x.runner.Done():
		return false
	default:
		return true
	}
}

// drop ends the runner and waits for that.
func (x *spare) drop() {
	x.cancel()
	<-x.ready
	if x.runner == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), DefaultStopTimeout)
	defer cancel()
	_ = x.runner.Stop(ctx)
}
