package server

import (
	"io"
	"net/http"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

func (s *Server) handleHeadBlob(w http.ResponseWriter, r *http.Request) {
	has, err := s.params.Store.HasBlob(r.PathValue("digest"))
	if err == nil && !has {
		err = errdefs.New(errdefs.ErrNotFound, "blob %q not found", r.PathValue("digest"))
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// handlePutBlob stores an upload. Its size is not bounded, because weights are large; the store checks its digest.
func (s *Server) handlePutBlob(w http.ResponseWriter, r *http.Request) {
	created, err := s.params.Store.PutBlob(r.PathValue("digest"), r.Body)
	if err != nil {
		if r.Context().Err() != nil {
			err = endOf(r.Context())
		}
		s.fail(w, r, err)
		return
	}
	if !created {
		// Clients that do not ask first still send; an answer before they are done would reach them as a broken
		// connection.
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusOK)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

// createRequest is Ollama's, widened by what its current version has.
type createRequest struct {
	api.CreateRequest
	DraftFiles    map[string]string `json:"draft_files,omitempty"`
	DraftQuantize string            `json:"draft_quantize,omitempty"`
}

func (s *Server) handleCreate(w http.ResponseWriter, r *http.Request) {
	var q createRequest
	err := s.readJSON(w, r, &q)
	if err == nil && (len(q.DraftFiles) > 0 || q.DraftQuantize != "") {
		err = errdefs.New(errdefs.ErrUnsupported, "draft_files and draft_quantize (DRAFT in a Modelfile) are not supported: a model cannot be given a draft here; leave them out")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.progress(w, r, q.Stream, func(report func(api.ProgressResponse)) error {
		err := s.params.Store.Create(r.Context(), store.CreateParams{
			Request: q.CreateRequest, Pull: s.pullForCreate(), Converter: s.params.Converter,
		}, report)
		if r.Context().Err() != nil {
			return endOf(r.Context())
		}
		return err
	})
}
