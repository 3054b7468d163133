package runner

import (
	"context"

	"google.golang.org/grpc"
)

// Conn is the connection to the process, for services of its own besides Runner: a process that holds no model but does
// one task of the host (docs/runner-protocol.md, Tasks) is started and stopped like a runner. It works until Done.
func (r *Runner) Conn() grpc.ClientConnInterface { return r.conn }

// CallError turns the error of a call over Conn into one for the caller: the end of its own ctx, the end of the process,
// or what the process answered, with the kind that the code stands for.
func (r *Runner) CallError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return r.callError(ctx, err)
}
