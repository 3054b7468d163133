package server

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/store"
	"github.com/ollmlx/ollmlx/go/internal/version"
)

// modelRef names a model in the requests that manage models. Older clients send "name".
type modelRef struct {
	Model   string `json:"model"`
	OldName string `json:"name"`
}

func (m modelRef) name() string { return cmp.Or(m.Model, m.OldName) }

// modelDetails are Ollama's, widened by what its current version has.
type modelDetails struct {
	api.ModelDetails
	ContextLength   int `json:"context_length,omitempty"`
	EmbeddingLength int `json:"embedding_length,omitempty"`
}

func detailsOf(m *store.Model) modelDetails {
	d := modelDetails{ModelDetails: m.Details, ContextLength: m.ContextLength, EmbeddingLength: m.EmbeddingLength}
	if d.Families == nil {
		d.Families = []string{}
	}
	return d
}

func (s *Server) handleRoot(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	// Clients look for exactly this text.
	_, _ = w.Write([]byte("Ollama is running"))
}

func (s *Server) handleVersion(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct {
		Version string `json:"version"`
		// What Ollama lacks, so that clients of ours know whom they talk to.
		Ollmlx string `json:"ollmlx"`
	}{s.params.Version, version.Version})
}

// handleStatus tells clients that there is no cloud behind this server.
func (s *Server) handleStatus(w http.ResponseWriter, _ *http.Request) {
	var out api.StatusResponse
	out.Cloud = api.CloudStatus{Disabled: true, Source: "config"}
	writeJSON(w, http.StatusOK, out)
}

type listedModel struct {
	api.ListModelResponse
	Details      modelDetails       `json:"details"`
	Capabilities []model.Capability `json:"capabilities,omitempty"`
}

func (s *Server) handleTags(w http.ResponseWriter, r *http.Request) {
	models, err := s.params.Store.List()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	out := struct {
		Models []listedModel `json:"models"`
	}{[]listedModel{}}
	for _, m := range models {
		name := modelname.Display(m.Name)
		out.Models = append(out.Models, listedModel{
			ListModelResponse: api.ListModelResponse{
				Name: name, Model: name, ModifiedAt: m.ModifiedAt, Size: m.Size, Digest: m.Digest,
			},
			Details:      detailsOf(m),
			Capabilities: m.Capabilities,
		})
	}
	writeJSON(w, http.StatusOK, out)
}

type loadedModel struct {
	api.ProcessModelResponse
	Details modelDetails `json:"details"`
	// What Ollama lacks: what the model does, and how much memory it was promised and its process has.
	State    string `json:"state"`
	Requests int    `json:"requests"`
	Promised uint64 `json:"memory_promised,omitempty"`
	Held     uint64 `json:"memory_held,omitempty"`
}

// failingModel is one whose runner failed repeatedly and is not started before a pause is over.
type failingModel struct {
	Name     string    `json:"name"`
	Failures int       `json:"failures"`
	RetryAt  time.Time `json:"retry_at"`
	Error    string    `json:"error"`
}

func (s *Server) handlePs(w http.ResponseWriter, r *http.Request) {
	out := struct {
		Models  []loadedModel  `json:"models"`
		Failing []failingModel `json:"failing,omitempty"`
	}{Models: []loadedModel{}}
	for _, x := range s.params.Scheduler.Loaded(r.Context()) {
		slices.SortFunc(x.Others, func(a, b *store.Model) int {
			return cmp.Compare(modelname.Display(a.Name), modelname.Display(b.Name))
		})
		for _, m := range append([]*store.Model{x.Model}, x.Others...) {
			name := modelname.Display(m.Name)
			out.Models = append(out.Models, loadedModel{
				ProcessModelResponse: api.ProcessModelResponse{
					Name: name, Model: name, Size: x.Size, SizeVRAM: x.SizeVRAM, Digest: m.Digest,
					ExpiresAt: x.ExpiresAt, ContextLength: x.ContextLength,
				},
				Details: detailsOf(m),
				State:   x.State, Requests: x.Leases, Promised: x.Promised, Held: x.Held,
			})
		}
	}
	for _, f := range s.params.Scheduler.Failing() {
		out.Failing = append(out.Failing, failingModel{f.Model, f.Count, f.Until, f.Err.Error()})
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *Server) handleDelete(w http.ResponseWriter, r *http.Request) {
	var q struct{ modelRef }
	if err := s.readJSON(w, r, &q); err != nil {
		s.fail(w, r, err)
		return
	}
	name := q.name()
	n, err := modelname.Parse(name)
	if err != nil {
		s.fail(w, r, errdefs.New(errdefs.ErrInvalid, "name %q is invalid", name))
		return
	}
	// A model that cannot be read can still be deleted.
	m, getErr := s.params.Store.Get(n)
	err = s.params.Store.Delete(n)
	if errors.Is(err, errdefs.ErrNotFound) {
		err = errNoModel(name)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if getErr == nil {
		s.params.Scheduler.Unload(m)
	}
	w.WriteHeader(http.StatusOK)
}

func (s *Server) handleCopy(w http.ResponseWriter, r *http.Request) {
	var q api.CopyRequest
	if err := s.readJSON(w, r, &q); err != nil {
		s.fail(w, r, err)
		return
	}
	src, err := modelname.Parse(q.Source)
	if err != nil {
		s.fail(w, r, errdefs.New(errdefs.ErrInvalid, "source %q is invalid", q.Source))
		return
	}
	dst, err := modelname.Parse(q.Destination)
	if err != nil {
		s.fail(w, r, errdefs.New(errdefs.ErrInvalid, "destination %q is invalid", q.Destination))
		return
	}
	err = s.params.Store.Copy(src, dst)
	if errors.Is(err, errdefs.ErrNotFound) {
		err = errdefs.New(errdefs.ErrNotFound, "model %q not found", q.Source)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// progress runs work and answers with its reports: a line each, or only the last one.
func (s *Server) progress(w http.ResponseWriter, r *http.Request, stream *bool, work func(report func(api.ProgressResponse)) error) {
	if stream != nil && !*stream {
		var last api.ProgressResponse
		if err := work(func(p api.ProgressResponse) { last = p }); err != nil {
			s.fail(w, r, err)
			return
		}
		writeJSON(w, http.StatusOK, last)
		return
	}
	out := newLines(w)
	var gone error
	err := work(func(p api.ProgressResponse) {
		if gone == nil {
			gone = out.send(p)
		}
	})
	if err != nil {
		out.fail(s, r, err)
	}
}
