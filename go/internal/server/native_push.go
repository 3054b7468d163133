package server

import (
	"net/http"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/registry"
)

func (s *Server) handlePush(w http.ResponseWriter, r *http.Request) {
	q, err := s.readTransfer(w, r)
	if err == nil && q.name() == "" {
		err = errModelRequired
	}
	if err == nil && q.Quantize != "" {
		err = errdefs.New(errdefs.ErrInvalid, "quantize is for pull; a model is pushed as it is")
	}
	if err == nil && s.params.Pusher == nil {
		err = errdefs.New(errdefs.ErrUnsupported, "this server does not push models")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := modelname.Parse(q.name())
	if err == nil {
		_, err = s.lookup(q.name())
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.progress(w, r, q.Stream, func(report func(api.ProgressResponse)) error {
		return transferFailure(r.Context(), s.params.Pusher.Push(r.Context(), n, registry.Options{Insecure: q.Insecure}, report))
	})
}
