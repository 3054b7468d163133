package runner

import (
	"context"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Stop ends the runner: the Shutdown call with its time to drain, then SIGTERM to its process group, then SIGKILL, each
// bounded by Timeouts. It returns nil when the process has been waited for and nothing of it is left, also if it had
// ended already. It may be called in any state, any number of times and by several goroutines at once. When ctx ends,
// SIGKILL follows at once and Stop still waits for the end. The error tells that the process survived SIGKILL.
func (r *Runner) Stop(ctx context.Context) error {
	// It fails only if the runner has ended, which the wait below finds.
	_ = r.change(func(now snapshot) (snapshot, error) {
		if now.state != StateStopping {
			go r.terminate(now)
		}
		now.state, now.stopped, now.cancelLoad = StateStopping, true, nil
		return now, nil
	})
	select {
	case <-r.done:
		return nil
	case <-r.stuck:
	case <-ctx.Done():
		r.hurryOnce.Do(func() { close(r.hurry) })
	}
	select {
	case <-r.done:
		return nil
	case <-r.stuck:
		return errdefs.New(errdefs.ErrInternal, "the model runner, process %d, did not end after SIGKILL", r.PID())
	}
}

// Kill ends a runner that hangs, as if it had crashed: its requests, and Err, tell the reason.
func (r *Runner) Kill(reason error) {
	err := r.change(func(now snapshot) (snapshot, error) {
		if now.killed == nil {
			now.killed = reason
		}
		return now, nil
	})
	if err == nil {
		r.proc.signal(syscall.SIGKILL)
	}
}

// terminate goes through the steps of Stop until the process has ended. It runs once in a runner's life.
func (r *Runner) terminate(before snapshot) {
	if before.cancelLoad != nil {
		before.cancelLoad(errStopping)
	}
	t := r.params.Timeouts
	if before.state != StateStarting && r.shutdown() {
		return
	}
	r.proc.signal(syscall.SIGTERM)
	if r.proc.exitedWithin(t.Term, r.hurry) {
		return
	}
	r.logger().Warn("killing a runner that did not end in time", "pid", r.PID())
	r.proc.signal(syscall.SIGKILL)
	if r.proc.exitedWithin(t.Kill, nil) {
		return
	}
	close(r.stuck)
}

// shutdown asks the runner to end and tells whether it did within its time.
func (r *Runner) shutdown() bool {
	t := r.params.Timeouts
	ctx, cancel := context.WithTimeout(context.Background(), t.Drain+t.Save+t.Shutdown)
	defer cancel()
	ctx, release := until(ctx, r.hurry, errStopping)
	defer release()

	_, err := r.client.Shutdown(ctx, &runnerpb.ShutdownRequest{DrainNs: t.Drain.Nanoseconds(), SaveNs: t.Save.Nanoseconds()})
	if err == nil {
		// Its requests have ended, their last events may be on the way. An open session would only keep its server from ending.
		r.sessions.close(stoppedError())
	} else if ctx.Err() == nil && status.Code(err) != codes.Unavailable {
		r.logger().Warn("runner refused to shut down", "error", errdefs.FromGRPC(err))
		return false
	}
	// The connection breaks a moment before the process ends.
	select {
	case <-r.proc.exited:
		return true
	case <-ctx.Done():
		return r.proc.exitedWithin(0, nil)
	}
}
