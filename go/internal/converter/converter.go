// Package converter runs the task process that quantizes models and checks adapters.
//
// Each conversion has a process of its own, which ends with it: what it took of the memory is free again, and whatever the
// libraries do to a process does not outlive it. See docs/runner-protocol.md, Tasks.
package converter

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runner"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// engine is the name of the task.
const engine = "convert"

// Converter implements store.Converter. Its methods may be called by several goroutines at once; conversions wait for
// each other, because one may take most of the memory.
type Converter struct {
	params runner.Params
	turn   chan struct{}
}

// New returns a converter whose processes are started as p says; Engine and ModelName are filled in for each.
func New(p runner.Params) *Converter {
	p.Engine = engine
	return &Converter{params: p, turn: make(chan struct{}, 1)}
}

// Quantize implements store.Converter.
func (c *Converter) Quantize(ctx context.Context, req *runnerpb.QuantizeRequest, progress func(*runnerpb.QuantizeProgress) error) error {
	return c.run(ctx, req.GetModelName(), func(ctx context.Context, client runnerpb.ConverterClient) error {
		stream, err := client.Quantize(ctx, req)
		if err != nil {
			return err
		}
		for {
			msg, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = progress(msg)
			}
			if err != nil {
				return err
			}
		}
	})
}

// ImportAdapter implements store.Converter.
func (c *Converter) ImportAdapter(ctx context.Context, req *runnerpb.ImportAdapterRequest) (resp *runnerpb.ImportAdapterResponse, err error) {
	err = c.run(ctx, req.GetModelName(), func(ctx context.Context, client runnerpb.ConverterClient) (err error) {
		resp, err = client.ImportAdapter(ctx, req)
		return err
	})
	return resp, err
}

func (c *Converter) run(ctx context.Context, modelName string, do func(context.Context, runnerpb.ConverterClient) error) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return errdefs.New(errdefs.ErrCanceled, "request canceled: %w", context.Cause(ctx))
	}
	p := c.params
	p.ModelName = modelName
	return runner.RunTask(ctx, p, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		// A call that progress ends ends the work.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return do(ctx, runnerpb.NewConverterClient(conn))
	})
}
