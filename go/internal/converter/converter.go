// Package converter runs the task process that quantizes models and checks adapters.
//
// Each conversion has a process of its own, which ends with it: what it took of the memory is free again, and whatever the
// libraries do to a process does not outlive it. See docs/runner-protocol.md, Tasks.
package converter

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

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
	params  runner.Params
	reserve Reserve
	turn    chan struct{}
}

// Reserve waits for memory and sets it aside until release is called; what describes what it is for.
type Reserve func(ctx context.Context, what string, bytes uint64) (release func(), err error)

// What a conversion takes: the process with its libraries, and of the model what it holds at a time, which is a file of the
// result and the tensors that are being packed.
const (
	processBytes = 400 << 20
	heldBytes    = 1280 << 20
)

// New returns a converter whose processes are started as p says; Engine and ModelName are filled in for each. Each
// conversion waits for its memory; with a nil reserve it does not.
func New(p runner.Params, reserve Reserve) *Converter {
	p.Engine = engine
	if reserve == nil {
		reserve = func(context.Context, string, uint64) (func(), error) { return func() {}, nil }
	}
	return &Converter{params: p, reserve: reserve, turn: make(chan struct{}, 1)}
}

// Quantize implements store.Converter.
func (c *Converter) Quantize(ctx context.Context, req *runnerpb.QuantizeRequest, progress func(*runnerpb.QuantizeProgress) error) error {
	return c.run(ctx, req.GetModelName(), req.GetModelPath(), func(ctx context.Context, client runnerpb.ConverterClient) error {
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
	err = c.run(ctx, req.GetModelName(), req.GetAdapterPath(), func(ctx context.Context, client runnerpb.ConverterClient) (err error) {
		resp, err = client.ImportAdapter(ctx, req)
		return err
	})
	return resp, err
}

// run has do work on the files in dir.
func (c *Converter) run(ctx context.Context, modelName, dir string, do func(context.Context, runnerpb.ConverterClient) error) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return errdefs.New(errdefs.ErrCanceled, "request canceled: %w", context.Cause(ctx))
	}
	release, err := c.reserve(ctx, "converting "+modelName, processBytes+min(2*sizeOf(dir), heldBytes))
	if err != nil {
		return err
	}
	defer release()
	p := c.params
	p.ModelName = modelName
	return runner.RunTask(ctx, p, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		// A call that progress ends ends the work.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return do(ctx, runnerpb.NewConverterClient(conn))
	})
}

// sizeOf adds up the files in a directory, following links.
func sizeOf(dir string) (n uint64) {
	files, _ := os.ReadDir(dir) // the converter tells what is wrong with it
	for _, f := range files {
		if info, err := os.Stat(filepath.Join(dir, f.Name())); err == nil && info.Mode().IsRegular() {
			n += uint64(info.Size())
		}
	}
	return n
}
