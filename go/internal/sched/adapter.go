package sched

import (
	"context"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// adapted is a runner of a base model for the requests to a model that adds an adapter to it. The runner puts the adapter
// on for them; models with other adapters, and the base itself, share the runner.
type adapted struct {
	Generator
	adapter *runnerpb.Adapter
}

// Generate sets the request's adapter.
func (a adapted) Generate(ctx context.Context, req *runnerpb.GenerateRequest) (Stream, error) {
	req.Adapter = a.adapter
	return a.Generator.Generate(ctx, req)
}

// Embed sets the request's adapter.
func (a adapted) Embed(ctx context.Context, req *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
	req.Adapter = a.adapter
	return a.Generator.Embed(ctx, req)
}
