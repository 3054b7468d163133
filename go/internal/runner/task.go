package runner

import (
	"context"
	"errors"

	"google.golang.org/grpc"
)

// Conn is the connection to the process, for services of its own besides Runner: a process that holds no model but does
// one task of the host (docs/runner-protocol.md, Tasks) is started and stopped like a runner. It works until Done.
func (r *Runner) Conn() grpc.ClientConnInterface { return r.conn }

// CallError turns the error of a call over Conn into one for the caller: the end of its own ctx, the end of the process
// with the last lines of its log, or what the process answered, with the kind that the code stands for.
func (r *Runner) CallError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	err = r.callError(ctx, err)
	if ctx.Err() == nil && r.proc.exitedWithin(0, nil) {
		// The log is complete only when the owner is done with the process.
		<-r.done
		return withTail(err, r.proc.logs.tail.String())
	}
	return err
}

// RunTask starts a process, lets do use its connection, and ends the process when do returns. The error of do goes through
// CallError. When ctx has ended the process is killed at once: what a task had begun is not wanted any more.
func RunTask(ctx context.Context, p Params, do func(ctx context.Context, conn grpc.ClientConnInterface) error) error {
	r, err := Start(ctx, p)
	if err != nil {
		return err
	}
	err = r.CallError(ctx, do(ctx, r.Conn()))
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.params.Timeouts.Shutdown)
	defer cancel()
	if ctx.Err() != nil {
		cancel()
	}
	return errors.Join(err, r.Stop(stop))
}
