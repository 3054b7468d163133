package server

import (
	"net/http"

	"github.com/ollama/ollama/openai"

	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

func openaiModel(id string, m *store.Model) openai.Model {
	return openai.Model{Id: id, Object: "model", Created: m.ModifiedAt.Unix(), OwnedBy: m.Name.Namespace}
}

// handleListModels serves a route that OpenAI and Anthropic both have; Anthropic's clients say which they mean.
func (s *Server) handleListModels(w http.ResponseWriter, r *http.Request) {
	models, err := s.params.Store.List()
	if asksAnthropic(r) {
		s.listAnthropicModels(w, r, models, err)
		return
	}
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	// Not nil: clients iterate over it.
	out := openai.ListCompletion{Object: "list", Data: []openai.Model{}}
	for _, m := range models {
		out.Data = append(out.Data, openaiModel(modelname.Display(m.Name), m))
	}
	writeJSON(w, http.StatusOK, out)
}

// handleRetrieveModel answers for any name that a request may have in "model"; the id is the name as it was asked for.
func (s *Server) handleRetrieveModel(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("model")
	m, err := s.lookup(name)
	if asksAnthropic(r) {
		s.retrieveAnthropicModel(w, r, name, m, err)
		return
	}
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, openaiModel(name, m))
}
