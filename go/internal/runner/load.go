package runner

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Load has the runner read its model and reports progress as it comes, in the calling goroutine. It gives up when
// nothing has moved for Timeouts.Stall, or when ctx ends. A runner whose Load has failed may still be giving the model
// up: Stop it, unless the error tells that the request was wrong.
func (r *Runner) Load(
	ctx context.Context, req *runnerpb.LoadRequest, progress func(*runnerpb.LoadProgress),
) (*runnerpb.ModelInfo, error) {
	r.name(req.GetModelName())
	loading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := r.change(func(now snapshot) (snapshot, error) { return now.beginLoad(cancel) }); err != nil {
		return nil, err
	}
	info, err := r.load(loading, cancel, req, progress)
	if err != nil {
		err = r.loadError(ctx, loading, cmp.Or(req.GetModelName(), r.params.ModelName), err)
	}
	if ended := r.change(func(now snapshot) (snapshot, error) { return now.endLoad(info) }); err == nil {
		err = ended
	}
	if err != nil {
		return nil, err
	}
	return info, nil
}

func (s snapshot) beginLoad(cancel context.CancelCauseFunc) (snapshot, error) {
	switch s.state {
	case StateReady:
		s.state, s.cancelLoad = StateLoading, cancel
		return s, nil
	case StateLoading, StateServing:
		return s, errdefs.New(errdefs.ErrPrecondition, "this runner is %s a model already", s.state)
	default:
		return s, stoppedError()
	}
}

// endLoad follows a Load that ended; info is nil if it failed.
func (s snapshot) endLoad(info *runnerpb.ModelInfo) (snapshot, error) {
	if s.state != StateLoading {
		return s, stoppedError()
	}
	s.state, s.cancelLoad = StateReady, nil
	if info != nil {
		s.state, s.info = StateServing, info
	}
	return s, nil
}

func (r *Runner) load(
	ctx context.Context, cancel context.CancelCauseFunc, req *runnerpb.LoadRequest, progress func(*runnerpb.LoadProgress),
) (*runnerpb.ModelInfo, error) {
	stream, err := r.client.Load(ctx, req)
	if err != nil {
		return nil, err
	}
	stall := newStallTimer(r.params.Timeouts.Stall, func() { cancel(errStalled) })
	defer stall.stop()
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errdefs.New(errdefs.ErrInternal, "the model runner ended the load without a model")
		}
		if err != nil {
			return nil, err
		}
		stall.saw(msg)
		if progress != nil {
			progress(msg)
		}
		if msg.GetStage() == runnerpb.LoadProgress_STAGE_READY && msg.GetModel() != nil {
			return msg.GetModel(), nil
		}
	}
}

// loadError turns the error of a load into one for the caller, by what ended it.
func (r *Runner) loadError(ctx, loading context.Context, model string, err error) error {
	switch cause := context.Cause(loading); {
	case ctx.Err() != nil:
		return errdefs.New(errdefs.ErrCanceled, "loading %s was given up: %w", model, context.Cause(ctx))
	case cause == errStalled:
		return withTail(errdefs.New(errdefs.ErrTimeout,
			"loading %s made no progress for %s; raise OLLAMA_LOAD_TIMEOUT if the disk is that slow",
			model, r.params.Timeouts.Stall), r.proc.logs.tail.String())
	case cause == errStopping:
		return stoppedError()
	}
	err = r.callError(ctx, err)
	select {
	case <-r.proc.exited:
		// The log is complete only when the owner is done with the process.
		<-r.done
		return withTail(err, r.proc.logs.tail.String())
	default:
		return err
	}
}

// stallTimer calls a function when progress stands still.
type stallTimer struct {
	after time.Duration
	timer *time.Timer
	stage runnerpb.LoadProgress_Stage
	bytes uint64
}

func newStallTimer(after time.Duration, f func()) *stallTimer {
	if after < 0 {
		return &stallTimer{}
	}
	return &stallTimer{after: after, timer: time.AfterFunc(after, f)}
}

// saw starts the time anew if msg tells of progress; a message that repeats the last one is no progress.
func (t *stallTimer) saw(msg *runnerpb.LoadProgress) {
	if msg.GetStage() == t.stage && msg.GetBytesDone() == t.bytes {
		return
	}
	t.stage, t.bytes = msg.GetStage(), msg.GetBytesDone()
	if t.timer != nil {
		t.timer.Reset(t.after)
	}
}

func (t *stallTimer) stop() {
	if t.timer != nil {
		t.timer.Stop()
	}
}
