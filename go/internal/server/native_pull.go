package server

import (
	"context"
	"net/http"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/registry"
)

// transferRequest is what pull and push are asked with.
type transferRequest struct {
	modelRef
	Insecure bool  `json:"insecure"`
	Stream   *bool `json:"stream"`
	// Quantize is not Ollama's: what to quantize the weights of a model of Hugging Face to.
	Quantize string `json:"quantize"`
	// Ollama's types have these, and neither program can do anything with them.
	Username string `json:"username"`
	Password string `json:"password"`
}

// readTransfer reads a request to pull or push.
func (s *Server) readTransfer(w http.ResponseWriter, r *http.Request) (q transferRequest, err error) {
	if err := s.readJSON(w, r, &q); err != nil {
		return q, err
	}
	if q.Username != "" || q.Password != "" {
		s.log.Warn("username and password of a request are not used: registries know users by their key", "id", requestID(r.Context()), "path", r.URL.Path)
	}
	return q, nil
}

func (s *Server) handlePull(w http.ResponseWriter, r *http.Request) {
	q, err := s.readTransfer(w, r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := modelname.Parse(q.name())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.progress(w, r, q.Stream, func(report func(api.ProgressResponse)) error {
		return s.pull(r.Context(), n, registry.Options{Insecure: q.Insecure, Quantize: q.Quantize}, report)
	})
}

// pull brings a model from where its name says it is.
func (s *Server) pull(ctx context.Context, n model.Name, o registry.Options, report func(api.ProgressResponse)) error {
	if s.params.Puller == nil {
		return errdefs.New(errdefs.ErrUnsupported, "this server does not pull models")
	}
	return transferFailure(ctx, s.params.Puller.Pull(ctx, n, o, report))
}

// pullForCreate returns what brings a model that another one is made from, nil if this server cannot.
func (s *Server) pullForCreate() func(context.Context, model.Name, func(api.ProgressResponse)) error {
	if s.params.Puller == nil {
		return nil
	}
	return func(ctx context.Context, n model.Name, report func(api.ProgressResponse)) error {
		return s.pull(ctx, n, registry.Options{}, report)
	}
}

// transferFailure is what a client hears of a failed transfer. Whatever a registry found wrong, with itself or with what
// we asked it, is no fault in the client's request to us: as in Ollama, it is none of the 4xx.
func transferFailure(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return endOf(ctx)
	}
	return errdefs.New(errdefs.ErrUnavailable, "%v", err)
}
