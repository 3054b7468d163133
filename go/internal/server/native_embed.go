package server

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// embedRequest is Ollama's, its input left as it came.
type embedRequest struct {
	api.EmbedRequest
	Input json.RawMessage `json:"input"`
}

// inputs are the texts of the request; an empty string alone is none.
func (q *embedRequest) inputs() ([]string, error) {
	var one string
	var many []string
	switch {
	case len(q.Input) == 0 || string(q.Input) == "null":
		return nil, nil
	case json.Unmarshal(q.Input, &one) == nil:
		if one == "" {
			return nil, nil
		}
		return []string{one}, nil
	// A null in the list would pass as an empty string.
	case json.Unmarshal(q.Input, &many) == nil && !hasNull(q.Input):
		return many, nil
	}
	return nil, errdefs.New(errdefs.ErrInvalid, "invalid input type")
}

func hasNull(list json.RawMessage) bool {
	var ptrs []*string
	_ = json.Unmarshal(list, &ptrs)
	for _, p := range ptrs {
		if p == nil {
			return true
		}
	}
	return false
}

func (s *Server) handleEmbed(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var q embedRequest
	out := api.EmbedResponse{Embeddings: [][]float32{}}
	err := func() error {
		if err := s.readJSON(w, r, &q); err != nil {
			return err
		}
		inputs, err := q.inputs()
		if err != nil {
			return err
		}
		if q.Dimensions < 0 {
			return errdefs.New(errdefs.ErrInvalid, "dimensions must not be negative, got %d", q.Dimensions)
		}
		if q.Model == "" {
			return errNoModel("")
		}
		m, err := s.lookupToEmbed(q.Model)
		if err != nil {
			return err
		}
		resp, loaded, err := s.embed(r, m, q.Options, q.KeepAlive, &runnerpb.EmbedRequest{
			Inputs: inputs, Truncate: q.Truncate == nil || *q.Truncate, Dimensions: uint32(q.Dimensions), Normalize: true,
		})
		if err != nil {
			return err
		}
		out.Model = q.Model
		for _, e := range resp.GetEmbeddings() {
			out.Embeddings = append(out.Embeddings, e.GetValues())
		}
		if len(inputs) > 0 {
			out.TotalDuration, out.LoadDuration = time.Since(began), loaded.Sub(began)
			out.PromptEvalCount = int(resp.GetPromptTokens())
		}
		return nil
	}()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

// handleEmbeddings is the older form, for one text.
func (s *Server) handleEmbeddings(w http.ResponseWriter, r *http.Request) {
	var q api.EmbeddingRequest
	out := api.EmbeddingResponse{Embedding: []float64{}}
	err := func() error {
		if err := s.readJSON(w, r, &q); err != nil {
			return err
		}
		if q.Model == "" {
			return errModelRequired
		}
		m, err := s.lookupToEmbed(q.Model)
		if err != nil {
			return err
		}
		var inputs []string
		if q.Prompt != "" {
			inputs = []string{q.Prompt}
		}
		resp, _, err := s.embed(r, m, q.Options, q.KeepAlive, &runnerpb.EmbedRequest{Inputs: inputs, Truncate: true})
		if err != nil {
			return err
		}
		for _, e := range resp.GetEmbeddings() {
			for _, v := range e.GetValues() {
				out.Embedding = append(out.Embedding, float64(v))
			}
		}
		return nil
	}()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *Server) lookupToEmbed(name string) (*store.Model, error) {
	m, err := s.lookup(name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, errdefs.New(errdefs.ErrNotFound, "model %q not found, try pulling it first", name)
	}
	if err == nil {
		err = checkLocal(m)
	}
	return m, err
}

// embed loads the model and, if there are inputs, computes their vectors. It also tells when the model was loaded.
func (s *Server) embed(r *http.Request, m *store.Model, options map[string]any, keepAlive *api.Duration, req *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, time.Time, error) {
	_, numCtx, err := mergeOptions(s.log, m, options)
	if err != nil {
		return nil, time.Time{}, err
	}
	req.NumCtx = numCtx
	var resp *runnerpb.EmbedResponse
	lease, loaded, err := s.withRunner(r.Context(), m, keepAlive, func(g sched.Generator) (err error) {
		if len(req.Inputs) > 0 {
			resp, err = g.Embed(r.Context(), req)
		}
		return err
	})
	if err != nil {
		return nil, loaded, err
	}
	lease.Release()
	if len(resp.GetEmbeddings()) != len(req.Inputs) {
		return nil, loaded, errdefs.New(errdefs.ErrInternal, "the runner returned %d embeddings for %d inputs", len(resp.GetEmbeddings()), len(req.Inputs))
	}
	for _, e := range resp.GetEmbeddings() {
		for _, v := range e.GetValues() {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return nil, loaded, errdefs.New(errdefs.ErrInvalid, "embedding contains NaN or Inf values")
			}
		}
	}
	return resp, loaded, nil
}
